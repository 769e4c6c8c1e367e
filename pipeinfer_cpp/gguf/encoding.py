"""How GGUF puts numbers, strings and lists into bytes, and how large a tensor is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from pipeinfer_cpp.gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
SCALARS: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct codes of GGUF's scalar value types."""

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")

_KNOWN_KINDS = {int(kind) for kind in GGML_QUANT_SIZES}


def tensor_bytes(shape: Sequence[int], kind: int) -> int:
    """Bytes of a tensor's data. Raises KeyError for an unknown type, ValueError when the row
    length is no multiple of the type's block."""
    if kind not in _KNOWN_KINDS:
        raise KeyError(kind)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    n_elements = 1
    for n in shape:
        n_elements *= n
    if not shape or shape[0] % block:
        raise ValueError(f"rows of {shape[:1]} elements in blocks of {block}")
    return n_elements // block * size


def pad(n: int, alignment: int) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def encode_string(text: str) -> bytes:
    data = text.encode()
    return U64.pack(len(data)) + data


def encode_value(kind: int, value: Any) -> bytes:
    """Type tag and value of a scalar or string key."""
    if kind == STRING:
        return U32.pack(kind) + encode_string(value)
    return U32.pack(kind) + struct.pack("<" + SCALARS[kind], value)


def encode_array(item_kind: int, values: Sequence[Any]) -> bytes:
    """Type tag and value of an array key."""
    head = U32.pack(ARRAY) + U32.pack(item_kind) + U64.pack(len(values))
    if item_kind == STRING:
        return head + b"".join(encode_string(v) for v in values)
    return head + struct.pack(f"<{len(values)}{SCALARS[item_kind]}", *values)
