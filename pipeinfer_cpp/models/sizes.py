"""Sizes for people."""

from __future__ import annotations

_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}


def size_bytes(text: str) -> int | None:
    """The bytes of `1.2 GB`; None for text of another form."""
    number, _, unit = text.partition(" ")
    try:
        return round(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        return None


def size_text(n: float) -> str:
    """Decimal units, as disks and downloads have them: 1.2 GB, 340 MB, 12 kB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 10 * size or unit != "MB" else f"{n / size:.0f} {unit}"
    return f"{n / 1000:.0f} kB"
