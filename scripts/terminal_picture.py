"""A picture of a real terminal session, as the README shows it.

    python scripts/terminal_picture.py docs/chat.svg

Runs `make chat`, which must have installed everything before, in tmux; types, waits for what comes, and draws what
the terminal shows.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 96, 40
COMMAND = "make chat"
LINES = ("Who lives in the forest?", "Tell me a story about a little fox.")


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", "-L", "picture", *words], check=True, capture_output=True, text=True).stdout


def settled(seconds: float = 2.0, limit: float = 90.0) -> None:
    """Wait until the screen has not changed for that long."""
    began = last = time.monotonic()
    shown = ""
    while time.monotonic() - last < seconds and time.monotonic() - began < limit:
        time.sleep(0.1)
        now = tmux("capture-pane", "-p")
        if now != shown:
            shown, last = now, time.monotonic()


def record() -> str:
    """What the terminal shows in the end, with its colours."""
    tmux("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "env", "PS1=$ ", "TERM=xterm-256color", "sh")
    try:
        tmux("send-keys", COMMAND, "Enter")
        settled(4.0)
        for line in LINES:
            tmux("send-keys", line, "Enter")
            settled()
        return tmux("capture-pane", "-p", "-e")
    finally:
        tmux("kill-session")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the SVG to write")
    path = parser.parse_args().picture
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(record().rstrip("\n")))
    console.save_svg(str(path), title="make chat")
    return 0


if __name__ == "__main__":
    sys.exit(main())
