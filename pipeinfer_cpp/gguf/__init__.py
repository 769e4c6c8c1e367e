"""Reading, checking and cutting GGUF models. Start with `Source.open`, then `cached_slice`."""

from pipeinfer_cpp.gguf.architectures import SUPPORTED, needs_checkpoints, row_width
from pipeinfer_cpp.gguf.cache import cached_slice, cached_slices, is_intact
from pipeinfer_cpp.gguf.cuts import Cuts, check_split, fit_split, text_of
from pipeinfer_cpp.gguf.inflate import write_inflated
from pipeinfer_cpp.gguf.inflate_plan import Inflation, inflation
from pipeinfer_cpp.gguf.inflate_tensors import real_layers
from pipeinfer_cpp.gguf.pair import check_pair
from pipeinfer_cpp.gguf.plan import SlicePlan, slice_plan
from pipeinfer_cpp.gguf.plan_keys import SLICER_VERSION
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.splits import LayerRange, even_split, parse_layers, parse_shares, split_by_shares
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, KeyStep, TensorStep
from pipeinfer_cpp.gguf.writer import Written, write_slice

__all__ = [
    "ADDED",
    "COPIED",
    "LEFT_OUT",
    "REWRITTEN",
    "SLICER_VERSION",
    "SUPPORTED",
    "Cuts",
    "Inflation",
    "KeyStep",
    "LayerRange",
    "SlicePlan",
    "Source",
    "TensorStep",
    "Written",
    "cached_slice",
    "cached_slices",
    "check_pair",
    "check_split",
    "even_split",
    "fit_split",
    "inflation",
    "is_intact",
    "needs_checkpoints",
    "parse_layers",
    "parse_shares",
    "real_layers",
    "row_width",
    "slice_plan",
    "split_by_shares",
    "text_of",
    "write_inflated",
    "write_slice",
]
