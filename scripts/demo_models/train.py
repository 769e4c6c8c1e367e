"""Train one of the demo models: the target, a draft distilled from it, or a weak draft.

    python train.py target --data DATA --out OUT --seconds 268 --dropout 0.1
    python train.py draft  --data DATA --out OUT --seconds 120 --lr 2.5e-3 --teacher OUT/target.pt
    python train.py weak   --data DATA --out OUT --seconds 28 --lr 4e-3

DATA is what build_data.py wrote. The schedule follows the clock: --seconds is the training time after compilation,
and those above are what an H200 needs. Writes OUT/NAME.pt, OUT/NAME.log and, quantised to Q8_0 in ggml's block layout,
OUT/NAME.q8.000, .001, ... On a CPU only a trial makes sense: --preset tiny --rows 4 --ctx 128 --seconds 20.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from needs import need, need_files
from presets import PRESETS, Config


def lr_scale(progress: float, warm: float = 0.02) -> float:
    """Warm-up, constant to 45%, then linear down to 2%."""
    if progress < warm:
        return min(1.0, progress / warm + 0.01)
    return 1.0 if progress < 0.45 else max(0.02, (1 - progress) / 0.55)


class Log:
    """Lines on the screen and in a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def evaluate(model: Any, data: Path, ctx: int, device: str, teacher: Any) -> dict[str, list[float]]:
    """Held-out loss in nats per token (and top-1 agreement with the teacher) by source."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    flat = np.load(data / "heldout.npy")
    model.eval()
    result = {}
    for k, (first, end, _) in json.loads((data / "heldout_tokens.json").read_text()).items():
        rows = min(24, (end - first - 1) // ctx)
        if rows < 1:
            continue
        ids = torch.from_numpy(flat[first : first + rows * ctx + 1].astype(np.int64)).to(device)
        given, wanted = ids[:-1].view(rows, ctx), ids[1:].view(rows, ctx)
        with torch.no_grad():
            logits = model(given).float()
            result[k] = [round(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item(), 4)]
            if teacher is not None:
                same = logits.argmax(-1) == teacher(given).argmax(-1)
                result[k].append(round(same.float().mean().item(), 4))
    model.train()
    return result


def show(model: Any, data: Path, device: str, say: Log) -> None:
    """Some greedy continuations."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    model.eval()
    prompts = ["Once upon a time, there was a little girl named Lily.", "The old man looked out of the window and"]
    for question in ("Hello!", "Why is the sky blue?", "Write a poem about snow."):
        prompts.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], device=device)
        n_new = min(90, model.c.n_ctx - ids.shape[1])
        new = itertools.takewhile(lambda t: t not in (0, 2), model.generate(ids, n_new)[0].tolist())
        say(f"--- {prompt!r}\n{tokenizer.decode(list(new), skip_special_tokens=False)}")


def losses(model: Any, teacher: Any) -> Any:
    """(ids, next ids) -> loss: cross-entropy, or with a teacher mostly the divergence from it."""
    import torch
    import torch.nn.functional as F

    def loss(given: Any, wanted: Any) -> Any:
        logits = model(given).float().flatten(0, 1)
        if teacher is None:
            return F.cross_entropy(logits, wanted.flatten())
        with torch.no_grad():
            theirs = teacher(given).float().flatten(0, 1)
            chances, best = F.softmax(theirs, -1), theirs.argmax(-1)
        ours = F.log_softmax(logits, -1)
        divergence = -(chances * ours).sum(-1).mean()
        return 0.8 * divergence + 0.1 * F.nll_loss(ours, wanted.flatten()) + 0.1 * F.nll_loss(ours, best)

    return loss


