"""Who may talk to whom: versions are compared before anything else."""

from __future__ import annotations

from pipeinfer_cpp.net.messages import PROTOCOL, Hello


def objection(hello: Hello, package: str, llama: str) -> str | None:
    """Why this peer cannot be worked with, in one sentence; None when it can."""
    pairs = [
        ("protocol", str(hello.protocol), str(PROTOCOL)),
        ("pipeinfer_cpp", hello.package, package),
        ("llama-cpp-python", hello.llama.partition("+")[0], llama.partition("+")[0]),
    ]
    for what, theirs, ours in pairs:
        if theirs != ours:
            return f"{what} {theirs} there, {ours} here: install the same version on both machines"
    return None
