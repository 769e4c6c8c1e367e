"""A headless Chromium for the page's tests, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"


@contextmanager
def chromium() -> Iterator[Any]:
    """Skips the test where Playwright or a browser is missing, and says how to get it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as p:
        try:
            browser = p.chromium.launch(executable_path=path)
        except playwright.Error as error:
            if path is not None:
                raise
            pytest.skip(f"no Chromium: apt-get install chromium, or playwright install chromium ({error.message[:80]})")
        try:
            yield browser
        finally:
            browser.close()
