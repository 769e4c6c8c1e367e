"""Layer ranges: how they are made, and what is said of wrong ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import even_split, parse_layers, parse_shares, split_by_shares


@given(st.integers(1, 200), st.data())
def test_even_splits_cover_the_model_in_nearly_equal_ranges(n_layers: int, data: st.DataObject) -> None:
    ranges = even_split(n_layers, data.draw(st.integers(1, n_layers)))
    sizes = [end - first for first, end in ranges]
    assert [layer for first, end in ranges for layer in range(first, end)] == list(range(n_layers))
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.integers(12, 200))
def test_shares_give_ranges_within_one_layer_of_their_part(shares: list[float], n_layers: int) -> None:
    ranges = split_by_shares(shares, n_layers)
    assert [layer for first, end in ranges for layer in range(first, end)] == list(range(n_layers))
    assert all(end > first for first, end in ranges)
    wanted = [s / sum(shares) * n_layers for s in shares]
    if min(wanted) >= 1:
        assert all(abs(end - first - w) < 1.0001 for (first, end), w in zip(ranges, wanted, strict=True))


def test_shares_are_read_from_text() -> None:
    assert split_by_shares(parse_shares("0.3,0.3,0.4"), 10) == [(0, 3), (3, 6), (6, 10)]
    assert split_by_shares([1, 100], 10) == [(0, 1), (1, 10)]


def test_layers_are_read_from_text() -> None:
    assert parse_layers("0-9,10-19,20-31", 32) == [(0, 10), (10, 20), (20, 32)]
    assert parse_layers(" 0 - 2 , 3 ", 4) == [(0, 3), (3, 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-9,11-19", "layer 10 lies on no stage"),
        ("0-9,13-19", "layers 10-12 lie on no stage"),
        ("1-19", "layer 0 lies on no stage"),
        ("0-9,10-17", "layers 18-19 lie on no stage"),
        ("0-9,9-19", "overlap: layer 9 "),
        ("0-9,5-19", "overlap: layers 5-9"),
        ("0-9,0-19", "overlap: layers 0-9"),
        ("10-19,0-9", "layers 0-9 lie on no stage"),
        ("0-9,10-20", "last layer is 19"),
        ("9-0,10-19", "backwards"),
        ("0-9;10-19", "not ranges"),
        ("", "not ranges"),
        ("0-9,", "not ranges"),
        ("-3-9", "not ranges"),
    ],
)
def test_wrong_layers_are_named(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_layers(text, 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_stages", [5, 0, -1])
def test_stages_must_fit_the_layers(n_stages: int) -> None:
    with pytest.raises(UserError, match="stage"):
        even_split(4, n_stages)


@pytest.mark.parametrize("text", ["0.3,zero", "", "0.3,,0.7"])
def test_shares_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a list of numbers"):
        parse_shares(text)


@pytest.mark.parametrize("shares", [[0.5, 0.0], [0.5, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_shares_that_are_not_positive_are_refused(shares: list[float]) -> None:
    with pytest.raises(UserError, match="positive"):
        split_by_shares(shares, 10)


def test_more_shares_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="more than the model's 2 layers"):
        split_by_shares([1, 1, 1], 2)
