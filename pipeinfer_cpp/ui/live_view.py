"""A pipeline at work, on a terminal: what `pipeinfer top` shows, and the line of `/top` in a chat."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.cluster.live import Live, RunNow, SlotNow, StageNow
from pipeinfer_cpp.ui.consoles import escaped

_STEPS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def spark(values: Sequence[float | None], highest: float = 0.0) -> str:
    """One character a value; a dot where there is none. The highest character is `highest`, or the greatest value."""
    top = highest or max((v for v in values if v is not None), default=0.0)

    def one(value: float | None) -> str:
        if value is None or top <= 0:
            return "·"
        return _STEPS[min(int(max(value, 0.0) / top * len(_STEPS)), len(_STEPS) - 1)]

    return "".join(map(one, values))


def bar(share: float, width: int) -> str:
    """So much of `width` characters is full, to an eighth of one."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_PARTS[part] if part else "")).ljust(width)


def strip(now: Live) -> str:
    """All in one line."""
    loads = " ".join(f"{100 * stage.load:.0f}%" for stage in now.stages)
    parts = [f"stages {loads}", f"{now.runs_in_flight} in flight"]
    if now.draft is not None:
        seen = [share for share in now.history.acceptance if share is not None][-12:]
        parts.append(f"acceptance {_share(now.acceptance)} {spark(seen, 1.0)}".rstrip())
    return " · ".join([*parts, f"{now.tokens_per_s:.1f} tokens/s"])


def frame(now: Live, width: int, height: int = 40, note: str = "") -> RenderableType:
    """A whole screen, `width` characters wide and of at most `height` lines. `note`: what is wrong now."""
    draft = f"draft {now.draft}" if now.draft is not None else "no draft"
    about = [now.model, draft, now.mode, "exact" if now.exact else "not exact", f"context {now.context}"]
    head = Text(escaped(" · ".join([*about, f"up {_ago(now.uptime_s)}"])), "bold", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [head, Text(note, "yellow") if note else Text("")]
    n = max(10, min(len(now.history.tokens), width // 2 - 4 if width >= 90 else width - 2))
    charts = [
        _chart("tokens/s", f"{now.tokens_per_s:.1f}", spark(now.history.tokens[-n:]), "cyan"),
        _chart("acceptance", _share(now.acceptance), spark(now.history.acceptance[-n:], 1.0), "green"),
    ]
    parts += [Columns(charts, padding=(0, 3)), Text(""), _stages(now, width), Text(""), _slots(now.slots)]
    room = height - (8 + (3 if width < 90 else 0) + len(now.stages) + len(now.slots) + 4)
    if now.events and room > 0:
        parts += [Text(""), *(_event(event.at, event.text) for event in now.events[-min(room, 8) :])]
    return Group(*parts)


def _chart(name: str, value: str, line: str, colour: str) -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, "bold"), ("\n" + line, colour), no_wrap=True)


def _stages(now: Live, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    size = 20 if width >= 90 else 8
    flight = f"{now.runs_in_flight} in flight"
    if now.runs_speculative:
        flight += f", {now.runs_speculative} of them guesses"
    for name in ("stage", "layers", "load", "queue", f"run ({flight})", "sends"):
        table.add_column(name, justify="right" if name in ("queue", "sends") else "left", no_wrap=True)
    if width >= 90:
        table.add_column("memory", justify="right", no_wrap=True)
    for stage in now.stages:
        cells: list[Text | str] = [
            Text.assemble(str(stage.index), (f" {escaped(stage.address)}" if stage.address else "", "dim")),
            f"{stage.layers[0]}-{stage.layers[1] - 1}",
            Text.assemble((bar(stage.load, size), "cyan"), f" {100 * stage.load:3.0f}%"),
            str(stage.queue),
            _run(stage, stage.run),
            _rate(stage.bytes_out_per_s),
        ]
        if width >= 90:
            cells.append("-" if stage.memory_mb is None else f"{stage.memory_mb:.0f} MB")
        table.add_row(*cells)
    return table


def _run(stage: StageNow, run: RunNow | None) -> Text:
    if stage.state != "ok":
        return Text("does not answer", "yellow")
    if run is None:
        return Text("-", "dim")
    kind = "guess" if run.speculative else run.kind
    rows = f", {run.rows} row{'s' if run.rows != 1 else ''}" if run.rows else ""
    return Text(f"{run.id} {kind}{rows}", "" if run.speculative else "bold")


def _slots(slots: Sequence[SlotNow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("slot", "does", "prompt", "generated", "acceptance", "cached"):
        table.add_column(name, justify="left" if name in ("slot", "does") else "right", no_wrap=True)
    for slot in slots:
        if slot.phase == "idle":
            table.add_row(str(slot.slot), Text("idle", "dim"), "-", "-", "-", str(slot.cached))
            continue
        reads = f"reads, {slot.read} so far"
        does = {"prefill": reads, "decode": "generates", "drain": "ends"}.get(slot.phase, slot.phase)
        figures = [str(slot.prompt_tokens), str(slot.generated), _share(slot.acceptance), "-"]
        table.add_row(str(slot.slot), Text(does, "bold"), *figures)
    return table


def _event(at: float, text: str) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(at))
    return Text.assemble((f"{when} ", "dim"), escaped(text), no_wrap=True, overflow="ellipsis")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def _rate(per_second: float) -> str:
    return f"{per_second / 1e6:.1f} MB/s" if per_second >= 1e6 else f"{per_second / 1e3:.1f} kB/s"


def _ago(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
