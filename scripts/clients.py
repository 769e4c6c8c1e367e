"""How a server fares as clients join: total tokens per second, and each one's share.

    python scripts/clients.py [--emulate gigabit] [--stages 4] [--clients 1,2,4,8,16] [--tokens 64]

Starts `pipeinfer serve` with the demo pair on an emulated cluster (so the figures are emulated ones), and asks it from
so many threads at once. Before that, one client alone with `--mode off`, and `generate` alone.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time

import httpx

PROMPTS = ["a fox", "the sea", "a brave girl", "an old clock", "a red ball", "two friends", "a storm", "the moon"]


def serve(options: list[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    found = re.search(r"http://\S+:\d+", server.stdout.readline())
    if found is None:
        sys.exit("the server does not start")
    return server, found[0]


def ask(address: str, i: int, n_tokens: int, times: list[float], texts: dict[int, str]) -> None:
    """One client: the times of its chunks."""
    words = PROMPTS[i % len(PROMPTS)]
    body = {
        "messages": [{"role": "user", "content": f"Tell me a long story about {words}."}],
        "max_tokens": n_tokens,
        "temperature": 0.8,
        "seed": i,
        "stream": True,
        "logprobs": True,
    }
    text = ""
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0].get("logprobs"):
                    times.append(time.monotonic())
                    text += choices[0]["delta"]["content"]
    texts[i] = text


def measure(address: str, n: int, n_tokens: int) -> tuple[float, float, dict[int, str]]:
    """Total tokens per second; the slowest client's time a token by the mean; the texts. Drafts are right more often
    in some texts than in others, so all questions are asked, `n` of them at once."""
    texts: dict[int, str] = {}
    tokens, seconds, worst = 0, 0.0, 0.0
    for first in range(0, max(n, len(PROMPTS)), n):
        times: list[list[float]] = [[] for _ in range(n)]
        threads = [
            threading.Thread(target=ask, args=(address, first + i, n_tokens, times[i], texts)) for i in range(n)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        latencies = [(t[-1] - t[0]) / (len(t) - 1) for t in times]
        tokens += sum(map(len, times)) - n
        seconds += max(t[-1] for t in times) - min(t[0] for t in times)
        worst = max(worst, max(latencies) / (sum(latencies) / n))
    return tokens / seconds, worst, texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--emulate", default="gigabit")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    options = ["--emulate", args.emulate, "--stages", str(args.stages), "--ctx-size", "256"]
    tokens = seconds = 0.0
    for i, words in enumerate(PROMPTS):
        asked = ["-n", str(args.tokens), "--seed", str(i), "--json", f"Tell me a long story about {words}."]
        command = [sys.executable, "-m", "pipeinfer_cpp", "generate", *options, *asked]
        said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        tokens += said["n_generated"] - 1
        seconds += (said["n_generated"] - 1) / said["tokens_per_s"]
    alone = tokens / seconds
    print(f"Emulated: {args.emulate}, {args.stages} nodes, {args.tokens} tokens each, {len(PROMPTS)} questions.")
    print(f"generate alone: {alone:.2f} tokens/s", flush=True)
    speeds: dict[str, list[float]] = {}
    texts: dict[int, str] = {}
    for mode in ("off", "async"):
        server, address = serve([*options, "--slots", str(max(clients)), "--mode", mode])
        try:
            speeds[mode] = []
            for n in clients:
                speed, share, said = measure(address, n, args.tokens)
                same = all(texts.setdefault(i, text) == text for i, text in said.items())
                speeds[mode].append(speed)
                over = speed / speeds["off"][0]
                print(
                    f"{mode:5} {n:3} clients: {speed:7.2f} tokens/s, {over:5.2f} x one client in off; "
                    f"slowest {share:.2f} x the mean; {'the same texts' if same else 'OTHER TEXTS'}",
                    flush=True,
                )
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    print(f"one client by generate alone: {speeds['async'][0] / alone:.3f}")


if __name__ == "__main__":
    main()
