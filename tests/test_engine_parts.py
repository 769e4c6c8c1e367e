"""The engine's parts one by one, where a fault shows in no table and no random order."""

from __future__ import annotations
