"""Held-out loss of each model by source, in PyTorch on the CPU: python heldout_loss.py --data DATA NAME=Q8PREFIX ..."""
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from export_gguf import load, torch_model

data = sys.argv[sys.argv.index("--data") + 1]
flat = np.load(data + "/heldout.npy").astype(np.int64)
meta = json.load(open(data + "/heldout_tokens.json"))
for spec in sys.argv[1:]:
    if "=" not in spec:
        continue
    n, q = spec.split("=")
    m = torch_model(*load(n, q))
    out = {}
    with torch.no_grad():
        for k, (lo, hi, _) in meta.items():
            rows = min(6, (hi - lo - 1) // 512)
            x = torch.from_numpy(flat[lo:lo + rows * 512 + 1])
            out[k] = round(F.cross_entropy(m(x[:-1].view(rows, 512)).flatten(0, 1), x[1:]).item(), 3)
    print(n, json.dumps(out), flush=True)
