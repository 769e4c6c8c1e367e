"""Write prompts.jsonl: 30 text openings (20 from held-out documents, 10 written by hand) and 30 chat questions."""
import argparse
import json
import random
import re

ap = argparse.ArgumentParser()
ap.add_argument("--data", required=True)
ap.add_argument("--out", required=True)
a = ap.parse_args()
held = json.load(open(a.data + "/heldout_texts.json"))
r = random.Random(4)
rows = []
for k, n, lo, hi in (("tinystories", 10, 60, 160), ("fables", 4, 80, 220), ("fairytale", 3, 80, 240), ("children", 3, 80, 240)):
    docs = [d for d in held[k] if re.match(r"[A-Z]", d)]
    r.shuffle(docs)
    got = 0
    for d in docs:
        s = re.split(r"(?<=[.!?])\s", d.replace("\n\n", " "))
        t = s[0]
        for x in s[1:]:
            if len(t) >= lo:
                break
            t += " " + x
        if lo <= len(t) <= hi and "CHAPTER" not in t:
            rows.append({"type": "completion", "source": k, "prompt": t, "max_tokens": 120})
            got += 1
        if got == n:
            break
HAND = ["Once upon a time, in a land far away, there lived a", "The little boat rocked gently on the water while Anna", "It was a dark and windy night, and the old house",
        "Tom opened the box and could not believe what he saw inside.", "In the middle of the forest there was a tiny door. One morning,", "\"Where are you going?\" asked the fox.", "Maya and her grandfather walked to the market to buy", "The smallest bear in the family could not sleep.",
        "Leo wanted to build the tallest tower in the world, so", "One rainy morning, a yellow duck"]
rows += [{"type": "completion", "source": "hand", "prompt": t, "max_tokens": 120} for t in HAND]
CHAT = ["Hello! Who are you?", "What can you do?", "Tell me a short story about a rabbit named Pip.", "Tell me a story about a brave little mouse.", "Write a story about a lost teddy bear.", "Can you tell me a bedtime story?", "Tell me a story about sharing.", "Write a short story that uses the words river, lantern, and brother.", "Tell me a story about a girl named Nora who wants to learn to swim.", "Why is the sky blue?", "Why do leaves fall in autumn?", "What is the capital of Japan?", "Tell me the capital of Norway.", "What is the opposite of heavy?", "What is 7 plus 5?", "How much is 6 times 4?", "Anna has 5 apples and gets 3 more. How many apples does Anna have now?", "Name three farm animals.", "List five colors.", "What is a volcano?", "Explain what a rainbow is.", "How do I make a cup of tea?", "How can I fall asleep?", "Write a short poem about the sea.", "Tell me a joke.", "Give me a riddle.", "I feel sad today.", "What rhymes with star?", "What day comes after Friday?", "Can you write a Python program for me?"]
rows += [{"type": "chat", "source": "hand", "messages": [{"role": "user", "content": t}], "max_tokens": 200} for t in CHAT]
with open(a.out, "w") as f:
    for i, x in enumerate(rows):
        f.write(json.dumps({"id": i, **x}) + "\n")
print(len(rows))
