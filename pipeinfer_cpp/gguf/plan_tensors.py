"""The tensor table of a slice."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.code_defaults import query_factor
from pipeinfer_cpp.gguf.constants import GGMLQuantizationType
from pipeinfer_cpp.gguf.encoding import tensor_bytes
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.layers import Part
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, Stripe, TensorStep

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_F32, _F16, _BF16 = int(GGMLQuantizationType.F32), int(GGMLQuantizationType.F16), int(GGMLQuantizationType.BF16)
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_ID_TABLES, _ID_PROJECTION = "per_layer_token_embd.weight", "per_layer_model_proj.weight"


def plan_tensors(part: Part) -> list[TensorStep]:
    """One step for each tensor of the source, then the placeholders (last, so that they are holes
    at the end of the file)."""
    _check_layers(part)
    steps = [_step(part, tensor) for tensor in part.source.tensors.values()]
    if _EMBEDDING not in part.source.tensors:
        raise UserError(f"{part.source.path} has no tensor {_EMBEDDING}: fetch a complete model.")
    steps += _query_scales(part)
    named = {step.target for step in steps}
    n_vocab = part.source.tensors[_EMBEDDING].shape[1]
    if _EMBEDDING not in named:
        steps.append(_placeholder(_EMBEDDING, part.source.n_embd, n_vocab))
    if not part.gives_logits and not part.rules.untied_never:
        # without one llama.cpp ties the head to the embedding, and repacks a copy of it in memory
        steps.append(_placeholder(_HEAD, part.source.n_embd, n_vocab))
    return steps


def _check_layers(part: Part) -> None:
    numbers = {int(m[1]) for m in map(_LAYER.fullmatch, part.source.tensors) if m}
    n_trunk = part.source.n_layers
    n_all = n_trunk + part.source.n_layers_beyond
    odd = next((i for i in range(n_trunk) if i not in numbers), None)
    if odd is None and numbers and max(numbers) >= n_all:
        odd = max(numbers)
    if odd is not None:
        raise UserError(f"{part.source.path} names {n_all} layers, but its tensors disagree about layer {odd}.")


def _step(part: Part, tensor: Tensor) -> TensorStep:
    name = tensor.name
    layer = _LAYER.fullmatch(name)
    if layer:
        return _layer_step(part, tensor, int(layer[1]), layer[2])
    if name == _EMBEDDING:
        return _embedding_step(part, tensor)
    if name == _HEAD and not part.gives_logits:
        return _left_out(name, "only the last slice gives logits")
    with_tables = part.layers.with_id_tables
    if name == _ID_TABLES and with_tables and not any(part.first <= i < part.end for i in with_tables):
        return _left_out(name, "no layer here reads tables by token ids")
    if name in (_ID_TABLES, _ID_PROJECTION) and part.layers.per_layer_input and not part.is_whole:
        return _stripe_step(part, tensor)
    if name == "rope_freqs.weight" and part.source.architecture == "gemma4" and not part.is_whole:
        windows = part.layers.windows
        if windows and all(windows[part.within]):
            return _left_out(name, "only layers with full attention read it, and there is none here")
    return _kept(tensor, name, "belongs to no layer, so to every slice")


def _embedding_step(part: Part, tensor: Tensor) -> TensorStep:
    if part.takes_tokens:
        return _kept(tensor, tensor.name, "the first slice looks up token ids")
    if part.layers.per_layer_input:
        return _kept(tensor, tensor.name, "the inputs of each layer are made of it")
    if part.gives_logits and part.source.tied:
        why = "the embedding is the output head too (tied)"
        if part.rules.untied_never:
            return _kept(tensor, tensor.name, why)
        return _kept(tensor, _HEAD, why, REWRITTEN)
    return _left_out(tensor.name, "only the first slice looks up token ids")


def _layer_step(part: Part, tensor: Tensor, layer: int, rest: str) -> TensorStep:
    if part.is_whole:
        return _kept(tensor, tensor.name, f"layer {layer}")
    if layer >= part.source.n_layers:
        return _left_out(tensor.name, "predicts several tokens at once, which is not done here")
    if not part.first <= layer < part.end:
        return _left_out(tensor.name, f"layer {layer} lies on another stage")
    target, reason = f"blk.{layer - part.first}.{rest}", f"layer {layer}"
    if rest == "attn_q_norm.weight" and part.source.architecture == "gemma3":
        factor = query_factor(part)
        if factor != 1:
            data = (_as_f32(part, tensor).astype(np.float64) * factor).astype("<f4").tobytes()
            reason = f"{reason}, times {factor:.6g}: llama.cpp takes the attention scale from the number of layers"
            return TensorStep(tensor.name, REWRITTEN, reason, target, tensor.shape, _F32, len(data), tensor, data)
    return _kept(tensor, target, reason)


def _query_scales(part: Part) -> list[TensorStep]:
    """Gemma 2 27B has no norm of the queries to fold its scale into: a tensor that llama.cpp multiplies them with."""
    factor = query_factor(part) if part.source.architecture == "gemma2" else 1.0
    if factor == 1:
        return []
    for i in range(part.first, part.end):
        has = {rest for rest in ("weight", "scale", "bias") if f"blk.{i}.attn_q.{rest}" in part.source.tensors}
        if has != {"weight"}:
            raise UserError(f"{part.source.path} keeps its queries in a form that cannot be scaled: use another file.")
    data = np.array([factor], "<f4").tobytes()
    why = f"{factor:.6g}: llama.cpp takes the attention scale from the number of layers"
    names = [f"blk.{i}.attn_q.scale" for i in range(part.n_layers)]
    return [TensorStep(name, ADDED, why, name, (1,), _F32, len(data), None, data) for name in names]


def _stripe_step(part: Part, tensor: Tensor) -> TensorStep:
    """Gemma 4 E: the inputs of each layer stand side by side in each row of the tables, and one below the other in
    their projection."""
    n, floats = part.source.n_layers, part.layers.per_layer_input
    columns = tensor.name == _ID_TABLES
    n_rows = tensor.shape[1] if columns else 1
    if (tensor.shape[0] if columns else tensor.shape[1]) != floats * n:
        raise UserError(f"{part.source.path} is damaged: {tensor.name} is not {n} x {floats} wide; fetch it again.")
    row_bytes = tensor.n_bytes // n_rows
    shape = (floats * part.n_layers, n_rows) if columns else (tensor.shape[0], floats * part.n_layers)
    try:
        one = tensor_bytes((floats,), tensor.kind) if columns else row_bytes // n
    except ValueError:
        text = f"{part.source.path} packs {tensor.name} in blocks that are wider than a layer's {floats} inputs"
        raise UserError(f"{text}: use a file in another quantisation.") from None
    stripe = Stripe(row_bytes, part.first * one, part.n_layers * one)
    step = _kept(tensor, tensor.name, "the inputs of this slice's layers", REWRITTEN)
    return replace(step, shape=shape, n_bytes=n_rows * stripe.size, stripe=stripe)


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
    """Zeros that llama.cpp asks for and whose values never matter, in a type of few bytes that it does not
    repack into memory of its own."""
    for kind in (GGMLQuantizationType.IQ1_S, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16):
        try:
            size = tensor_bytes((n_embd, rows), int(kind))
        except ValueError:
            continue
        reason = f"llama.cpp asks for it and its values never matter here: {rows} rows of zeros, a hole in the file"
        return TensorStep(name, ADDED, reason, name, (n_embd, rows), int(kind), size)
    raise AssertionError("rows of F16 have any length")
