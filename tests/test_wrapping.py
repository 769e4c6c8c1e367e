"""Generated text on a terminal: wrapped between words while it comes in pieces."""

from __future__ import annotations

import re
import textwrap

from hypothesis import given
from hypothesis import strategies as st
from terminal import Terminal
from wcwidth import wcswidth, wcwidth

from pipeinfer_cpp.ui.wrapping import Wrapper, filled

TEXT = "Once upon a time there was a little fox, who lived in an extraordinarily deep valley."


class Screen:
    """What a terminal of `width` columns makes of what is written. A wide character takes two cells."""

    def __init__(self, width: int) -> None:
        self.width, self.cells, self.column = width, [[""]], 0

    @property
    def lines(self) -> list[str]:
        return ["".join(line) for line in self.cells]

    def write(self, text: str) -> None:
        for code, steps, c in re.findall(r"(\x1b\[(\d*)[A-Za-z])|(.|\n|\r)", text):
            if code.endswith("D"):
                self.column -= min(self.column, int(steps))
            elif code.endswith("K"):
                del self.cells[-1][self.column :]
            elif c == "\n":
                self._new_line()
            elif c:
                n = wcwidth(c)
                if n == 0:
                    self.cells[-1][-1] += c
                    continue
                if self.column + n > self.width:
                    self._new_line()
                self.cells[-1][self.column :] = [c, *[""] * (n - 1)]
                self.column += n

    def _new_line(self) -> None:
        self.cells.append([])
        self.column = 0


def shown(pieces: list[str], width: int) -> list[str]:
    screen = Screen(width)
    wrapper = Wrapper(screen.write, lambda: width)
    for piece in pieces:
        wrapper(piece, lambda text: f"\x1b[32m{text}\x1b[0m")
    return [line.rstrip() for line in screen.lines]


def test_words_stay_whole_however_they_come() -> None:
    for size in (1, 3, 7, 100):
        pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
        assert shown(pieces, 25) == textwrap.wrap(TEXT, 24)


def test_line_breaks_of_the_text_stay() -> None:
    assert shown(["One\n\ntwo ", "three four"], 11) == ["One", "", "two three", "four"]


def test_a_word_longer_than_a_line_is_the_terminals() -> None:
    assert shown(["a ", "b" * 12, " cc"], 10) == ["a bbbbbbbb", "bbbb cc"]


def test_behind_wide_characters_words_stay_whole_too() -> None:
    assert shown(["狐 is a ", "fox and", "\nsays it is"], 10) == ["狐 is a", "fox and", "says it", "is"]
    assert shown(["🦊 → a little", " fox 🦊 runs"], 12) == ["🦊 → a", "little fox", "🦊 runs"]
    assert shown(["cafe\u0301 cafe\u0301"], 10) == ["cafe\u0301 cafe\u0301"]


def test_an_error_on_a_terminal_breaks_between_words() -> None:
    for columns in (40, 60):
        terminal = Terminal("generate", columns=columns)
        try:
            assert terminal.end() == 2
            lines = terminal.said.splitlines()
        finally:
            terminal.close()
        assert lines == textwrap.wrap(" ".join(lines), columns, break_on_hyphens=False) and len(lines) > 1
        assert " ".join(lines) == (
            "Error: Give one prompt: --prompt TEXT, --prompt-file FILE, or - to read stdin."
        )


def test_a_path_longer_than_a_line_stays_whole() -> None:
    path = "/a-folder/of-models/" + "x" * 40
    assert filled(f"There is no file {path} here.", 40) == f"There is no file\n{path}\nhere."


def test_east_asian_text_may_break_between_any_two_characters() -> None:
    assert shown(["狐狸住在森林里。"], 9) == ["狐狸住在", "森林里。"]


def test_the_width_is_the_terminals_at_each_moment() -> None:
    screen, width = Screen(40), [40]
    wrapper = Wrapper(screen.write, lambda: width[0])
    wrapper(TEXT[:40])
    width[0] = screen.width = 20
    wrapper(TEXT[40:] + " " + TEXT)
    assert all(len(line.rstrip()) < 20 for line in screen.lines[1:])


@given(st.lists(st.text("ab \n狐🦊→", max_size=8), max_size=20), st.integers(4, 20))
def test_no_character_is_lost(pieces: list[str], width: int) -> None:
    lines = shown(pieces, width)
    assert "".join("".join(lines).split()) == "".join("".join(pieces).split())
    assert all(wcswidth(line) <= width for line in lines)