def train(a: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from batches import fill
    from model import Llama
    from q8 import dump_q8, load_q8

    begin = time.time()
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    a.out.mkdir(parents=True, exist_ok=True)
    say = Log(a.out / f"{a.name}.log")
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    teacher = None
    if a.teacher:
        saved = torch.load(a.teacher, map_location=device, weights_only=True)
        teacher = Llama(Config(**{**saved["config"], "dropout": 0.0}), dtype).to(device).eval()
        teacher.load_state_dict(saved["model"])
        teacher.requires_grad_(False)

    spawn = multiprocessing.get_context("spawn")
    progress, queue = spawn.Value("d", 0.0), spawn.Queue(maxsize=24)
    mixes = ["tune", "tune"] if a.init_q8 else ["main", "chat"]
    fillers = []
    for i in range(a.workers):
        args = (queue, progress, str(a.data), a.rows, a.ctx, a.seed, i, a.workers, a.chat_from, mixes)
        fillers.append(spawn.Process(target=fill, args=args, daemon=True))
        fillers[-1].start()

    config = replace(PRESETS[a.preset or a.name], dropout=a.dropout)
    model = Llama(config, dtype)
    if a.init_q8:
        model.load(load_q8(config, a.init_q8))
    model = model.to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": a.wd}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), eps=1e-8, fused=cuda)
    loss_of = torch.compile(losses(model, teacher)) if cuda else losses(model, teacher)
    n_parameters = sum(p.numel() for p in model.parameters())
    say(f"{a.name}: {n_parameters / 1e6:.2f}M parameters, {asdict(config)}; {vars(a)}; {time.time() - begin:.1f}s")

    start, tokens, mean = None, 0, None
    for step in itertools.count(1):
        batch = queue.get(timeout=600)
        ids = torch.from_numpy(batch.astype(np.int64))
        ids = ids.pin_memory().to(device, non_blocking=True) if cuda else ids
        loss = loss_of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = lr_scale(progress.value)
        for group in optimizer.param_groups:
            group["lr"] = a.lr * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.shape[0] * a.ctx
        mean = loss.detach() if mean is None else mean.lerp(loss.detach(), 0.03)
        if cuda and (step == 4 or step % 20 == 0):
            torch.cuda.synchronize()
        if step == 4:  # compilation is over
            start, tokens = time.time(), 0
            say(f"compiled, {start - begin:.1f}s after the start")
        if start is None:
            continue
        if step % 20 == 0 or not cuda:
            progress.value = (time.time() - start) / a.seconds
        if step % 100 == 0:
            rate = tokens / (time.time() - start)
            say(
                f"step {step} progress {progress.value:.3f} loss {mean.item():.4f} lr {scale:.3f} "
                f"{rate / 1e3:.0f}k tok/s "
                f"{rate * config.flops_per_token(a.ctx) / 1e12:.1f} TFLOP/s tokens {tokens / 1e6:.0f}M"
            )
        if progress.value >= 1:
            break
    for process in fillers:
        process.terminate()
    say(f"trained {step} steps, {tokens / 1e6:.1f}M tokens; loss {mean.item():.4f}")
    dump_q8((p.detach().float().cpu().numpy() for _, p in model.gguf_tensors()), str(a.out / f"{a.name}.q8"))
    torch.save({"config": asdict(config), "model": model.state_dict()}, a.out / f"{a.name}.pt")
    say("held out " + json.dumps(evaluate(model, a.data, a.ctx, device, teacher)))
    show(model, a.data, device, say)
    say(f"done, {time.time() - begin:.1f}s")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("name", choices=sorted(PRESETS), help="which model, and the name of its files")
    ap.add_argument("--preset", choices=sorted(PRESETS), help="another size than NAME's")
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--seconds", type=float, default=60)
    ap.add_argument("--rows", type=int, default=64, help="rows of a step")
    ap.add_argument("--ctx", type=int, default=1024, help="tokens of a row")
    ap.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    ap.add_argument("--wd", type=float, default=0.1, help="weight decay of the matrices")
    ap.add_argument("--dropout", type=float, default=0.0)
    ap.add_argument("--chat-from", type=float, default=0.7, help="share of the time before the chat mix")
    ap.add_argument("--teacher", type=Path, help="distil from this NAME.pt")
    ap.add_argument("--workers", type=int, default=6, help="processes that fill batches")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--init-q8", help="tune these Q8_0 pieces (OUT/NAME.q8) with the tuning mix")
    a = ap.parse_args()
    need("torch", "numpy", "tokenizers")
    need_files(*(a.data / name for name in ("tokenizer.json", "train.npy", "train_tokens.json", "heldout.npy")))
    train(a)


if __name__ == "__main__":
    main()
