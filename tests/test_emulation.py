"""Emulated links and nodes: pure arithmetic, and real pipelines that are as slow as told."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from pipeline_helpers import GREEDY, PROMPT, local, text_of

from pipeinfer_cpp.emulation import PRESETS, load_cluster, stretched
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.net.transit import FRAME_BYTES, Arrivals, LinkSpeed, Transit


def test_bytes_leave_one_after_the_other() -> None:
    link = Transit(LinkSpeed(mbit=8, latency_ms=5))
    n = 1000 - FRAME_BYTES
    assert [round(link.arrival(t, n), 6) for t in (0.0, 0.0, 0.0, 1.0)] == [0.006, 0.007, 0.008, 1.006]


def test_jitter_keeps_the_order() -> None:
    link = Transit(LinkSpeed(latency_ms=1, jitter_ms=10), seed=3)
    times = [link.arrival(0.001 * i, 100) for i in range(200)]
    assert times == sorted(times)
    assert all(0.001 * i + 0.001 <= t <= 0.001 * i + 0.0111 for i, t in enumerate(times))


def test_arrivals_come_out_when_they_are_due() -> None:
    arrivals: Arrivals[str] = Arrivals([LinkSpeed(latency_ms=10), LinkSpeed()])
    arrivals.push(0, 0.0, 10, "slow")
    arrivals.push(1, 0.001, 10, "fast")
    assert arrivals.next() == 0.001
    assert list(arrivals.arrived(0.005)) == ["fast"] and list(arrivals.arrived(0.0099)) == []
    assert list(arrivals.arrived(0.01)) == ["slow"] and arrivals.next() is None


def test_a_pipeline_over_slow_links_is_as_slow_as_it_should_be() -> None:
    """Per token: three stages, and four links of which two carry a row of hidden states."""
    links = [LinkSpeed(mbit=10, latency_ms=3)] * 4
    with local(stages=3, draft=None, stretch=Stretch(0.010), links=links) as p:
        p.generate(PROMPT, max_tokens=3, sampling=GREEDY).wait()
        result = p.generate(PROMPT + " lived", max_tokens=25, sampling=GREEDY).wait()
    expected = 0.030 + 2 * links[0].seconds(2048 + 56) + links[0].seconds(56) + links[0].seconds(24)
    assert result.itl_s.p50 == pytest.approx(expected, rel=0.15)


def test_speculation_over_slow_links_writes_the_same_text_and_hides_them() -> None:
    def speed(p: Any, mode: str) -> tuple[str, float]:
        p.configure(mode=mode)
        p.forget()
        result = p.generate(PROMPT, max_tokens=30, sampling=GREEDY).wait()
        assert result.tokens_per_s is not None
        return result.text, result.tokens_per_s

    links = [LinkSpeed(mbit=100, latency_ms=5, jitter_ms=2)] * 4
    with local(stages=3, stretch=Stretch(0.010, 0.002), draft_stretch=Stretch(0.002), links=links) as p:
        rounds = [(speed(p, "off"), speed(p, "async")) for _ in range(3)]
        latency = p.driver.engine.pipe.pace.hop
    assert len({text for pair in rounds for text, _ in pair}) == 1
    ratio = median(fast / plain for (_, plain), (_, fast) in rounds)
    print(f"async over off on links of 5 ms: {ratio:.2f}; the engine takes a link for {1000 * latency:.1f} ms")
    assert ratio > 1.2
    assert 0.004 < latency < 0.009


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("n", [None, 1, 4, 32])
def test_presets(name: str, n: int | None) -> None:
    cluster = load_cluster(name, n)
    assert cluster.n_stages == (n or 8) and len(cluster.links) == cluster.n_stages + 1
    curves = cluster.curves([3] * cluster.n_stages)
    assert all(0.005 < c(1) < c(4) < 1 for c in curves)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(
        """
        [emulate]
        draft_ms = 2
        link = { mbit = 100, latency_ms = 0.5 }
        [[emulate.nodes]]
        ms_per_layer = 2.5
        count = 2
        [[emulate.nodes]]
        ms = 40
        curve = { 2 = 1.1, 8 = 1.9 }
        """
    )
    cluster = load_cluster(str(path))
    assert cluster.n_stages == 3 and cluster.links == (LinkSpeed(100, 0.5),) * 4 and cluster.draft_ms == 2
    stretches = cluster.stretches([4, 4, 2])
    assert [s.first for s in stretches] == [0.01, 0.01, 0.04]
    assert stretched(stretches[2])(8) == pytest.approx(0.076) and stretched(stretches[0])(3) == pytest.approx(0.016)


BAD = {
    "nodes = 3": "nodes",
    "nodes = []": "lists no nodes",
    "nodes = [{ ms = -1 }]": "ms",
    "nodes = [{ ms = 1, ms_per_layer = 1 }]": "either ms_per_layer or ms",
    "nodes = [{ ms = 1, speed = 1 }]": "speed",
    "nodes = [{ ms = 1, curve = { x = 2 } }]": "by number of rows",
    "nodes = [{ ms = 1 }]\nlinks = [{ mbit = 1 }]": "lists 1 links; 1 stages have 2",
    "preset = 'fats'": "no preset 'fats'",
    "nodes = [": "not valid TOML",
}


@pytest.mark.parametrize(("text", "sentence"), BAD.items(), ids=range(len(BAD)))
def test_what_is_no_cluster(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[emulate]\n" + text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_cluster(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("what", "n"), list(itertools.product(["gigabti", "nowhere.toml"], [None, 4])))
def test_no_such_cluster(what: str, n: int | None) -> None:
    with pytest.raises(UserError, match=what):
        load_cluster(what, n)


def test_more_stages_than_a_files_nodes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[emulate]\nnodes = [{ ms = 1 }]")
    with pytest.raises(UserError, match="has 1 nodes, but 4 stages"):
        load_cluster(str(path), 4)


def test_the_same_text_as_without(tmp_path: Path) -> None:
    with local(stages=2) as p:
        expected = text_of(p)
    with local(stages=2, links=[LinkSpeed(mbit=5, latency_ms=1)] * 3) as p:
        assert text_of(p) == expected
