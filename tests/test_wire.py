"""Pipelines whose hidden states travel in fewer bytes."""

from __future__ import annotations

import msgspec
import pytest
from pipeline_helpers import GREEDY, PROMPT, local, text_of

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import PROTOCOL, WIRES, RunHeader, WireOp, WireRow


def test_every_codec_gives_one_text_in_every_mode_and_fewer_bytes() -> None:
    sizes = {}
    for wire in WIRES:
        with local(stages=2, wire=wire) as p:
            texts = set()
            for mode in ("off", "sync", "async"):
                p.configure(mode=mode)
                p.forget()
                result = p.generate(PROMPT, max_tokens=32, sampling=GREEDY).wait()
                texts.add(result.text)
                if mode == "off":
                    sizes[wire] = result.wire_bytes_per_token
            assert (", not exact" in result.line().replace(" · ", ", ")) == (wire != "f32") == (not result.exact)
            assert p.exact == p.live().exact == result.exact
            assert len(texts) == 1, wire  # a row's rounding does not depend on the run it travels in
    assert sizes["f32"] > sizes["f16"] > sizes["q8"] > sizes["q4"]
    assert sizes["bf16"] == pytest.approx(sizes["f16"], rel=0.1)  # the texts differ a little


def test_each_link_may_have_its_own() -> None:
    with local(stages=3, wire=["f16", "q8"], draft=None) as p:
        assert text_of(p, n=8)


@pytest.mark.parametrize(
    ("wire", "sentence"), [("q5", "wire q5 is not one of f32"), (["f16", "q8"], "wire names 2 links, but 2 stages")]
)
def test_wrong_wires(wire: str | list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        local(stages=2, wire=wire)


def test_what_a_run_looks_like_on_the_wire_changes_only_with_the_protocol() -> None:
    run = RunHeader(7, "decode", (WireOp("rm", 1, 2, -1, -1),), (WireRow(3, 4, 0, 5, 6, True, 0),), ((0, 6),))
    assert PROTOCOL == 11
    assert msgspec.to_builtins(run) == {
        "type": "RunHeader",
        "id": 7,
        "kind": "decode",
        "ops": (("rm", 1, 2, -1, -1),),
        "rows": ((3, 4, 0, 5, 6, True, 0),),
        "finals": ((0, 6),),
        "slot": -1,
        "turns": (),
        "dead": False,
        "memory": {},
        "held": {},
        "sent": 0.0,
        "epoch": 0,
    }
