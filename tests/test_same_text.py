"""The text is the target's own: scripts/verify_text.py in small."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import DEMO, DRAFT, ROOT, TARGET, local

from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.sampling import Sampling

sys.path.insert(0, str(Path(ROOT) / "scripts"))
from verify import chi, exact, gaps
from verify.bare import Bare
from verify.cases import Case, expect, long, plain, turns
from verify.report import Report

WEAK = DEMO / "demo-weak-draft-q8_0.gguf"
N = 16
SAMPLINGS = [Sampling(temp=0), Sampling(temp=0.8, seed=7)]
MODES = ("async", "sync", "off")


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    vocabulary = Vocabulary(TARGET)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    bare = Bare(TARGET, kv_type="q8_0")
    yield bare
    bare.close()


@pytest.fixture(scope="module")
def cases(vocabulary: Vocabulary, bare: Bare) -> list[Case]:
    """Six of the prompts, a context that passes 512 tokens, a conversation of two turns."""
    cases = [
        *plain(vocabulary, 6, N, SAMPLINGS),
        *long(vocabulary, 1, N, SAMPLINGS[:1]),
        *turns(vocabulary, 1, N, SAMPLINGS),
    ]
    expect(cases, bare.generate, bare.clear)
    return cases


@pytest.mark.parametrize(("stages", "draft"), [(2, DRAFT), (3, DRAFT), (2, WEAK)])
def test_every_text_is_that_of_the_bare_loop(cases: list[Case], stages: int, draft: Path) -> None:
    report = Report()
    chosen = cases if draft == DRAFT else [c for c in cases if c.name in (cases[0].name, cases[-1].name)]
    with local(stages=stages, draft=draft, threads=1) as pipeline:
        assert pipeline.exact and pipeline.kv_type == "q8_0"
        for mode in MODES:
            exact.check(pipeline, ("all", draft.stem, str(stages)), mode, chosen, report)
    assert not report.differences, report.tables() + "\n".join(report.differences)
    assert report.work["async"].accepted and report.work["sync"].accepted


def test_much_that_is_cancelled_and_aborted_leaves_the_text_alone(cases: list[Case]) -> None:
    report = Report()
    with local(stages=3, threads=1, stretch=Stretch(0.01, 0.001), draft_stretch=Stretch(0.002)) as pipeline:
        exact.check(pipeline, ("slow", "good", "3"), "async", [cases[0], cases[-1]], report)
    assert not report.differences, report.differences
    assert report.work["async"].cancelled and report.work["async"].aborted


def test_a_wrong_text_would_be_seen(cases: list[Case]) -> None:
    """The other seed's text is expected: the comparison must not agree."""
    report, wrong = Report(), Case("wrong", cases[0].prompt, N, Sampling(temp=0.8, seed=8), [], cases[0].expected)
    with local(stages=2, draft=None, threads=1) as pipeline:
        exact.check(pipeline, ("wrong", "none", "2"), "off", [wrong], report)
    assert len(report.differences) == 1 and "at token" in report.differences[0]


def test_without_exact_mode_texts_part_only_at_near_ties(vocabulary: Vocabulary) -> None:
    bare = Bare(TARGET, kv_type="f16", flash_attn=False, n_seq=1 + gaps.SIDES)
    cases = plain(vocabulary, 4, N, SAMPLINGS[:1])
    expect(cases, bare.generate, bare.clear)
    with local(stages=2, threads=1, branches=4, flash_attn=False) as pipeline:
        found = gaps.check(pipeline, "async", cases, bare, "4 branches")
    assert found.texts == 4 and not found.unexplained, found.unexplained
    gap, change = gaps.measure(bare, cases[0].prompt, cases[0].expected[0])
    assert gap > 0 and 0 < change < 1  # without flash attention every shape counts
    bare.close()


def test_first_tokens_follow_the_distribution(vocabulary: Vocabulary, bare: Bare) -> None:
    case = chi.open_ended(plain(vocabulary, None, 4, SAMPLINGS[1:]), bare, 1)[0]
    with local(stages=2, threads=1) as pipeline:
        fits = chi.sample(pipeline, bare, case, 120)
    assert all(fit.p > chi.LIMIT and fit.bins >= 5 for fit in fits), fits


def test_the_p_value() -> None:
    for x in (0.01, 0.5, 2.0, 9.0, 40.0):
        assert math.isclose(chi.upper_gamma(0.5, x), math.erfc(math.sqrt(x)), rel_tol=1e-9)
        assert math.isclose(chi.upper_gamma(1.0, x), math.exp(-x), rel_tol=1e-9)
        assert math.isclose(chi.upper_gamma(3.0, x), math.exp(-x) * (1 + x + x * x / 2), rel_tol=1e-9)


def test_the_chi_square_test_sees_a_wrong_distribution() -> None:
    rng = np.random.default_rng(1)
    p = {(i,): x for i, x in enumerate((0.5, 0.3, 0.15, 0.04, 0.01))}
    right = Counter((int(i),) for i in rng.choice(5, 800, p=[*p.values()]))
    wrong = Counter((int(i),) for i in rng.choice(5, 800, p=[0.4, 0.4, 0.15, 0.04, 0.01]))
    assert chi.pearson("right", right, p).p > 0.01
    assert chi.pearson("wrong", wrong, p).p < chi.LIMIT
    assert chi.pearson("impossible", right + Counter({(9,): 1}), p).p == 0
