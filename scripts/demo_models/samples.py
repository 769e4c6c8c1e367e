import sys

from llama_cpp import Llama

m = Llama(sys.argv[1], n_ctx=1024, verbose=False, n_threads=2, seed=7)
print(m.metadata["general.name"], "bos", m.token_bos(), "eos", m.token_eos())
for q in ["hello", "tell me a story about a fox who is hungry", "What do elephants eat?", "Write a story about a brave girl named Ada and her robot.", "What is the meaning of life?", "i am bored", "How do I make pancakes?", "What is 9 + 8?", "Who was Napoleon?", "Tell me about the moon"]:
    r = m.create_chat_completion([{"role": "user", "content": q}], max_tokens=220, temperature=0.8, top_p=0.95)
    c = r["choices"][0]
    print("###", q, "->", c["finish_reason"], r["usage"]["completion_tokens"]); print(c["message"]["content"].strip())
r = m.create_chat_completion([{"role": "user", "content": "Tell me a joke."}, {"role": "assistant", "content": "Why did the cookie go to the doctor? Because it felt crumby!"}, {"role": "user", "content": "Another one, please."}], max_tokens=100, temperature=0.8)
print("### multi-turn:", r["choices"][0]["message"]["content"])
for p in ["Once upon a time, there was a little", "The captain looked at the sea and", "It was a cold winter evening, and the children"]:
    for t in (0.0, 0.8):
        r = m(p, max_tokens=130, temperature=t, repeat_penalty=1.0)
        print(f"### T={t}", p, "|", r["choices"][0]["text"])
