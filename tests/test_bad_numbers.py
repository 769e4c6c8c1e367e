"""Numbers that cannot be, of a model's file or of a peer: an error that names the stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from msgspec.structs import replace
from pipeline_helpers import GREEDY, PROMPT, TARGET, local

from pipeinfer_cpp.cluster import claims
from pipeinfer_cpp.cluster.peer import Peer
from pipeinfer_cpp.engine.run import InFlight, Row, Run
from pipeinfer_cpp.engine.sequences import Op
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.net.messages import Guessed, Loaded, Passed, RunBack, RunHeader, TurnStart
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.workers.limits import Limits


def damaged(path: Path, tensor: str, value: float) -> Path:
    """The demo target with the scale of one block of weights (Q8_0) overwritten."""
    path.write_bytes(TARGET.read_bytes())
    reader = GGUFReader(path, "r+")
    (found,) = [t for t in reader.tensors if t.name == tensor]
    found.data.reshape(-1)[:2] = np.array([value], np.float16).view(np.uint8)
    reader.data.flush()
    return path


@pytest.mark.parametrize(
    ("tensor", "stage", "value"),
    [
        ("blk.2.ffn_down.weight", 0, float("nan")),
        ("blk.8.ffn_down.weight", 1, float("inf")),
        ("token_embd.weight", 1, float("nan")),
    ],
)
def test_a_model_that_computes_no_numbers(tensor: str, stage: int, value: float, tmp_path: Path) -> None:
    model = damaged(tmp_path / "damaged.gguf", tensor, value)
    sentence = rf"Stage {stage} .*not finite .*file may be damaged"
    with Pipeline.local(target=model, stages=2, exact=False) as p, pytest.raises(PipeInferError, match=sentence):
        p.generate(PROMPT, max_tokens=8, sampling=GREEDY).wait(20)


ROW = Row(5, 0, 0, 1, 0, False)
BAD = {
    "seq_rm": RunHeader(1, "end", (Op("rm", 300, 0, -1),), (), ()),
    "seq_cp": RunHeader(1, "end", (Op("cp", 0, 0, -1, 77),), (), ()),
    "kind": RunHeader(1, "end", (Op("rm -rf", 0, 0, -1),), (), ()),
    "slot": RunHeader(1, "end", (Op("restore", 0, 0, -1, 3),), (), ()),
    "p0": RunHeader(1, "end", (Op("rm", 0, -5, -1),), (), ()),
    "stash of a sequence": RunHeader(1, "end", (Op("stash", 2, 5, -1, 1),), (), ()),
    "stash of nothing": RunHeader(1, "end", (Op("stash", 0, 0, -1, 1),), (), ()),
    "stash of too much": RunHeader(1, "end", (Op("unstash", 0, 513, -1, 1),), (), ()),
    "stash's number": RunHeader(1, "end", (Op("drop", 0, 0, -1, 0),), (), ()),
    "row's sequence": RunHeader(1, "decode", (), (ROW._replace(seq=99),), ()),
    "row's position": RunHeader(1, "decode", (), (ROW._replace(pos=-7),), ()),
    "row's token": RunHeader(1, "decode", (), (ROW._replace(token=1 << 20),), ()),
    "rows": RunHeader(1, "decode", (), tuple(ROW._replace(pos=i) for i in range(600)), ()),
    "sampling": RunHeader(1, "decode", (), (ROW,), (), turns=(TurnStart(Sampling(top_p=9.0), (1,)),)),
    "prompt": RunHeader(1, "decode", (), (ROW,), (), turns=(TurnStart(Sampling(), (1 << 25,)),)),
}


@pytest.mark.parametrize("what", BAD)
def test_a_stage_refuses_numbers_that_cannot_be(what: str) -> None:
    limits = Limits(n_seq=2, n_ctx=1024, n_rows=64, n_vocab=1024, checkpointed=False, stash=512)
    limits.check(RunHeader(1, "decode", (Op("rm", 1, 0, -1), Op("cp", 1, 3, -1, 0)), (ROW,), ()))
    limits.check(RunHeader(1, "end", (Op("stash", 1, 512, -1, 7), Op("drop", 0, 0, -1, 7)), (), ()))
    with pytest.raises(PipeInferError, match=r"run 1 |must be"):
        limits.check(BAD[what])


def test_a_stage_that_cannot_keep_a_conversation_is_asked_for_none() -> None:
    limits = Limits(n_seq=2, n_ctx=1024, n_rows=64, n_vocab=1024, checkpointed=True)
    with pytest.raises(PipeInferError, match="run 1 asks for an impossible operation"):
        limits.check(RunHeader(1, "end", (Op("stash", 1, 5, -1, 7),), (), ()))


@pytest.mark.parametrize("what", ["seq_rm", "row's token"])
def test_the_coordinator_hears_of_them_and_the_stage_lives(what: str) -> None:
    with local(stages=1, draft=None) as p:
        p.driver._stages[0].runs.send(BAD[what])
        with pytest.raises(PipeInferError, match=r"Stage 0 .*failed: run 1 .*impossible"):
            p.generate(PROMPT, max_tokens=200, sampling=GREEDY).wait(20)
        process = p.driver._stages[0].process
        assert process is not None and process.death() is None


def lie(pipeline: Pipeline, peer: Peer, said: RunBack | Passed | Guessed) -> None:
    """Let the driver hear this from the peer, as though it had come over its socket."""
    driver = pipeline.driver
    driver._command(lambda: driver._take(peer, said))


CLAIMS: dict[str, tuple[RunBack | Passed, str]] = {
    "number": (Passed(7, 1, "done", 0.0, 0.1, 0), "it is stage 7"),
    "a run that never left": (Passed(0, 1 << 30, "done", 0.0, 0.1, 0), "never sent"),
    "time": (Passed(0, 1, "done", 0.0, float("nan"), 0), "took nan s"),
    "an answer to nothing": (RunBack(1 << 30, False, ()), "which is not under way"),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_a_stage_that_says_what_cannot_be_is_named(what: str) -> None:
    said, words = CLAIMS[what]
    with local(stages=1, draft=None) as p:
        generation = p.generate(PROMPT, max_tokens=200, sampling=GREEDY)
        next(iter(generation))
        lie(p, p.driver._stages[0], said)
        with pytest.raises(PipeInferError, match=rf"^Stage 0 \(layers 0-11\) sent something impossible: .*{words}"):
            generation.wait(20)


def test_answers_that_do_not_fit_their_run() -> None:
    run = Run(3, "decode", (), (ROW._replace(draw=True), ROW._replace(pos=1, draw=True)), ())
    under_way = {3: InFlight(run, False, 0.0, {0: 2})}
    assert claims.back(RunBack(3, False, ((5, -0.5), (-1, 0.0))), under_way, 1024) is None
    assert "1 draws instead of 2" in str(claims.back(RunBack(3, False, ((5, -0.5),)), under_way, 1024))
    assert "token 1024" in str(claims.back(RunBack(3, False, ((5, -0.5), (1024, 0.0))), under_way, 1024))
    assert "token -3" in str(claims.back(RunBack(3, False, ((-3, -0.5), (5, 0.0))), under_way, 1024))
    assert "nobody cancelled" in str(claims.back(RunBack(3, True, ()), under_way, 1024))
    under_way[3].live = {0: 0}
    assert claims.back(RunBack(3, True, ()), under_way, 1024) is None


def test_measurements_that_cannot_be() -> None:
    good = Loaded({1: 0.1, 2: 0.2}, 4, "f16", 1.0, 1)
    assert claims.loaded(good, True) is None and claims.loaded(replace(good, curve={}), False) is None
    curves: list[dict[int, float]] = [{}, {1: -0.1}, {1: float("nan")}, {4: 0.1}]
    changes: list[dict[str, object]] = [{"safe_width": 0}, {"stash": -1}, *({"curve": curve} for curve in curves)]
    for changed in changes:
        assert "impossible" in str(claims.loaded(replace(good, **changed), True))


@pytest.mark.parametrize(
    "said",
    [
        Guessed(1, 99, 1 << 20, 0.5, -1, 0.0, 0.0, 0.1),
        Guessed(1, 99, 5, 0.5, 1 << 20, 0.5, 0.0, 0.1),
        Guessed(1, 99, 5, float("nan"), -1, 0.0, 0.0, 0.1),
    ],
)
def test_a_draft_worker_that_says_what_cannot_be_is_done_without(said: Guessed) -> None:
    with local(stages=1) as p:
        expected = p.generate(PROMPT, max_tokens=40, sampling=GREEDY).wait().text
        generation = p.generate(PROMPT, max_tokens=40, sampling=GREEDY)
        draft = p.driver._draft
        assert draft is not None
        lie(p, draft, said)
        lie(p, draft, Guessed(1 << 40, 5, 5, 0.5, -1, 0.0, 0.0, 0.1))  # it is not listened to any more
        result = generation.wait(20)
        assert result.text == expected
        (warning,) = result.warnings
        assert "draft worker is gone" in warning and "token" in warning
