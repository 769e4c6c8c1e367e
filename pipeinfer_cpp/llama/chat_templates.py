"""The chat templates that llama.cpp knows by name."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.library import lib


def builtin_names() -> list[str]:
    """Sorted."""
    n = lib.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * n)()
    lib.llama_chat_builtin_templates(names, n)
    return sorted(name.decode() for name in names if name)


class BuiltinTemplate:
    """One of them, in the place of a `chat_template.ChatTemplate`."""

    def __init__(self, name: str) -> None:
        self.variables: dict[str, Any] = {}
        self.source = ""  # there is no Jinja text
        self._name = name.encode()

    def render(self, messages: Sequence[dict[str, str]], *, answer_follows: bool = True) -> str:
        """The text up to where the assistant's next answer begins."""
        parts = [(m["role"].encode(), m["content"].encode()) for m in messages]
        chat = (lib.llama_chat_message * len(parts))(*(lib.llama_chat_message(role, text) for role, text in parts))
        size = 0
        while True:
            buffer = ctypes.create_string_buffer(size)
            n: int = lib.llama_chat_apply_template(self._name, chat, len(parts), answer_follows, buffer, size)
            if n < 0:
                raise UserError(f"llama.cpp's chat template {self._name.decode()} refuses this conversation.")
            if n <= size:
                return buffer.raw[:n].decode("utf-8", "replace")
            size = n
