"""What `pipeinfer bench` is made of: arms, grids, intervals, baselines, the notebook."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeinfer_cpp.cluster.tuned import Tuned
from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.arms import parse_arms
from pipeinfer_cpp.lab.baseline import regressions
from pipeinfer_cpp.lab.bench import Comparison
from pipeinfer_cpp.lab.cells import options_of
from pipeinfer_cpp.lab.intervals import Ratio, speed_up
from pipeinfer_cpp.lab.measurement import Measurement, pooled
from pipeinfer_cpp.lab.receipt import Receipt
from pipeinfer_cpp.lab.recording import Recording
from pipeinfer_cpp.lab.suites import SUITES, suite
from pipeinfer_cpp.lab.sweep import Cell, Done, Notebook, parse_link, parse_sweep, read_cells
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.formats import read_records, write_records
from pipeinfer_cpp.ui.measurements import grid_table


def test_arms() -> None:
    arms = {arm.name: arm.changes for arm in parse_arms("off, sync:6 async:cutoff=0.5:split=0.9 async-cancel")}
    assert arms["off"] == {"mode": "off", "ablate": frozenset(), "governor": False}
    assert arms["sync:6"]["draft_max"] == 6
    assert arms["async:cutoff=0.5:split=0.9"]["cutoff"] == 0.5
    assert arms["async-cancel"]["ablate"] == frozenset({"cancel"})
    assert [arm.name for arm in parse_arms("ablation")] == [
        "off",
        "async",
        "async-continuous",
        "async-multibuffer",
        "async-cancel",
        "async-draft-ahead",
    ]


def test_techniques_are_compared_without_the_governor() -> None:
    assert [arm.changes["governor"] for arm in parse_arms("ablation")] == [False] * 6
    assert [arm.changes["governor"] for arm in parse_arms("off,sync:4,async")] == [True] * 3


@pytest.mark.parametrize(
    "text", ["", "of", "sync:x", "sync:0", "async:speed=1", "off-cancel", "async-all", "async:cutoff=2"]
)
def test_wrong_arms(text: str) -> None:
    with pytest.raises(UserError, match="--modes"):
        parse_arms(text)


def test_a_grid_is_every_combination() -> None:
    cells = parse_sweep("stages=1,2,4 wire=f16,q8")
    assert len(cells) == 6 and str(cells[1]) == "stages=1 wire=q8"


@pytest.mark.parametrize(
    "text", ["stages", "stages=", "stages=two", "stages=0", "colour=red", "wire=q5", "link=fast", "stages=1 stages=2"]
)
def test_wrong_grids(text: str) -> None:
    with pytest.raises(UserError):
        parse_sweep(text)


def test_links_by_name() -> None:
    assert parse_link("1gbit").mbit == 1000 and parse_link("10mbit/5ms").latency_ms == 5


def test_a_cell_changes_the_options() -> None:
    base = Options(pair="demo", emulate=load_cluster("gigabit", 4), stages=4)
    cell = Cell((("stages", "8"), ("link", "10mbit"), ("wire", "q8"), ("draft", "weak"), ("branches", "2")))
    options = options_of(base, cell)
    assert options.n_stages == 8 and options.emulate is not None
    assert {link.mbit for link in options.emulate.links} == {10.0}
    assert options.wire == "q8" and options.branches == 2 and "weak" in str(options.draft)
    plain = options_of(Options(pair="demo"), Cell((("link", "100mbit"),)))
    assert plain.links is not None and len(plain.links) == 3


def test_an_interval_holds_the_true_ratio_and_narrows() -> None:
    rng = np.random.default_rng(1)

    def speeds(mean: float, n: int) -> list[list[float]]:
        return [[float(mean * rng.lognormal(0, 0.05)) for _ in range(3)] for _ in range(n)]

    few, many = speed_up(speeds(20, 3), speeds(10, 3)), speed_up(speeds(20, 40), speeds(10, 40))
    assert few.low < 2 < few.high and many.low < 2.02 and many.high > 1.98
    assert many.high - many.low < few.high - few.low


def test_one_prompt_has_no_interval_however_often_it_is_measured() -> None:
    assert speed_up([[4.0]], [[2.0]]) == Ratio(2.0, None, None)
    assert str(speed_up([[4.0, 4.2]], [[2.0, 2.0]])) == "2.05 x"


@pytest.mark.parametrize("prompts", [2, 3, 4, 8, 20])
def test_95_of_100_intervals_hold_the_truth(prompts: int) -> None:
    """Simulated: a speed-up of 1.5 that differs from prompt to prompt by 15%, and from round to round by 5%;
    answers of unequal length. The bootstrap that this replaces held it in 82% at 4 prompts of 2 rounds."""
    rng = np.random.default_rng(prompts)
    n, inside, below = 3000, 0, 0
    for _ in range(n):
        length = rng.lognormal(0, 0.3, (prompts, 1))
        own = rng.normal(0, 0.15, (prompts, 1))
        base = 1 / (length * rng.lognormal(0, 0.05, (prompts, 2)))
        fast = 1.5 * np.exp(own) / (length * rng.lognormal(0, 0.05, (prompts, 2)))
        ratio = speed_up(fast.tolist(), base.tolist())
        assert ratio.low is not None and ratio.high is not None
        truth = 1.5 / np.exp(0.15**2 / 2)  # of the total times
        inside += ratio.low <= truth <= ratio.high
        below += truth < ratio.low
    assert 0.925 < inside / n < 0.975 and 0.01 < below / n < 0.05


def test_drift_that_hits_both_arms_widens_nothing() -> None:
    """The machine halves its speed between prompts: pairs stand side by side, so the ratio stays."""
    base = [[10.0, 10.0], [5.0, 5.0], [8.0, 8.0]]
    ratio = speed_up([[1.5 * v for v in row] for row in base], base)
    assert ratio.low == pytest.approx(1.5) == ratio.high


def measurement(speed: float, tokens: int = 11) -> Measurement:
    gap = 1 / speed
    return Measurement("measured", "async", tokens, speed, 0.1, gap, gap, gap, 0.5, [0.5], None, 9, 2, 1, 1.5, 2.0)


def test_pooling_is_by_time() -> None:
    both = pooled([measurement(10.0), measurement(5.0)])
    assert both.tokens == 22 and both.tokens_per_s == pytest.approx(20 / 3) and both.runs_sent == 18


def done(speed_up: float, target: str = "t", key: str = "k") -> Done:
    ratio = Ratio(speed_up, speed_up - 0.05, speed_up + 0.05)
    receipt = Receipt(target, "d", "c", {"pipeinfer": "1"}, "cpu")
    arms = {"off": measurement(1.0), "async": measurement(speed_up)}
    comparison = Comparison(arms, {"off": Ratio(1, 1, 1), "async": ratio}, True, receipt, {})
    return Done("stages=2", key, comparison)


def test_a_regression_is_outside_of_both_intervals() -> None:
    assert regressions([done(2.0)], [done(2.0)]) == [] == regressions([done(1.92)], [done(2.0)])
    (sentence,) = regressions([done(1.8)], [done(2.0)])
    assert "stages=2: async was 2.00 x" in sentence
    with pytest.raises(UserError, match="another target"):
        regressions([done(2.0, "other")], [done(2.0)])
    one, two = done(2.0), done(1.2)
    bare = msgspec.structs.replace(two.comparison, ratios={"async": Ratio(1.2, None, None)})
    (sentence,) = regressions([msgspec.structs.replace(two, comparison=bare)], [one])
    assert sentence.endswith("and is 1.20 x.")
    close = msgspec.structs.replace(bare, ratios={"async": Ratio(1.5, None, None)})
    assert not regressions([msgspec.structs.replace(two, comparison=close)], [one])
    with pytest.raises(UserError, match="no result for this configuration"):
        regressions([done(2.0)], [done(2.0, key="else")])


def test_the_notebook_resumes(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    cells = parse_sweep("stages=1,2,4")
    book = Notebook(path)
    for cell, key in list(book.missing(cells, "same"))[:2]:
        book.add(cell, key, done(2.0).comparison)
    again = Notebook(path)
    assert [str(cell) for cell, _ in again.missing(cells, "same")] == ["stages=4"]
    assert len(list(again.missing(cells, "other"))) == 3
    assert not list(tmp_path.glob("*.part")) and len(read_cells(path)) == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"cell": "x"}]'])
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a result of `pipeinfer bench`"):
        Notebook(path)


@pytest.mark.parametrize("kind", [Done, Recording, Tuned])
def test_lists_of_records_are_read_and_written_alike(tmp_path: Path, kind: type) -> None:
    """Whole or not at all, and one sentence where that fails."""
    path = tmp_path / "records.json"
    for damage in (b"", b"{}", b"\xff", b'[{"pair": "\xff"}]', b"[1]"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"records\.json is none: "):
            read_records(path, kind, "is none")
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path, kind, "is none")
    path.write_bytes(b"[]\n")
    with pytest.raises(TypeError):
        write_records(path, [object()])
    assert read_records(path, kind, "is none") == [] and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UserError, match="could not be written: its folder does not exist"):
        write_records(tmp_path / "nowhere" / "a.json", [])


def test_a_record_survives_its_file() -> None:
    one = done(2.0)
    assert msgspec.json.decode(msgspec.json.encode([one]), type=list[Done]) == [one]


def test_suites(tmp_path: Path) -> None:
    assert all(len(set(s.prompts)) >= 4 for s in SUITES.values())
    own = tmp_path / "own.txt"
    own.write_text("a b\n\n c d \n")
    assert suite(None, own).prompts == ("a b", "c d")
    with pytest.raises(UserError, match="--suite poems"):
        suite("poems", None)
    with pytest.raises(UserError, match="cannot be read"):
        suite(None, tmp_path / "none.txt")


def test_a_grid_ends_with_one_table() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(grid_table({"stages=1": done(1.5).comparison, "stages=2": done(2.0).comparison}))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "stages=2", "│", "1.00", "│", "2.00", "2.00", "x", "│"] in lines
