"""The tensor table of a slice."""

from __future__ import annotations

import re

import numpy as np
from gguf import GGMLQuantizationType

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.encoding import tensor_bytes
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, Part, TensorStep

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_F32, _F16, _BF16 = int(GGMLQuantizationType.F32), int(GGMLQuantizationType.F16), int(GGMLQuantizationType.BF16)
_EMBEDDING, _NORM, _HEAD = "token_embd.weight", "output_norm.weight", "output.weight"


def plan_tensors(part: Part) -> list[TensorStep]:
    """One step for each tensor of the source, then the placeholders (last, so that they are holes
    at the end of the file)."""
    _check_layers(part)
    steps = [_step(part, tensor) for tensor in part.source.tensors.values()]
    present = {step.target for step in steps}
    if _NORM not in present or _EMBEDDING not in part.source.tensors:
        missing = _NORM if _NORM not in present else _EMBEDDING
        raise UserError(f"{part.source.path} has no tensor {missing}: fetch a complete model.")
    n_vocab = part.source.tensors[_EMBEDDING].shape[1]
    if not part.takes_tokens:
        steps.append(_placeholder(_EMBEDDING, part.source.n_embd, n_vocab))
    elif not part.gives_logits:
        # without one llama.cpp ties the head to the embedding, and repacks a copy of it in memory
        steps.append(_placeholder(_HEAD, part.source.n_embd, n_vocab))
    return steps


def _check_layers(part: Part) -> None:
    numbers = {int(m[1]) for m in map(_LAYER.fullmatch, part.source.tensors) if m}
    n_layers = part.source.n_layers
    odd = next((i for i in range(n_layers) if i not in numbers), None) if len(numbers) <= n_layers else max(numbers)
    if odd is not None:
        raise UserError(f"{part.source.path} names {n_layers} layers, but its tensors disagree about layer {odd}.")


def _step(part: Part, tensor: Tensor) -> TensorStep:
    name = tensor.name
    layer = _LAYER.fullmatch(name)
    if layer:
        return _layer_step(part, tensor, int(layer[1]), layer[2])
    if name in part.rules.shared_tensors:
        return _kept(tensor, name, "every layer reads it, though it has no layer number")
    if name == _NORM:
        return _kept(
            tensor, name, "the last norm" if part.gives_logits else "llama.cpp asks for it; never computed here"
        )
    if name == _EMBEDDING:
        if part.takes_tokens:
            return _kept(tensor, name, "the first slice takes token ids")
        if part.gives_logits and part.source.tied:
            return _kept(tensor, _HEAD, "the embedding is the output head too (tied)", REWRITTEN)
        return _left_out(name, "only the first slice takes token ids")
    if name in part.rules.head_tensors:
        if part.gives_logits:
            return _kept(tensor, name, "the output head")
        return _left_out(name, "only the last slice gives logits")
    raise UserError(
        f"{part.source.path} holds the tensor {name}, which the rules for {part.rules.name} do not cover: "
        "its slices could compute wrongly, so it is not cut."
    )


def _layer_step(part: Part, tensor: Tensor, layer: int, rest: str) -> TensorStep:
    if not part.first <= layer < part.end:
        return _left_out(tensor.name, f"layer {layer} lies on another stage")
    target, reason = f"blk.{layer - part.first}.{rest}", f"layer {layer}"
    if rest == "attn_q_norm.weight" and part.rules.q_scale:
        wanted, given = (part.rules.q_scale(part.source, n) for n in (part.source.n_layers, part.n_layers))
        if wanted != given:
            factor = wanted / given
            data = (_as_f32(part, tensor).astype(np.float64) * factor).astype("<f4").tobytes()
            reason = f"{reason}, times {factor:.6g}: llama.cpp takes the attention scale from the number of layers"
            return TensorStep(tensor.name, REWRITTEN, reason, target, tensor.shape, _F32, len(data), tensor, data)
    return _kept(tensor, target, reason)


def _as_f32(part: Part, tensor: Tensor) -> np.ndarray:
    """The values of a small unquantised tensor."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = file.read(tensor.n_bytes)
    if tensor.kind == _F32:
        return np.frombuffer(raw, "<f4")
    if tensor.kind == _F16:
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if tensor.kind == _BF16:
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise UserError(f"{part.source.path} has a quantised {tensor.name}, which cannot be rescaled: use another file.")


def _kept(tensor: Tensor, target: str, reason: str, action: str = COPIED) -> TensorStep:
    return TensorStep(tensor.name, action, reason, target, tensor.shape, tensor.kind, tensor.n_bytes, tensor)


def _left_out(name: str, reason: str) -> TensorStep:
    return TensorStep(name, LEFT_OUT, reason)


def _placeholder(name: str, n_embd: int, rows: int) -> TensorStep:
    """Zeros that llama.cpp asks for and never reads, in a type of few bytes that it does not
    repack into memory of its own."""
    for kind in (GGMLQuantizationType.IQ1_S, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16):
        try:
            size = tensor_bytes((n_embd, rows), int(kind))
        except ValueError:
            continue
        reason = f"llama.cpp asks for it and never reads it here: {rows} rows of zeros, a hole in the file"
        return TensorStep(name, ADDED, reason, name, (n_embd, rows), int(kind), size)
    raise AssertionError("rows of F16 have any length")
