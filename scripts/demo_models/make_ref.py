"""Write reference token ids (REF.json) and PyTorch logits (REF.npz) for check_gguf.py.

python make_ref.py target --q8 OUT/target.q8 --data DATA --out REF
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from export_gguf import add_weights_options, load
from needs import need, need_files

HARD_TEXTS = [
    "Hello,   world!\n\n\n 12345 it's we'll I'd\tTab  end ",
    "na\u00efve caf\u00e9 \u00a35 \u2014 \u201cquotes\u201d \u2026 \u65e5\u672c \U0001f600",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights_options(ap)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", required=True, help="REF, without an ending")
    ap.add_argument("--rows", type=int, default=12)
    ap.add_argument("--len", type=int, default=256, help="tokens of a row")
    a = ap.parse_args()
    need("torch", "numpy", "tokenizers")
    need_files(*(a.data / name for name in ("tokenizer.json", "heldout.npy", "heldout_texts.json")))
    import numpy as np
    import torch
    from model import Llama
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(a.data / "tokenizer.json"))
    r = random.Random(0)
    texts = []
    for docs in json.loads((a.data / "heldout_texts.json").read_text()).values():
        texts += [doc[: r.randint(60, 600)] for doc in r.sample(docs, min(10, len(docs)))]
    config, tensors = load(a.name, a.q8, a.pt)
    model = Llama(config, torch.float32).load(tensors).eval()
    flat = np.load(a.data / "heldout.npy")
    starts = [i * (len(flat) // a.rows) for i in range(a.rows)]
    rows = [flat[s : s + a.len].astype(int).tolist() for s in starts]
    with torch.no_grad():
        logits = {f"r{i}": model(torch.tensor([ids]))[0].numpy() for i, ids in enumerate(rows)}
    np.savez(f"{a.out}.npz", **logits)
    ids = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in texts + HARD_TEXTS]
    Path(f"{a.out}.json").write_text(json.dumps({"texts": ids, "rows": rows}))


if __name__ == "__main__":
    main()
