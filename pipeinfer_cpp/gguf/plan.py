"""What a slice takes from its source: every key and tensor, copied, rewritten or left out, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import rules_for
from pipeinfer_cpp.gguf.cuts import Cuts
from pipeinfer_cpp.gguf.layers import Part
from pipeinfer_cpp.gguf.plan_keys import plan_keys
from pipeinfer_cpp.gguf.plan_tensors import plan_tensors
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, KeyStep, TensorStep


@dataclass(frozen=True)
class SlicePlan:
    """A slice of layers `[first_layer, end_layer)`, ready to be written.

    `keys` and `tensors` hold one step for each key and tensor of the source, and one for each that
    the slice adds.
    """

    source: Source = field(repr=False)
    first_layer: int
    end_layer: int
    keys: tuple[KeyStep, ...] = field(repr=False)
    tensors: tuple[TensorStep, ...] = field(repr=False)

    @property
    def n_layers(self) -> int:
        return self.end_layer - self.first_layer

    @property
    def takes_tokens(self) -> bool:
        """Whether it is the first slice: token ids in, not hidden states."""
        return self.first_layer == 0

    @property
    def gives_logits(self) -> bool:
        """Whether it is the last slice: logits out, not hidden states."""
        return self.end_layer == self.source.n_layers

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data to be written; placeholders are holes and cost nothing."""
        return sum(step.n_bytes for step in self.tensors if step.target and not step.is_hole)

    @property
    def file_bytes(self) -> int:
        """At most so much the file takes on the disk: with its header, and its tensors' padding."""
        keys = sum(len(step.name) + 8 + len(step.encoded()) for step in self.keys if step.action != LEFT_OUT)
        tensors = sum(len(step.target) + 64 + self.source.alignment for step in self.tensors if step.target)
        return self.data_bytes + keys + tensors + self.source.alignment + 24

    def counts(self) -> dict[str, dict[str, int]]:
        """How many keys and tensors are copied, rewritten, left out and added."""
        kinds = (COPIED, REWRITTEN, LEFT_OUT, ADDED)
        keys, tensors = Counter(s.action for s in self.keys), Counter(s.action for s in self.tensors)
        return {"keys": {k: keys[k] for k in kinds}, "tensors": {k: tensors[k] for k in kinds}}


def slice_plan(source: Source, first_layer: int, end_layer: int) -> SlicePlan:
    """Plan the slice of layers `[first_layer, end_layer)`.

    Raises UserError for layers that the model does not have, for an architecture that cannot be cut, for a slice that
    llama.cpp would not compute rightly, and for a key that no rule covers.
    """
    n_layers = source.n_layers
    rules = rules_for(source, whole=(first_layer, end_layer) == (0, n_layers))
    if "pipeinfer.slice.of_layers" in source.keys:
        raise UserError(f"{source.path} is a slice already: cut the whole model instead.")
    if not 0 <= first_layer < end_layer <= n_layers:
        raise UserError(
            f"{source.path.name} has layers 0-{n_layers - 1}: {first_layer}-{end_layer - 1} is not a range of them."
        )
    refusal = Cuts(source).refusal_of(first_layer, end_layer)
    if refusal:
        raise UserError(f"{source.path.name} has no slice of layers {first_layer}-{end_layer - 1}: {refusal}.")
    part = Part(source, rules, first_layer, end_layer)
    tensors = plan_tensors(part)
    renamed = {step.name: step.target for step in tensors if step.origin and step.target}
    return SlicePlan(source, first_layer, end_layer, tuple(plan_keys(part, renamed)), tuple(tensors))
