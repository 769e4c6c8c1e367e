"""Sizes for people."""

from __future__ import annotations


def size_text(n: float) -> str:
    """Decimal units, as disks and downloads have them: 1.2 GB, 340 MB, 12 kB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 10 * size or unit != "MB" else f"{n / size:.0f} {unit}"
    return f"{n / 1000:.0f} kB"
