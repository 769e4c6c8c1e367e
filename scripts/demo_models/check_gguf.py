"""Compare a GGUF with the PyTorch weights: tokenizer, logits, chat template.  Runs with llama-cpp-python.

    python check_gguf.py MODEL.gguf --logits ref_logits.npz --texts heldout_texts.json --tokenizer tokenizer.json
"""
import argparse
import json

import numpy as np
from llama_cpp import Llama

ap = argparse.ArgumentParser()
ap.add_argument("model")
ap.add_argument("--ref")
a = ap.parse_args()
llm = Llama(a.model, n_ctx=1024, logits_all=True, verbose=False, n_threads=2)
ref = json.load(open(a.ref + ".json"))
bad = 0
for x in ref["texts"]:
    ids = llm.tokenize(x["text"].encode(), add_bos=False, special=True)
    bad += ids != x["ids"]
print("tokenizer:", len(ref["texts"]), "texts,", bad, "different")
z = np.load(a.ref + ".npz")
agree = n = 0
err, kls = [], []
for i, ids in enumerate(ref["rows"]):
    llm.reset()
    llm.eval(ids)
    got = np.array(llm.scores[:len(ids)], np.float32)
    want = z[f"r{i}"]
    agree += (got.argmax(1) == want.argmax(1)).sum()
    n += len(ids)
    err.append(np.linalg.norm(got - want) / np.linalg.norm(want))
    lg, lw = got - np.logaddexp.reduce(got, 1, keepdims=True), want - np.logaddexp.reduce(want, 1, keepdims=True)
    kls.append(float((np.exp(lw) * (lw - lg)).sum(1).mean()))
print(f"logits: top-1 agreement {agree/n:.5f} over {n} positions, relative error {np.mean(err):.2e}, KL {np.mean(kls):.2e}")
print({k: v for k, v in llm.metadata.items() if not k.startswith("tokenizer.ggml.tokens") and len(str(v)) < 200})
