"""A model as GGUF: one file, or several parts that llama.cpp loads as one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.digest import hash_files
from pipeinfer_cpp.gguf.header import DEFAULT_ALIGNMENT, Header, Key, Tensor, read_header
from pipeinfer_cpp.system.reports import CountReport

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_BOS_BY_DEFAULT = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
)  # fmt: skip
"""Byte-level pre-tokenizers that prepend a bos unless the file says otherwise (llama-vocab.cpp)."""


@dataclass(frozen=True)
class Source:
    """A readable GGUF model. Its header is in memory, its tensor data is not; no file stays open.

    Make one with `Source.open`. `path` is the (first) file; `keys` are those of the first part.
    """

    path: Path
    parts: tuple[Path, ...]
    keys: dict[str, Key] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    size_bytes: int

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Source:
        """Read a model's header(s); any part of a multi-part file will do.

        Raises UserError when a file is missing, truncated, damaged or no GGUF model.
        """
        given = Path(path).expanduser()
        match = _PART.match(given.name)
        first = given.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf") if match else given
        head = read_header(first)
        _check_model(head)
        n_parts = _scalar(head, "split.count", int, 1)
        headers = [head]
        if n_parts > 1:
            headers += [_read_part(first, number, n_parts) for number in range(2, n_parts + 1)]
        tensors: dict[str, Tensor] = {}
        for header in headers:
            tensors.update(header.tensors)
        n_tensors = _scalar(head, "split.tensors.count", int, len(tensors))
        if len(tensors) != n_tensors:
            raise UserError(f"The parts of {first} hold {len(tensors)} tensors of {n_tensors}: fetch them again.")
        size = sum(header.size_bytes for header in headers)
        source = Source(first, tuple(header.path for header in headers), head.keys, tensors, size)
        source._check_layers()
        return source

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key, `{arch}` in its name standing for the architecture."""
        key = self.keys.get(name.replace("{arch}", self.architecture))
        return default if key is None else key.read()

    @cached_property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"].value)

    @cached_property
    def n_layers(self) -> int:
        """Layers of the trunk: without those behind it that predict several tokens at once."""
        return int(self.get("{arch}.block_count")) - self.n_layers_beyond

    @cached_property
    def n_layers_beyond(self) -> int:
        """Layers behind the trunk, which predict several tokens at once and are never computed here."""
        n, n_all = int(self.get("{arch}.nextn_predict_layers", 0) or 0), int(self.get("{arch}.block_count"))
        if self.architecture == "deepseek4" and f"blk.{n_all - n}.nextn.eh_proj.weight" not in self.tensors:
            return 0
        return n if 0 <= n < n_all else 0

    @cached_property
    def n_embd(self) -> int:
        return int(self.get("{arch}.embedding_length"))

    @cached_property
    def n_vocab(self) -> int:
        """Number of tokens: of the vocabulary, or where there is none, of the embedding."""
        key = self.keys.get("tokenizer.ggml.tokens")
        embedding = self.tensors.get("token_embd.weight")
        rows = embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0
        return key.count if key else int(self.get("{arch}.vocab_size", rows))

    @cached_property
    def n_ctx_train(self) -> int:
        return int(self.get("{arch}.context_length", 0))

    @cached_property
    def name(self) -> str:
        return str(self.get("general.name", self.path.stem))

    @cached_property
    def chat_template(self) -> str | None:
        template = self.get("tokenizer.chat_template")
        return None if template is None else str(template)

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary's texts as stored (byte-level or with U+2581 for spaces); [] without one."""
        return list(self.get("tokenizer.ggml.tokens", []))

    @cached_property
    def token_types(self) -> list[int]:
        """1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; [] when not stored."""
        return list(self.get("tokenizer.ggml.token_type", []))

    @cached_property
    def vocab_type(self) -> str:
        """llama.cpp's name of the tokenizer: "gpt2", "llama", ..."""
        return str(self.get("tokenizer.ggml.model", "no_vocab"))

    @cached_property
    def add_bos(self) -> bool:
        """Whether the tokenizer prepends `bos`: as stored, else llama.cpp's default."""
        default = self.vocab_type in ("llama", "bert") or self.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT
        return bool(self.get("tokenizer.ggml.add_bos_token", default))

    @cached_property
    def add_eos(self) -> bool:
        return bool(self.get("tokenizer.ggml.add_eos_token", self.vocab_type == "t5"))

    @cached_property
    def bos(self) -> int | None:
        return self._token_id("bos", {"llama": 1, "gpt2": 11})

    @cached_property
    def eos(self) -> int | None:
        return self._token_id("eos", {"llama": 2, "gpt2": 11})

    @cached_property
    def alignment(self) -> int:
        return int(self.get("general.alignment", DEFAULT_ALIGNMENT))

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the token embedding."""
        return "output.weight" not in self.tensors

    def sha256(self, progress: CountReport | None = None) -> str:
        """SHA-256 of the content (of all parts, one after the other), 64 hex digits.

        Remembered in the cache folder by path, size and times of each part, so a second call is
        cheap. `progress` is called with bytes done and bytes in all, only when hashing is needed.
        """
        return hash_files(self.parts, progress)

    def _token_id(self, which: str, defaults: dict[str, int]) -> int | None:
        value = self.get(f"tokenizer.ggml.{which}_token_id", defaults.get(self.vocab_type))
        return None if value is None else int(value)

    def _check_layers(self) -> None:
        for key in ("{arch}.block_count", "{arch}.embedding_length"):
            if not isinstance(self.get(key), int) or self.get(key) < 1:
                name = key.replace("{arch}", self.architecture)
                raise UserError(f"{self.path} is no language model that can be cut: its key {name} is missing.")
        if "tokenizer.ggml.tokens" not in self.keys and not self.n_vocab:
            raise UserError(f"{self.path} has neither a vocabulary nor a token embedding: fetch a complete model.")


def _check_model(head: Header) -> None:
    if not isinstance(head.keys["general.architecture"].value if "general.architecture" in head.keys else None, str):
        raise UserError(f"{head.path} names no architecture: it is not a model (or not its first part).")
    kind = _scalar(head, "general.type", str, "model")
    if kind != "model":
        raise UserError(f"{head.path} is a GGUF of type {kind!r}, not a model: give the model's own file.")


def _read_part(first: Path, number: int, count: int) -> Header:
    match = _PART.match(first.name)
    if not match or int(match["count"]) != count:
        raise UserError(f"{first} is the first of {count} parts: its name must end in -00001-of-{count:05d}.gguf.")
    path = first.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
    if not path.exists():
        raise UserError(f"Part {number} of {count} is missing: put {path.name} next to {first}.")
    header = read_header(path)
    if _scalar(header, "split.no", int, number - 1) != number - 1:
        raise UserError(f"{path} is not part {number} of {first.name}, whatever its name says: fetch the parts again.")
    return header


def _scalar(header: Header, name: str, kind: type[Any], default: Any) -> Any:
    value = header.keys[name].value if name in header.keys else default
    if not isinstance(value, kind):
        raise UserError(f"{header.path} is damaged: its key {name} is not of type {kind.__name__}; fetch it again.")
    return value
