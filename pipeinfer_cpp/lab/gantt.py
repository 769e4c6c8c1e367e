"""A timeline as a picture: PNG, SVG or PDF with matplotlib, or a page that needs nothing."""

from __future__ import annotations

import html
import json
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.plots import figure
from pipeinfer_cpp.lab.timeline import FATES, ORIGINS, Timeline

PICTURES = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Before the work: can this be written? Raises UserError."""
    if path.suffix not in (*PICTURES, ".html"):
        raise UserError(f"{path}: the name must end in .png, .svg, .pdf or .html.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: that folder does not exist.")
    if path.suffix in PICTURES:
        figure()


def draw(timeline: Timeline, path: Path, width: float = 14.0) -> None:
    """Write the picture that the path's ending asks for. `width` in inches."""
    try:
        if path.suffix == ".html":
            path.write_text(page(timeline, path.stem), "utf-8")
        else:
            _picture(timeline, path, width)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def _picture(timeline: Timeline, path: Path, width: float) -> None:
    from matplotlib.patches import Patch

    names = [*timeline.tracks, "tokens"]
    fig, axes = figure(width, 1.2 + 0.5 * len(names))
    for row, spans in enumerate(timeline.tracks.values()):
        for fate, colour in FATES.items():
            bars = [(s.began, max(s.ended - s.began, 0.0002)) for s in spans if s.fate == fate]
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolor=colour, edgecolor="white", linewidth=0.3)
    last = len(names) - 1
    for origin, colour in ORIGINS.items():
        times = [at for at, _, o in timeline.tokens if o == origin]
        axes.vlines(times, last - 0.4, last + 0.4, color=colour, linewidth=1.2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.margins(x=0.005)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [Patch(color=colour, label=fate) for fate, colour in FATES.items()]
    handles += [Patch(color=ORIGINS["target"], label="token: the target's own")]
    axes.legend(
        handles=handles, ncols=len(handles), frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0)
    )
    fig.savefig(path, dpi=130)


def page(timeline: Timeline, title: str) -> str:
    """HTML that draws itself: the wheel zooms, dragging moves, hovering tells."""
    data = {
        "tracks": {n: [[s.began, s.ended, s.fate, s.about] for s in spans] for n, spans in timeline.tracks.items()},
        "tokens": timeline.tokens,
        "fates": FATES,
        "origins": ORIGINS,
        "length": timeline.length,
    }
    text = json.dumps(data).replace("</", "<\\/")
    return _PAGE.replace("TITLE", html.escape(title)).replace("DATA", text)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title><style>
body { font: 13px sans-serif; margin: 16px; color: #222 } canvas { width: 100%; cursor: grab; display: block }
#about { height: 1.4em; margin: 6px 0 } .key { display: inline-block; margin-right: 14px }
.key i { display: inline-block; width: 11px; height: 11px; margin-right: 4px; vertical-align: -1px }
</style></head><body><div id="keys"></div><div id="about">The wheel zooms, dragging moves, hovering tells.</div>
<canvas id="c"></canvas><script>
const data = DATA, row = 34, left = 84, names = [...Object.keys(data.tracks), "tokens"];
const canvas = document.getElementById("c"), ctx = canvas.getContext("2d"), about = document.getElementById("about");
let from = 0, to = data.length * 1.01 || 1, drag = null;
document.getElementById("keys").innerHTML = Object.entries(data.fates).map(([name, colour]) =>
  `<span class="key"><i style="background:${colour}"></i>${name}</span>`).join("") +
  `<span class="key"><i style="background:#000"></i>token: the target's own</span>`;
const x = t => left + (t - from) / (to - from) * (canvas.clientWidth - left - 8);
const time = px => from + (px - left) / (canvas.clientWidth - left - 8) * (to - from);
function draw() {
  const w = canvas.clientWidth, h = names.length * row + 26, d = devicePixelRatio || 1;
  canvas.width = w * d; canvas.height = h * d; canvas.style.height = h + "px"; ctx.setTransform(d, 0, 0, d, 0, 0);
  ctx.font = "12px sans-serif"; ctx.textBaseline = "middle";
  names.forEach((name, i) => {
    ctx.fillStyle = "#222"; ctx.fillText(name, 4, i * row + row / 2);
    ctx.fillStyle = "#f4f4f4"; ctx.fillRect(left, i * row + 3, w - left - 8, row - 6);
    ctx.save(); ctx.beginPath(); ctx.rect(left, 0, w - left - 8, h); ctx.clip();
    for (const [a, b, fate] of data.tracks[name] || []) if (b > from && a < to) {
      ctx.fillStyle = data.fates[fate]; ctx.fillRect(x(a), i * row + 3, Math.max(x(b) - x(a) - 0.4, 0.8), row - 6);
    }
    if (name === "tokens") for (const [t, , origin] of data.tokens) {
      ctx.fillStyle = data.origins[origin] || "#000"; ctx.fillRect(x(t), i * row + 3, 1.5, row - 6);
    }
    ctx.restore();
  });
  const step = 10 ** Math.floor(Math.log10((to - from) / 4)); ctx.fillStyle = "#666";
  for (let t = Math.ceil(from / step) * step; t < to; t += step)
    ctx.fillText((t * 1000).toFixed(step < 0.001 ? 2 : 0) + " ms", x(t), names.length * row + 12);
}
canvas.onwheel = e => { e.preventDefault(); const t = time(e.offsetX), f = e.deltaY > 0 ? 1.25 : 0.8;
  from = t - (t - from) * f; to = t + (to - t) * f; draw(); };
canvas.onmousedown = e => drag = [e.offsetX, from, to]; window.onmouseup = () => drag = null; window.onresize = draw;
canvas.onmousemove = e => {
  if (drag) { const s = (drag[0] - e.offsetX) / (canvas.clientWidth - left - 8) * (drag[2] - drag[1]);
    from = drag[1] + s; to = drag[2] + s; return draw(); }
  const name = names[Math.floor(e.offsetY / row)], t = time(e.offsetX), near = (to - from) / 300;
  const span = (data.tracks[name] || []).find(([a, b]) => a - near < t && t < b + near);
  const token = name === "tokens" && data.tokens.find(([at]) => Math.abs(at - t) < near);
  about.textContent = span ? `${span[3]} (${span[2]}), ${((span[1] - span[0]) * 1000).toFixed(2)} ms`
    : token ? `token at ${token[1]} (${token[2]})` : " ";
};
draw();
</script></body></html>
"""
