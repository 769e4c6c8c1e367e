"""A trace as a story: who computed which run when, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import UserError

FATES = {
    "prompt": "#999999",
    "accepted": "#0072B2",
    "partly accepted": "#56B4E9",
    "dead, computed": "#E69F00",
    "aborted": "#D55E00",
    "cancelled in queue": "#CC79A7",
    "draft": "#009E73",
}
"""What became of a run in a span, there: each with a colour that colour-blind eyes tell apart."""
ORIGINS = {"draft": "#009E73", "sibling": "#CC79A7", "ngram": "#56B4E9", "target": "#000000"}


@dataclass(frozen=True)
class Span:
    """Seconds since the trace began. `fate`: see FATES."""

    began: float
    ended: float
    fate: str
    about: str


@dataclass
class Run:
    """What the coordinator said of a run."""

    kind: str
    pos: int
    rows: int
    sent: float
    turn: int
    cancelled: bool = False


@dataclass
class Timeline:
    """`tracks`: the draft worker, then the stages. `tokens`: (time, position, origin)."""

    tracks: dict[str, list[Span]]
    tokens: list[tuple[float, int, str]]

    @property
    def length(self) -> float:
        ends = [span.ended for spans in self.tracks.values() for span in spans]
        return max([*ends, *(t for t, _, _ in self.tokens)], default=0.0)

    def cut(self, begin: float, end: float) -> Timeline:
        """The part between two times."""
        tracks = {n: [s for s in spans if s.ended > begin and s.began < end] for n, spans in self.tracks.items()}
        return Timeline(tracks, [t for t in self.tokens if begin <= t[0] <= end])


def read_timeline(path: Path) -> Timeline:
    """Raises UserError where it is not a trace of `pipeinfer generate --trace`."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise UserError(f"{path} is not a trace: it is not JSON.") from None
    try:
        return _timeline(data["traceEvents"])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise UserError(f"{path} is not a trace of `pipeinfer generate --trace`.") from None


def _timeline(events: list[dict[str, Any]]) -> Timeline:
    names = {e["tid"]: str(e["args"]["name"]) for e in events if e["ph"] == "M"}
    if "coordinator" not in names.values():
        raise ValueError
    runs: dict[int, Run] = {}
    tokens: list[tuple[float, int, str, int]] = []
    turn = 0
    for event in sorted((e for e in events if e["ph"] == "i"), key=lambda e: e["ts"]):
        at, args = event["ts"] / 1e6, event["args"]
        word = event["name"].partition(" ")[0]
        if word == "dispatch":
            runs[args["run"]] = Run(args["kind"], args["pos"], args["rows"], at, turn)
            turn += args["kind"] == "end"
        elif word == "cancel":
            for run in args["runs"]:
                if run in runs:
                    runs[run].cancelled = True
        elif word == "token":
            tokens.append((at, args["pos"], args["origin"], turn))
    spans = [e for e in events if e["ph"] == "X"]
    final = {(turn, pos): (at, origin) for at, pos, origin, turn in tokens}
    tracks: dict[str, list[Span]] = {name: [] for name in names.values() if name != "coordinator"}
    for event in sorted(spans, key=lambda e: e["ts"]):
        began, args = event["ts"] / 1e6, event["args"]
        ended = began + event["dur"] / 1e6
        if "outcome" not in args:
            about = f"{event['name']}, confidence {args.get('prob', 0):.2f}"
            tracks[names[event["tid"]]].append(Span(began, ended, "draft", about))
        elif (run := runs.get(args["run"])) is not None and run.rows:
            about = f"run {args['run']}: {run.rows} row{'s' if run.rows > 1 else ''} from {run.pos}, {args['outcome']}"
            tracks[names[event["tid"]]].append(Span(began, ended, _fate(run, args["outcome"], final), about))
    return Timeline(tracks, [(at, pos, origin) for at, pos, origin, _ in tokens])


_DEAD = {"aborted": "aborted", "skipped": "cancelled in queue"}


def _fate(run: Run, outcome: str, final: dict[tuple[int, int], tuple[float, str]]) -> str:
    """`outcome`: what this stage did with the run, whatever others did."""
    if run.kind == "prefill":
        return "prompt"
    if run.cancelled:
        return _DEAD.get(outcome, "dead, computed")
    kept = 0
    for pos in range(run.pos, run.pos + run.rows):
        at, origin = final.get((run.turn, pos), (None, ""))
        # A row is right when its token was final already, or became so as the draft's.
        kept += (at is not None and at <= run.sent) or origin in ("draft", "sibling", "ngram") or pos == run.pos
    return "accepted" if kept >= run.rows else "partly accepted"
