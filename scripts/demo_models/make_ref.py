"""Write reference token ids and PyTorch logits for check_gguf.py."""
import argparse
import json
import random

import numpy as np
import torch
from export_gguf import load, torch_model
from tokenizers import Tokenizer

ap = argparse.ArgumentParser()
ap.add_argument("name")
ap.add_argument("--q8")
ap.add_argument("--pt")
ap.add_argument("--data", required=True)
ap.add_argument("--out", required=True)
ap.add_argument("--rows", type=int, default=12)
ap.add_argument("--len", type=int, default=256)
a = ap.parse_args()
tk = Tokenizer.from_file(a.data + "/tokenizer.json")
texts = json.load(open(a.data + "/heldout_texts.json"))
r = random.Random(0)
sents = []
for k, v in texts.items():
    for d in r.sample(v, min(10, len(v))):
        sents.append(d[:r.randint(60, 600)])
sents += ["Hello,   world!\n\n\n 12345 it's we'll I'd\tTab  end ", "naïve café £5 — “quotes” … 日本 😀", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
m = torch_model(*load(a.name, a.q8, a.pt))
flat = np.load(a.data + "/heldout.npy")
rows, out = [], {}
with torch.no_grad():
    for i in range(a.rows):
        s = i * (len(flat) // a.rows)
        ids = flat[s:s + a.len].astype(int).tolist()
        rows.append(ids)
        out[f"r{i}"] = m(torch.tensor([ids]))[0].numpy()
np.savez(a.out + ".npz", **out)
json.dump({"texts": [{"text": s, "ids": tk.encode(s, add_special_tokens=False).ids} for s in sents], "rows": rows}, open(a.out + ".json", "w"))
