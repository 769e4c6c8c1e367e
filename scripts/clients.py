"""How a server fares as clients join: total tokens per second, and each one's share.

    python scripts/clients.py [--emulate gigabit] [--stages 4] [--clients 1,2,4,8,16] [--tokens 64] [--limit 460]

Starts `pipeinfer serve` with the demo pair on an emulated cluster (so the figures are emulated ones), and asks it from
so many threads at once: without speculation, then with it. At the end one question after another by `generate` alone.
Each figure is printed when it is there. After `--limit` seconds (or Ctrl-C) what is under way is cut short and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPTS = ["a fox", "the sea", "a brave girl", "an old clock", "a red ball", "two friends", "a storm", "the moon"]
MODES = ("off", "async")


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[str]:
    """`pipeinfer serve` with these options. Gives its address."""
    words = [sys.executable, "-m", "pipeinfer_cpp", "serve", "--port", "0", *command]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+:\d+", server.stdout.readline())
        if found is None:
            sys.exit("the server does not start")
        yield found[0]
    finally:
        end(server)


def end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()


@dataclass
class Client:
    """One stream of tokens. Times in seconds of the monotonic clock."""

    began: float = 0.0
    times: list[float] = field(default_factory=list)
    """Of each token's arrival."""
    text: str = ""
    whole: bool = False
    """It came to its end."""

    def ask(self, address: str, path: str, body: dict[str, Any], until: float) -> None:
        """Read until it ends, or the time is over. What fails is no more than not whole."""
        self.began = time.monotonic()
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", address + path, json={**body, "stream": True}, timeout=120) as answer,
        ):
            for line in answer.iter_lines():
                if time.monotonic() > until:
                    return
                if line == "data: [DONE]":
                    self.whole = True
                elif line.startswith("data: {"):
                    self._take(json.loads(line[6:]).get("choices"))

    def _take(self, choices: list[dict[str, Any]] | None) -> None:
        for choice in choices or ():
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text or choice.get("logprobs"):
                self.times.append(time.monotonic())
                self.text += text or ""

    @property
    def latency(self) -> float:
        """Seconds a token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def at_once(address: str, path: str, bodies: Sequence[dict[str, Any]], until: float) -> list[Client]:
    """A client for each of these."""
    clients = [Client() for _ in bodies]
    threads = [
        threading.Thread(target=client.ask, args=(address, path, body, until), daemon=True)
        for client, body in zip(clients, bodies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients


def chat(i: int, n_tokens: int) -> dict[str, Any]:
    """The i-th question."""
    question = f"Tell me a long story about {PROMPTS[i % len(PROMPTS)]}."
    asked = {"messages": [{"role": "user", "content": question}], "max_tokens": n_tokens}
    return {**asked, "temperature": 0.8, "seed": i, "logprobs": True}


def measure(address: str, n: int, n_tokens: int, until: float) -> tuple[float, float, dict[int, str], bool]:
    """Total tokens per second; the slowest client's time a token by the mean; the texts that came to their end;
    whether all did. Drafts are right more often in some texts than in others, so all questions are asked, `n` of them
    at once."""
    texts: dict[int, str] = {}
    tokens, seconds, worst, whole = 0, 0.0, 0.0, True
    for first in range(0, max(n, len(PROMPTS)), n):
        if time.monotonic() > until:
            return tokens / seconds if seconds else 0.0, worst, texts, False
        bodies = [chat(first + i, n_tokens) for i in range(n)]
        clients = at_once(address, "/v1/chat/completions", bodies, until)
        texts.update({first + i: client.text for i, client in enumerate(clients) if client.whole})
        whole = whole and all(client.whole for client in clients)
        heard = [client for client in clients if len(client.times) > 1]
        if heard:
            latencies = [client.latency for client in heard]
            tokens += sum(len(client.times) - 1 for client in heard)
            seconds += max(c.times[-1] for c in heard) - min(c.times[0] for c in heard)
            worst = max(worst, max(latencies) / (sum(latencies) / len(heard)))
    return tokens / seconds if seconds else 0.0, worst, texts, whole


def alone(options: Sequence[str], n_tokens: int, until: float) -> tuple[float, int]:
    """Tokens per second of `generate`, and how many questions were asked in the time."""
    tokens, seconds, asked = 0.0, 0.0, 0
    for i, words in enumerate(PROMPTS):
        if time.monotonic() > until:
            break
        command = [sys.executable, "-m", "pipeinfer_cpp", "generate", *options, "-n", str(n_tokens)]
        command += ["--seed", str(i), "--json", f"Tell me a long story about {words}."]
        said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        tokens += said["n_generated"] - 1
        seconds += (said["n_generated"] - 1) / said["tokens_per_s"]
        asked = i + 1
    return (tokens / seconds if seconds else 0.0), asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulate", default="gigabit")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--limit", type=float, default=460.0, help="seconds for all")
    args = parser.parse_args()
    until = time.monotonic() + args.limit
    clients = [int(n) for n in args.clients.split(",")]
    options = ["--emulate", args.emulate, "--stages", str(args.stages), "--ctx-size", "256"]
    print(f"Emulated: {args.emulate}, {args.stages} nodes, {args.tokens} tokens each, {len(PROMPTS)} questions.")
    speeds: dict[str, dict[int, float]] = {mode: {} for mode in MODES}
    texts: dict[int, str] = {}
    with contextlib.suppress(KeyboardInterrupt):
        for mode in MODES:
            with running([*options, "--slots", str(max(clients)), "--mode", mode]) as address:
                for n in clients:
                    if time.monotonic() > until:
                        break
                    speed, share, said, whole = measure(address, n, args.tokens, until)
                    same = all(texts.setdefault(i, text) == text for i, text in said.items())
                    if whole:
                        speeds[mode][n] = speed
                    base = next(iter(speeds["off"].values()), 0.0)
                    print(
                        f"{mode:5} {n:3} clients: {speed:7.2f} tokens/s, "
                        f"{speed / base if base else 0.0:5.2f} x {clients[0]} in off; slowest {share:.2f} x the mean; "
                        f"{'the same texts' if same else 'OTHER TEXTS'}{'' if whole else '; CUT SHORT'}",
                        flush=True,
                    )
        speed, asked = alone(options, args.tokens, until)
        if asked:
            print(f"generate alone: {speed:7.2f} tokens/s of {asked} questions", flush=True)
        if asked == len(PROMPTS) and 1 in speeds["async"]:
            print(f"one client by generate alone: {speeds['async'][1] / speed:.3f}")
    for mode, found in ((mode, found) for mode, found in speeds.items() if found):
        falls = [n for before, n in zip(found, list(found)[1:], strict=False) if found[n] < found[before]]
        verdict = f"falls at {', '.join(map(str, falls))} clients" if falls else "never falls"
        print(f"{mode}: {verdict} ({', '.join(map(str, found))} measured)")


if __name__ == "__main__":
    main()
