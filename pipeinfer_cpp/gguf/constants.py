"""The gguf package's numbers: types of values and tensors, and their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeinfer_cpp.system.light_import import submodule

if TYPE_CHECKING:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
else:
    _constants = submodule("gguf", "constants")
    GGML_QUANT_SIZES = _constants.GGML_QUANT_SIZES
    GGMLQuantizationType = _constants.GGMLQuantizationType
    GGUFValueType = _constants.GGUFValueType

__all__ = ["GGML_QUANT_SIZES", "GGMLQuantizationType", "GGUFValueType"]
