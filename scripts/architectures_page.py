"""Which models can be cut and what each needs, as docs/models.md has it.

    python scripts/architectures_page.py -o docs/models.md

Written from the rules alone: nothing is computed. That they hold is what tests/test_architectures.py and
scripts/popular_models.py show.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from popular_shapes import POPULAR, header

from pipeinfer_cpp.gguf import SUPPORTED, even_split, fit_split, needs_checkpoints, text_of
from pipeinfer_cpp.gguf.architectures import NOT_RUN, REASONS, TABLE, Architecture
from pipeinfer_cpp.gguf.cuts import CONDITIONS

HEAD = """# Models that can be cut

{n} architectures of llama.cpp are cut. With random weights, at all kinds of cuts, their slices compute what the whole
model does, **bit for bit** (`tests/test_architectures.py`). The rules come from a file's metadata and are the same
for all of them; where llama.cpp's code decides something that no key says, a small table has it
(`pipeinfer_cpp/gguf/architectures.py`).

Every stage gets the token ids, and the hidden states of the stage before it are written over the node that layer 0
reads; so layers that read ids, scaled embeddings and positions of several kinds need no rule.

Before the first cut of a model its own split is **tested on a small one of its kind**: the file's metadata with
small widths and random weights, in slices and whole, in a process of its own. That takes about a second and is
remembered. So an architecture that is not listed here is tried: what computes the same is cut, what does not is
refused with what differed.

Splits that nobody typed (`--stages`, `--split`) move to the nearest that fit, with a note; of a typed one
(`--layers`) that does not fit, the nearest is named.

Written by `python scripts/architectures_page.py -o docs/models.md`.
"""

NEEDS = """
**Checkpoints**: a part of a recurrent state cannot be taken back, so it is saved before each run, and a miss restores
it; there is one branch then. **MTP**: layers behind the trunk that predict several tokens at once are left out and
not counted.
"""


def page() -> str:
    """The whole file."""
    parts = [HEAD.format(n=len(SUPPORTED)), "## Models that people run\n", NEEDS.strip() + "\n"]
    parts += ["| model | architecture | layers | 2, 3 and 4 stages, if nothing else is said | checkpoints |"]
    parts += ["| --- | --- | --- | --- | --- |", *_models(), ""]
    parts += ["Their real layers with small widths: `python scripts/popular_models.py`.\n"]
    parts += ["## Architectures\n", "| architecture | cuts |", "| --- | --- |", *_architectures(), ""]
    plain = sorted(name for name in SUPPORTED if not _conditions(name))
    parts += ["Anywhere: " + ", ".join(plain) + ".\n", "## Only in one stage\n"]
    parts += ["With this build of llama.cpp.\n", "| architecture | why |", "| --- | --- |", *_refused(REASONS), ""]
    parts += ["## Not at all\n", "| architecture | why |", "| --- | --- |", *_refused(NOT_RUN), ""]
    return "\n".join(parts)


def _models() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name in POPULAR:
            source = header(name, Path(folder))
            splits = [fit_split(source, even_split(source.n_layers, n))[0] for n in (2, 3, 4)]
            state = "yes" if needs_checkpoints(source) else ""
            layers = f"{source.n_layers}" + (f" + {source.n_layers_beyond} MTP" if source.n_layers_beyond else "")
            yield f"| {name} | {source.architecture} | {layers} | {'; '.join(map(text_of, splits))} | {state} |"


def _architectures() -> Iterator[str]:
    for name in sorted(SUPPORTED):
        conditions = _conditions(name)
        if conditions:
            yield f"| {name} | {'; '.join(conditions)} |"


def _conditions(name: str) -> list[str]:
    rules = TABLE.get(name, Architecture(name))
    found = []
    if rules.step > 1:
        found.append(f"at multiples of {rules.step}")
    if rules.recurrent in ("interval", "no kv heads"):
        found.append("a recurrent and an attention layer in each slice")
    if rules.recurrent == "ratios":
        found.append("layers of both kinds of compressed cache in each slice")
    if rules.window_in_each:
        found.append("a layer with a sliding window in each slice, where the model has any")
    if name in CONDITIONS:
        found.append(CONDITIONS[name])
    if rules.recurrent:
        found.append("checkpoints")
    return found


def _refused(reasons: dict[str, str]) -> Iterator[str]:
    for reason, names in reasons.items():
        yield f"| {', '.join(names.split())} | {reason} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="write it there, not to the terminal")
    output = parser.parse_args().output
    if output:
        output.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
