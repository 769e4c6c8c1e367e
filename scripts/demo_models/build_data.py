"""Collect the text sources, clean them, hold out a part, train the tokenizer, and write token files.

    python build_data.py --mirrors MIRRORS --out DATA

Every source is a list of documents; chats are in ChatML. About 2% of the documents of every source (chosen by a
hash of the text) are held out and never trained on. Writes to DATA: tokenizer.json, {train,heldout}.npy (uint16 token
ids, source after source, each document ended by id 0), {train,heldout}_tokens.json ({source: [first, end, documents]})
and heldout_texts.json. MIRRORS holds bare git clones, see mirror.py; MODELS.md names repositories and commits.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import time
from pathlib import Path
from typing import Any

from needs import need, stop
from text import EOT, IM_END, IM_START, chatml, held

Documents = dict[str, list[str]]

# Shares of each source's documents that the tokenizer is trained on.
TOKENIZER_SHARES = {
    "children": 0.3,
    "novels": 0.12,
    "tinystories": 1,
    "fairytale": 1,
    "picture_books": 1,
    "fables": 1,
    "topical_chat": 0.7,
    "sgd": 0.2,
    "gsm": 0.5,
    "roleplay": 1,
    "synth_story": 0.12,
    "synth_chat": 0.3,
    "fairytale_qa": 0.1,
}
FROM_TRAINING_STORIES = ("tinystories_aug", "tinystories_chat")
"""Made of training stories only: nothing to hold out."""

# Books left out whole, for their language or their matter (MODELS.md).
SKIP_CHILDREN = ("solomons", "quatermain", "settlers", "canada", "stalky", "mulgars", "coral")
SKIP_NOVELS = ("huckleberry", "heart", "twelveyears", "americannotes", "womenlove", "thejungle")


def generate(job: tuple[str, int, int]) -> list[str]:
    """(kind, seed, how many) -> our own documents, from templates."""
    from synth_chat import make_chat
    from synth_stories import make_story

    kind, seed, n = job
    r = random.Random(seed)
    if kind == "story":
        return [make_story(r)["text"] for _ in range(n)]
    return [chatml(make_chat(r, 0.30)) for _ in range(n)]


def collect(mirrors: str, n_stories: int, n_chats: int) -> Documents:
    """All documents by source, held-out ones included."""
    import sources as s
    from tinystories import rename, story_chat, tinystories

    jobs = [("story", 10_000 + i, 1000) for i in range(n_stories // 1000)]
    jobs += [("chat", 900_000 + i, 1000) for i in range(n_chats // 1000)]
    with multiprocessing.Pool(2) as pool:
        generated = pool.map_async(generate, jobs, chunksize=1)
        docs: Documents = {}
        docs["children"] = s.books(mirrors, ("ChiLit",), SKIP_CHILDREN)
        docs["novels"] = s.books(mirrors, ("19C", "DNov", "ArTs"), SKIP_NOVELS)
        docs["tinystories"] = tinystories(mirrors)
        docs["fairytale"], docs["fairytale_qa"] = s.fairytale(mirrors)
        docs["picture_books"] = s.picture_books(mirrors)
        docs["fables"], docs["fables_chat"] = s.fables(mirrors)
        docs["topical_chat"] = s.topical(mirrors)
        docs["sgd"] = s.schema_guided(mirrors)
        docs["gsm"] = s.arithmetic(mirrors)
        docs["roleplay"] = s.roleplay(mirrors)
        stories = [x for x in docs["tinystories"] if not held(x)]
        docs["tinystories_aug"] = rename(stories, 4, 3)
        docs["tinystories_chat"] = story_chat(stories, 1) + story_chat(rename(stories, 3, 4), 2)
        results = generated.get()
    for kind in ("story", "chat"):
        own = (texts for job, texts in zip(jobs, results, strict=True) if job[0] == kind)
        docs[f"synth_{kind}"] = sorted({text for texts in own for text in texts})
    held_fables = {fable[:200] for fable in docs["fables"] if held(fable)}
    docs["fables_chat"] = [c for c in docs["fables_chat"] if not any(fable in c for fable in held_fables)]
    return docs


def split(docs: Documents) -> tuple[Documents, Documents]:
    """(documents to train on, held-out documents)"""
    train, test = {}, {}
    for k, texts in docs.items():
        test[k] = [] if k in FROM_TRAINING_STORIES else [x for x in texts if held(x)]
        train[k] = [x for x in texts if k in FROM_TRAINING_STORIES or not held(x)]
        print(f"{k:18s} docs {len(texts):7d}  MB {sum(map(len, texts)) / 1e6:7.2f}  held out {len(test[k])}")
    return train, test


def train_tokenizer(train: Documents, n_vocab: int) -> Any:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenizer; the special tokens are the first three ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[EOT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    r = random.Random(0)
    chosen = (d for k, share in TOKENIZER_SHARES.items() for d in train[k] if r.random() < share)
    tokenizer.train_from_iterator((re.sub(r"<\|im_\w+\|>", "", d) for d in chosen), trainer)
    if tokenizer.get_vocab_size() != n_vocab:
        stop(f"Too little text: it gave {tokenizer.get_vocab_size()} tokens, not --vocab {n_vocab}.")
    return tokenizer


def write_tokens(out: Path, part: str, docs: Documents, tokenizer: Any) -> None:
    """PART.npy and PART_tokens.json of the documents, each followed by the end-of-text token."""
    import numpy as np

    end = tokenizer.token_to_id(EOT)
    arrays, ranges, pos = [np.zeros(0, np.uint16)], {}, 0
    for k, texts in docs.items():
        n = 0
        for i in range(0, len(texts), 20000):
            encoded = tokenizer.encode_batch_fast(texts[i : i + 20000], add_special_tokens=False)
            arrays += [np.asarray([*e.ids, end], np.uint16) for e in encoded]
            n += sum(len(e.ids) + 1 for e in encoded)
        ranges[k] = [pos, pos + n, len(texts)]
        pos += n
        print(f"{part} {k:18s} tokens {n / 1e6:.2f}M")
    np.save(out / f"{part}.npy", np.concatenate(arrays))
    (out / f"{part}_tokens.json").write_text(json.dumps(ranges))
    print(f"{part} total {pos / 1e6:.2f}M tokens")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--mirrors", required=True, help="the folder of bare git clones")
    ap.add_argument("--out", required=True, type=Path)
    ap.add_argument("--stories", type=int, default=60_000, help="how many of our own stories to generate")
    ap.add_argument("--chats", type=int, default=160_000, help="how many of our own chats to generate")
    ap.add_argument("--vocab", type=int, default=8192)
    a = ap.parse_args()
    need("numpy", "tokenizers")
    a.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    docs = collect(a.mirrors, a.stories, a.chats)
    print(f"collected in {time.time() - start:.0f}s")
    train, test = split(docs)
    (a.out / "heldout_texts.json").write_text(json.dumps(test))
    tokenizer = train_tokenizer(train, a.vocab)
    tokenizer.save(str(a.out / "tokenizer.json"))
    print(f"tokenizer done, {time.time() - start:.0f}s")
    write_tokens(a.out, "train", train, tokenizer)
    write_tokens(a.out, "heldout", test, tokenizer)
    print(f"done, {time.time() - start:.0f}s")


if __name__ == "__main__":
    main()
