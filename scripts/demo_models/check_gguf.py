"""Compare a GGUF, as llama.cpp computes it, with what make_ref.py wrote: tokenizer, logits.

python check_gguf.py demo-target-q8_0.gguf --ref REF
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from needs import need, need_files


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--ref", required=True, help="REF, without an ending")
    a = ap.parse_args()
    need("llama_cpp", "numpy")
    need_files(a.model, f"{a.ref}.json", f"{a.ref}.npz")
    import numpy as np
    from llama_cpp import Llama

    llm = Llama(a.model, n_ctx=1024, logits_all=True, verbose=False, n_threads=2)
    ref = json.loads(Path(f"{a.ref}.json").read_text())
    different = sum(llm.tokenize(x["text"].encode(), add_bos=False, special=True) != x["ids"] for x in ref["texts"])
    print("tokenizer:", len(ref["texts"]), "texts,", different, "different")
    wanted_logits = np.load(f"{a.ref}.npz")
    same = n = 0
    errors, divergences = [], []
    for i, ids in enumerate(ref["rows"]):
        llm.reset()
        llm.eval(ids)
        got, want = np.array(llm.scores[: len(ids)], np.float32), wanted_logits[f"r{i}"]
        same += int((got.argmax(1) == want.argmax(1)).sum())
        n += len(ids)
        errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
        log_got = got - np.logaddexp.reduce(got, 1, keepdims=True)
        log_want = want - np.logaddexp.reduce(want, 1, keepdims=True)
        divergences.append(float((np.exp(log_want) * (log_want - log_got)).sum(1).mean()))
    print(
        f"logits: top-1 agreement {same / n:.5f} over {n} positions, "
        f"relative error {np.mean(errors):.2e}, KL {np.mean(divergences):.2e}"
    )


if __name__ == "__main__":
    main()
