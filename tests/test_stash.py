"""Conversations that leave a stage's cache and come back, with real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline_helpers import GREEDY, TARGET
from real_model import WINDOW, assembled

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.line import Line
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.stash import ANY, Stash
from pipeinfer_cpp.pipeline import Pipeline

CHUNK = 64
ANSWER = 2


def opened(path: Path, *, apart: bool = True, flash_attn: bool = True) -> SliceContext:
    """Three sequences, as a stage has them."""
    kv_type = "q8_0" if flash_attn else "f16"
    return SliceContext(
        path, n_ctx=3 * 768, n_seq_max=3, n_ubatch=CHUNK, kv_type=kv_type, apart=apart, flash_attn=flash_attn
    )


def read(context: SliceContext, seq: int, end: int, first: int = 0) -> NDArray[np.float32]:
    """Positions [first, end), in chunks; the last row's logits."""
    for a in range(first, end, CHUNK):
        rows = np.arange(a, min(a + CHUNK, end), dtype=np.int32)
        out = context.decode((rows * 7919 % 900 + 5).astype(np.int32), rows, np.full(len(rows), seq, np.int32))
    return np.array(out[-1])


def answers(context: SliceContext, seq: int, n: int) -> list[NDArray[np.float32]]:
    """What it says behind `n` positions, one row at a time."""
    return [read(context, seq, p + 1, p) for p in range(n, n + ANSWER)]


@pytest.fixture(scope="module")
def demo() -> Iterator[SliceContext]:
    context = opened(TARGET)
    yield context
    context.close()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SliceContext]:
    context = opened(assembled(tmp_path_factory.mktemp("real")))
    yield context
    context.close()


def check_bits(context: SliceContext, depths: tuple[int, ...]) -> None:
    """In its own slot and in another's, which had other cells before: the bits of sequence 0, which stays. So it is
    when it goes back afterwards."""
    context.clear()
    stash = Stash(context)
    read(context, 2, 70)
    at = 0
    for n in depths:
        read(context, 0, n, at)
        context.seq_cp(0, 1, 0, -1)
        expected = answers(context, 0, n)
        at = n - 10 if n < depths[-1] else n // 3
        context.seq_rm(0, at, -1)
        shorter = answers(context, 0, at)
        context.seq_rm(0, at, -1)
        for seq, to in ((1, 1), (1, 2)):
            stash.put(n, seq, n)
            assert context.seq_span(seq) == (-1, -1) and stash.bytes > 0
            context.seq_rm(to, 0, -1)
            stash.take(n, to, n)
            assert context.seq_span(to) == (0, n - 1) and stash.bytes == 0
            for a, b in zip(answers(context, to, n), expected, strict=True):
                assert (a == b).all(), (n, to)
            context.seq_rm(to, n, -1)
        context.seq_rm(2, at, -1)
        for a, b in zip(answers(context, 2, at), shorter, strict=True):
            assert (a == b).all(), n


def test_what_comes_back_has_the_bits_of_what_stayed(demo: SliceContext) -> None:
    check_bits(demo, (11, 255, 257, 511, 513, 700))


def test_of_a_real_model(gemma: SliceContext) -> None:
    """Whose window hides the first positions of the longest."""
    gemma.clear()
    assert Stash(gemma).longest == ANY and gemma.window == WINDOW
    check_bits(gemma, (257, 512, 700))


def test_only_what_comes_back_whole_is_kept(gemma: SliceContext) -> None:
    """Where llama.cpp's states cannot be read, its windows end what is kept."""
    gemma.clear()
    stash = Stash(gemma)
    stash.longest = WINDOW
    with pytest.raises(PipeInferError, match=f"cannot keep {WINDOW + 1} positions"):
        stash.put(1, 0, WINDOW + 1)


def test_what_is_not_as_it_should_be_is_said(demo: SliceContext) -> None:
    demo.clear()
    stash = Stash(demo)
    read(demo, 0, 20)
    with pytest.raises(PipeInferError, match="to be kept holds positions 0 to 19 instead of 0 to 20"):
        stash.put(1, 0, 21)
    for refused in (stash.drop, lambda number: stash.take(number, 0, 20)):
        with pytest.raises(PipeInferError, match="keeps no conversation as state 1"):
            refused(1)
    stash.put(1, 0, 20)
    with pytest.raises(PipeInferError, match="that came back holds positions 0 to 19 instead of 0 to 18"):
        stash.take(1, 0, 19)
    read(demo, 1, 20)
    stash.put(2, 1, 20)
    stash.drop(2)
    assert stash.bytes == 0


def test_with_shared_cells() -> None:
    """As with side branches: others hold some of its cells, and keep them."""
    context = opened(TARGET, apart=False)
    try:
        stash = Stash(context)
        read(context, 0, 100)
        expected = answers(context, 0, 100)
        context.seq_rm(0, 100, -1)
        context.seq_cp(0, 1, 0, 50)
        stash.put(1, 0, 100)
        assert context.seq_span(1) == (0, 49)
        stash.take(1, 0, 100)
        for a, b in zip(answers(context, 0, 100), expected, strict=True):
            assert np.abs(a - b).max() < 0.05 and a.argmax() == b.argmax()
    finally:
        context.close()


def test_a_conversation_with_a_real_model(tmp_path: Path) -> None:
    """Longer than the window, over stages: log-probabilities behind kept cells are those of one that stayed."""
    with Pipeline.local(target=assembled(tmp_path), stages=3, slots=1, ctx=1024, mode="off") as p:
        prompt = p.vocabulary.tokenize("The fox and the crow met in the old forest. " * 60, begin=True)[:WINDOW + 70]

        def turn(line: Line, tokens: list[int]) -> list[float]:
            generation = line.generate([*line.past().tokens, *tokens], max_tokens=4, sampling=GREEDY, goes_on=True)
            return [token.logprob for token in generation]

        line, other = p.conversation("one"), p.conversation("another")
        expected = [turn(line, prompt), turn(line, prompt[5:15])]
        line.forget()
        said = [turn(line, prompt)]
        turn(other, prompt[:9])
        assert line.stashed
        said.append(turn(line, prompt[5:15]))
        assert said == expected and p.last is None and line.last is not None and line.last.runs.rows < 30
