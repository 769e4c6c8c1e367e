"""A generation as a Chrome trace (chrome://tracing, Perfetto): one track for the coordinator, the draft
and each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeinfer_cpp.system.files import appearing

COLORS = {"done": "good", "skipped": "grey", "aborted": "terrible"}


class Trace:
    """Times are seconds on the coordinator's monotonic clock, written as microseconds since the first event."""

    def __init__(self, n_stages: int) -> None:
        self._events: list[dict[str, Any]] = []
        self._tracks = ["coordinator", "draft", *(f"stage-{i}" for i in range(n_stages))]

    def span(self, track: str, name: str, began: float, ended: float, color: str = "", **args: Any) -> None:
        event = {"ph": "X", "name": name, "ts": began, "dur": max(ended - began, 1e-6), "track": track, "args": args}
        if color:
            event["cname"] = COLORS.get(color, color)
        self._events.append(event)

    def instant(self, track: str, name: str, at: float, **args: Any) -> None:
        self._events.append({"ph": "i", "s": "t", "name": name, "ts": at, "track": track, "args": args})

    def counter(self, name: str, at: float, value: float) -> None:
        self._events.append({"ph": "C", "name": name, "ts": at, "track": "coordinator", "args": {name: value}})

    def clear(self) -> None:
        self._events.clear()

    def events(self) -> list[dict[str, Any]]:
        """Everything recorded, in the trace event format."""
        start = min((e["ts"] for e in self._events), default=0.0)
        out: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": track}}
            for i, track in enumerate(self._tracks)
        ]
        for event in self._events:
            entry = dict(event, pid=1, tid=self._tracks.index(event["track"]), ts=1e6 * (event["ts"] - start))
            del entry["track"]
            if "dur" in entry:
                entry["dur"] = 1e6 * entry["dur"]
            out.append(entry)
        return out

    def write(self, path: Path) -> None:
        """Raises UserError where it cannot be written."""
        with appearing(path, durable=False) as file:
            file.write(json.dumps({"traceEvents": self.events(), "displayTimeUnit": "ms"}).encode())
