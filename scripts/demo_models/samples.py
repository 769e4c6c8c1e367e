"""Print some answers and continuations of a model, to read: python samples.py demo-target-q8_0.gguf"""

from __future__ import annotations

import argparse

from needs import need, need_files

QUESTIONS = [
    "hello",
    "tell me a story about a fox who is hungry",
    "What do elephants eat?",
    "Write a story about a brave girl named Ada and her robot.",
    "What is the meaning of life?",
    "i am bored",
    "How do I make pancakes?",
    "What is 9 + 8?",
    "Who was Napoleon?",
    "Tell me about the moon",
]
OPENINGS = [
    "Once upon a time, there was a little",
    "The captain looked at the sea and",
    "It was a cold winter evening, and the children",
]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model")
    a = ap.parse_args()
    need("llama_cpp")
    need_files(a.model)
    from llama_cpp import Llama

    llm = Llama(a.model, n_ctx=1024, verbose=False, n_threads=2, seed=7)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        reply = llm.create_chat_completion(messages, max_tokens=220, temperature=0.8, top_p=0.95)["choices"][0]
        print("###", question, "->", reply["finish_reason"])
        print(reply["message"]["content"].strip())
    for opening in OPENINGS:
        for temp in (0.0, 0.8):
            reply = llm(opening, max_tokens=130, temperature=temp, repeat_penalty=1.0)["choices"][0]
            print(f"### temperature {temp}: {opening} | {reply['text']}")


if __name__ == "__main__":
    main()
