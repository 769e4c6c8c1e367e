"""Write prompts: 30 text openings (20 from held-out documents, 10 written by hand) and 30 chat questions.

In the prompts.jsonl of this folder, openings written by hand stand in place of the 20 from documents.

python make_prompts.py --data DATA --out prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from needs import need_files

FROM_SOURCES = (
    ("tinystories", 10, 60, 160),
    ("fables", 4, 80, 220),
    ("fairytale", 3, 80, 240),
    ("children", 3, 80, 240),
)
"""(source, how many, fewest and most characters)"""

OPENINGS = [
    "Once upon a time, in a land far away, there lived a",
    "The little boat rocked gently on the water while Anna",
    "It was a dark and windy night, and the old house",
    "Tom opened the box and could not believe what he saw inside.",
    "In the middle of the forest there was a tiny door. One morning,",
    '"Where are you going?" asked the fox.',
    "Maya and her grandfather walked to the market to buy",
    "The smallest bear in the family could not sleep.",
    "Leo wanted to build the tallest tower in the world, so",
    "One rainy morning, a yellow duck",
]
QUESTIONS = [
    "Hello! Who are you?",
    "What can you do?",
    "Tell me a short story about a rabbit named Pip.",
    "Tell me a story about a brave little mouse.",
    "Write a story about a lost teddy bear.",
    "Can you tell me a bedtime story?",
    "Tell me a story about sharing.",
    "Write a short story that uses the words river, lantern, and brother.",
    "Tell me a story about a girl named Nora who wants to learn to swim.",
    "Why is the sky blue?",
    "Why do leaves fall in autumn?",
    "What is the capital of Japan?",
    "Tell me the capital of Norway.",
    "What is the opposite of heavy?",
    "What is 7 plus 5?",
    "How much is 6 times 4?",
    "Anna has 5 apples and gets 3 more. How many apples does Anna have now?",
    "Name three farm animals.",
    "List five colors.",
    "What is a volcano?",
    "Explain what a rainbow is.",
    "How do I make a cup of tea?",
    "How can I fall asleep?",
    "Write a short poem about the sea.",
    "Tell me a joke.",
    "Give me a riddle.",
    "I feel sad today.",
    "What rhymes with star?",
    "What day comes after Friday?",
    "Can you write a Python program for me?",
]


def from_documents(docs: list[str], shortest: int, longest: int) -> Iterator[str]:
    """The first sentences of each document that begins with a capital, where they have that length."""
    for doc in docs:
        first, *more = re.split(r"(?<=[.!?])\s", doc.replace("\n\n", " "))
        for sentence in more:
            if len(first) >= shortest:
                break
            first += " " + sentence
        if shortest <= len(first) <= longest and "CHAPTER" not in first:
            yield first


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    need_files(a.data / "heldout_texts.json")
    held = json.loads((a.data / "heldout_texts.json").read_text())
    r = random.Random(4)
    rows: list[dict[str, object]] = []
    for source, n, shortest, longest in FROM_SOURCES:
        docs = [doc for doc in held[source] if re.match(r"[A-Z]", doc)]
        r.shuffle(docs)
        for _, prompt in zip(range(n), from_documents(docs, shortest, longest), strict=False):
            rows.append({"type": "completion", "source": source, "prompt": prompt, "max_tokens": 120})
    rows += [{"type": "completion", "source": "hand", "prompt": t, "max_tokens": 120} for t in OPENINGS]
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        rows.append({"type": "chat", "source": "hand", "messages": messages, "max_tokens": 200})
    a.out.write_text("".join(json.dumps({"id": i, **row}) + "\n" for i, row in enumerate(rows)))
    print(len(rows))


if __name__ == "__main__":
    main()
