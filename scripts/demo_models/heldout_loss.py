"""Held-out loss of models by source, in PyTorch on the CPU, in nats per token over 512-token windows.

python heldout_loss.py --data DATA target=OUT/target.q8 draft=OUT/draft.q8 weak=OUT/weak.q8
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export_gguf import load
from needs import need, need_files


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", metavar="NAME=Q8PREFIX")
    ap.add_argument("--data", type=Path, required=True)
    a = ap.parse_args()
    need("torch", "numpy")
    need_files(a.data / "heldout.npy", a.data / "heldout_tokens.json")
    import numpy as np
    import torch
    import torch.nn.functional as F
    from model import Llama

    flat = np.load(a.data / "heldout.npy").astype(np.int64)
    ranges = json.loads((a.data / "heldout_tokens.json").read_text())
    for spec in a.models:
        name, _, prefix = spec.partition("=")
        config, tensors = load(name, prefix)
        model = Llama(config, torch.float32).load(tensors).eval()
        losses = {}
        for k, (first, end, _) in ranges.items():
            rows = min(6, (end - first - 1) // 512)
            if rows < 1:
                continue
            ids = torch.from_numpy(flat[first : first + rows * 512 + 1])
            with torch.no_grad():
                logits = model(ids[:-1].view(rows, 512)).flatten(0, 1)
            losses[k] = round(F.cross_entropy(logits, ids[1:]).item(), 3)
        print(name, json.dumps(losses), flush=True)


if __name__ == "__main__":
    main()
