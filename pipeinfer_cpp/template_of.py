"""Which chat template a model is asked with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.chat_template import ChatTemplate
    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
    from pipeinfer_cpp.llama.vocabulary import Vocabulary
    from pipeinfer_cpp.models import Pair


def template_of(
    target: Source,
    pair: Pair | None,
    vocabulary: Vocabulary | None,
    given: str | BuiltinTemplate | None,
    variables: dict[str, Any],
) -> ChatTemplate | BuiltinTemplate:
    """The one that was given (its Jinja text, or a built-in one), else the GGUF's, else the pair's.
    Raises UserError when there is none."""
    from pipeinfer_cpp.chat_template import ChatTemplate
    from pipeinfer_cpp.llama.chat_templates import builtin_names

    if given is not None and not isinstance(given, str):
        return given
    text = given or target.chat_template or (pair.chat_template if pair else None)
    if not text:
        raise UserError(
            f"{target.path.name} has no chat template: continue a text with `pipeinfer generate`, "
            "give the model a pair with a chat_template in models.toml, or name one with --chat-template: "
            f"a file, or one of {', '.join(builtin_names())}."
        )
    if vocabulary is None:
        return ChatTemplate(text, variables=variables)
    bos, eos = vocabulary.name(vocabulary.bos), vocabulary.name(vocabulary.eos)
    return ChatTemplate(text, bos=bos, eos=eos, variables=variables)
