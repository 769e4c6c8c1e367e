"""Pictures of the chat page of a running server, in a headless Chromium.

    pipeinfer serve --pair demo --stages 3 &
    python scripts/page_pictures.py docs

Needs Playwright and a Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

QUESTION, STORY = "Who lives in the forest?", "Tell me a story about a little fox."
BROWSERS = "chromium-headless-shell", "chromium", "google-chrome"


def talk(page: Page, url: str) -> None:
    """One answer, and another one half-way."""
    page.goto(url)
    page.locator("#strip-stages i").first.wait_for()
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator(".figures", has_text="tokens").wait_for()
    page.locator("#question").fill(STORY)
    page.keyboard.press("Enter")
    page.locator("article.busy p").nth(2).wait_for()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8080/")
    given = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        for name, width, height, scheme in (
            ("light", 1100, 640, "light"),
            ("dark", 1100, 640, "dark"),
            ("phone", 360, 640, "light"),
        ):
            phone = name == "phone"
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                device_scale_factor=2 if phone else 1,
                is_mobile=phone,
                has_touch=phone,
            )
            page = context.new_page()
            talk(page, given.url)
            if name == "dark":
                page.locator("#strip").click()
                page.wait_for_timeout(300)
            page.screenshot(path=given.folder / f"page-{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
