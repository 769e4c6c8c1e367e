"""Which models there are, and how they get here. Start with `load_registry`."""

from pipeinfer_cpp.models.files import ModelFile, pull
from pipeinfer_cpp.models.registry import Pair, Registry, Speculation, bundled_toml, load_registry, user_toml

__all__ = ["ModelFile", "Pair", "Registry", "Speculation", "bundled_toml", "load_registry", "pull", "user_toml"]
