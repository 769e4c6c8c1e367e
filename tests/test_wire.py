"""Pipelines whose hidden states travel in fewer bytes."""

from __future__ import annotations

import pytest
from pipeline_helpers import GREEDY, PROMPT, local, text_of

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import WIRES


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
