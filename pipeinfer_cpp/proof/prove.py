"""The proof before the first cut, made in a process of its own and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import SLICER_VERSION, SUPPORTED, LayerRange, Source, text_of
from pipeinfer_cpp.gguf.architectures import rules_for
from pipeinfer_cpp.gguf.code_defaults import rounding_note
from pipeinfer_cpp.gguf.layers import Part
from pipeinfer_cpp.gguf.plan_keys import PER_LAYER_OF_ALL
from pipeinfer_cpp.llama.library import library_build
from pipeinfer_cpp.proof.child import OWN, ended_from_outside, run
from pipeinfer_cpp.system.files import appearing, cache_folder
from pipeinfer_cpp.system.own_folder import OwnFolder

VERSION = 1
"""Goes up whenever a proof would be made otherwise."""

_TIMEOUT = 120.0
_ROOM = 1 << 30
_ENDED = "llama.cpp ended with"
_FAULTS = tuple(f"{_ENDED} {number.name}:" for number in OWN)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a proof.

    `outcome`: "equal" (bit for bit), "different", or "untested": llama.cpp makes no small model of these keys.
    `detail`: what differed, or its words. `note`: what the user should know of a model that is cut all the same.
    """

    outcome: str
    detail: str = ""
    note: str = ""


def prove(source: Source, ranges: Sequence[LayerRange], *, cache_dir: str | os.PathLike[str] | None = None) -> Proof:
    """See whether the slices `ranges` of `source` compute what the whole does, for these keys and this split.

    Takes about a second, or nothing when the same was proved before. Raises UserError, with what differed, when they
    do not, where llama.cpp ends the process of the small model before it is cut (another process than this one), and
    for an architecture that no test covers where nothing can be seen. An answer that cannot be kept is an answer.
    """
    if len(ranges) == 1:
        return Proof(outcome="equal")
    rules = rules_for(source)
    note = rounding_note(Part(source, rules, first, end) for first, end in ranges)
    record = f"{_signature(source, ranges)}.json"
    try:
        proof = msgspec.json.decode((cache_folder("proofs", cache_dir) / record).read_bytes(), type=Proof)
    except (OSError, UserError, msgspec.MsgspecError):
        proof = _ask(source, ranges)
        if proof.outcome == "untested" and source.n_layers_beyond:
            proof = _ask(source, ranges, "--trunk")  # of some architectures it makes none with layers behind the trunk
        if proof.outcome == "equal" or proof.detail.startswith(_FAULTS):
            _keep(proof, record, cache_dir)
    if proof.outcome == "different":
        raise UserError(
            f"{source.path.name} cannot be cut at {text_of(ranges)}: with random weights of its architecture "
            f"({source.architecture}) the slices do not compute what the whole model does ({proof.detail}). "
            "Use another split, or one stage."
        )
    if proof.outcome == "untested":
        if source.architecture not in SUPPORTED:
            raise UserError(
                f"{source.path.name} has architecture {source.architecture!r}, which no test covers, and no small "
                f"model of its kind could be made to test the split ({proof.detail}). Use one stage."
            )
        if proof.detail.startswith(_FAULTS):
            raise UserError(
                f"{source.path.name} cannot be cut: llama.cpp crashes on a small model with the same metadata, even "
                f"uncut ({proof.detail}). Use one stage, if llama.cpp runs the file at all."
            )
        untested = f"No small model like {source.path.name} could be made to test this split ({proof.detail}); "
        note = f"{untested}other models of architecture {source.architecture} are tested. {note}".strip()
    return msgspec.structs.replace(proof, note=note)


def _keep(proof: Proof, record: str, cache_dir: str | os.PathLike[str] | None) -> None:
    with contextlib.suppress(OSError, UserError), appearing(cache_folder("proofs", cache_dir) / record) as out:
        out.write(msgspec.json.encode(proof))


def _signature(source: Source, ranges: Sequence[LayerRange]) -> str:
    """64 hex digits that differ wherever a proof could."""
    digest = hashlib.sha256(f"{VERSION}|{SLICER_VERSION}|{library_build()}|{text_of(ranges)}".encode())
    for key in source.keys.values():
        if key.name.startswith(f"{source.architecture}.") or key.name in PER_LAYER_OF_ALL:
            digest.update(key.name.encode() + b"\0" + key.raw())
    for name in sorted(source.tensors):
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()


def _ask(source: Source, ranges: Sequence[LayerRange], *flags: str) -> Proof:
    folder = OwnFolder("pipeinfer-proof-", _memory())
    try:
        return _ask_in(str(folder.path), source, ranges, *flags)
    finally:
        folder.remove()


def _memory() -> Path:
    """A folder in memory that is large enough, else the usual one."""
    folder = Path("/dev/shm")  # in containers it often holds no more than 64 MB
    roomy = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > _ROOM
    return folder if roomy else Path(tempfile.gettempdir())


def _ask_in(folder: str, source: Source, ranges: Sequence[LayerRange], *flags: str) -> Proof:
    command = [sys.executable, "-m", "pipeinfer_cpp.proof", str(source.path), text_of(ranges), folder, *flags]
    try:
        done = run(command, _TIMEOUT)
    except subprocess.TimeoutExpired:
        return Proof(outcome="untested", detail=f"it took more than {_TIMEOUT:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line]
    try:
        proof = msgspec.json.decode(lines[-1], type=Proof)
    except (IndexError, msgspec.MsgspecError):
        proof = Proof(outcome="untested", detail="it said nothing")
    if done.returncode == 0:
        return proof
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = said[-1].rpartition("/")[2] if said else "it said nothing"
    if (by := ended_from_outside(done)) is not None:
        return Proof(outcome="untested", detail=f"its process was ended by {by}")
    if done.returncode > 0:
        return Proof(outcome="untested", detail=f"its process ended with code {done.returncode}: {last}")
    how = signal.Signals(-done.returncode).name
    return Proof(outcome=proof.outcome, detail=f"{_ENDED} {how}: {last}")
