"""`pipeinfer chat` in a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import pipeinfer
from pipeline_helpers import TARGET, alive, until, worker_pids
from terminal import Terminal

BEAR = "Tell me a long story about a bear."
SLOW = ["--stretch", "15", "--max-tokens", "400", "--seed", "1", "--logit-bias", "2-inf"]
"""Answers long and slow enough to be interrupted."""
Open = Callable[..., Terminal]


@pytest.fixture
def chat() -> Iterator[Open]:
    """Opens chats and waits for their first prompt."""
    opened = []

    def open_one(*options: object, **more: int) -> Terminal:
        opened.append(Terminal("chat", *options, **more))
        opened[-1].prompt()
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def figure(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def in_context(stats: str) -> int:
    return figure(stats, r"context +(\d+) of")


def test_two_turns_and_the_second_computes_only_what_is_new(chat: Open) -> None:
    c = chat("--pair", "demo-plain", "--temp", "0", "--max-tokens", "40")
    assert "/help" in c.said
    first = c.ask(BEAR)
    assert re.search(r"\n\d+ tokens · .* · off, 2 stages · exact$", first), first
    before = in_context(c.ask("/stats"))
    c.ask("What was its name?")
    stats = c.ask("/stats")
    new = in_context(stats) - before
    rows = figure(stats, r"runs +(\d+) rows")
    assert "in 2 turns" in stats and abs(rows - new) <= 2 < before, stats
    c.type("\x04")
    assert c.end() == 0


def test_ctrl_c_ends_the_answer_and_keeps_the_chat(chat: Open) -> None:
    c = chat(*SLOW)
    c.begin(BEAR)
    c.interrupt()
    said = c.prompt()
    assert "Cancelled; what was said stays." in said and "sent" in said
    assert "in 1 turn\n" in c.ask("/stats")
    workers = worker_pids(c.process.pid)
    c.ask("/set max_tokens 5")
    assert "Stopped at 5 tokens." in c.ask("Go on.")
    assert len(workers) == 3 and worker_pids(c.process.pid) == workers


def test_the_answer_that_was_cancelled_is_shown_as_it_is_remembered(chat: Open, tmp_path: Path) -> None:
    c = chat(*SLOW)
    c.begin(BEAR)
    answer = c.interrupt() + c.until("aborted mid-decode")
    c.prompt()
    c.ask(f"/save {tmp_path / 'chat.json'}")
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"][-1]["content"]
    assert "".join(saved.split()) in "".join(answer.replace("^C", "").split())


def test_ctrl_c_at_the_prompt(chat: Open) -> None:
    c = chat("--max-tokens", "5")
    c.type("half a line")
    c.until("half a line")
    c.interrupt()
    assert "Ctrl-D" not in c.prompt(), "what was typed is thrown away"
    c.interrupt()
    assert "Ctrl-D or /quit leaves" in c.prompt()
    assert "tokens ·" in c.ask("Hi")
    c.interrupt()
    c.prompt()
    c.interrupt()
    assert c.end() == 0


def test_commands(chat: Open, tmp_path: Path) -> None:
    c = chat("--max-tokens", "12", "--seed", "7", "--system", "Be brief.")
    shown = c.ask("/help")
    assert all(f"/{name}" in shown for name in ("help", "reset", "stats", "save", "load", "regen", "set", "quit"))
    assert "no answer yet" in c.ask("/regen")
    assert "did you mean /stats?" in c.ask("/stat")
    assert "There is no command /dance" in c.ask("/dance")
    c.ask(BEAR)
    path = tmp_path / "chat.json"
    assert c.ask(f"/save {path}") == f"Saved 1 turn to {path}."
    assert "Seed 8." in c.ask("/regen")
    assert "in 1 turn\n" in c.ask("/stats")
    assert c.ask("/reset") == "A new conversation."
    assert "0 of 1024 tokens in 0 turns" in c.ask("/stats")
    loaded = c.ask(f"/load {path}")
    assert loaded.startswith(f"Loaded 1 turn from {path}.\n> {BEAR}\n")
    assert "cannot be read" in c.ask(f"/load {tmp_path / 'none'}") and "/save FILE" in c.ask("/save")
    assert in_context(c.ask("/stats")) > 12
    messages = json.loads(path.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"] and messages[0]["content"] == "Be brief."
    c.type("/quit\n")
    assert c.end() == 0


def test_set(chat: Open) -> None:
    c = chat("--max-tokens", "5")
    assert c.ask("/set temp 0") == "temp is now 0."
    answer = c.ask(BEAR)
    assert "temp is 0, where a seed changes nothing" in c.ask("/regen")
    assert c.ask("/set max_tokens 3") == "max_tokens is now 3."
    assert "3 tokens ·" in c.ask("/regen") and "5 tokens ·" in answer
    assert "did you mean top_k?" in c.ask("/set top_kk 3")
    assert "must be a number, not 'warm'" in c.ask("/set temp warm")
    assert "--top-p must be" in c.ask("/set top_p 7") and "invalid grammar" in c.ask("/set grammar root")
    assert "must be one of" in c.ask("/set mode fast")
    c.ask("/set mode off")
    assert "· off, 2 stages" in c.ask("And?")
    c.ask('/set grammar root ::= "yes"')
    assert c.ask("And?").startswith("yes\n")
    shown = dict(line.split(maxsplit=1) for line in c.ask("/set").splitlines())
    assert (shown["mode"], shown["max_tokens"], shown["temp"], shown["top_p"]) == ("off", "3", "0.0", "0.95")


def test_a_full_context_forgets_the_oldest_turns_and_says_so(chat: Open) -> None:
    c = chat("--ctx-size", "128", "--max-tokens", "24", "--seed", "1", "--system", "You are a tiny demo model.")
    said = [c.ask(f"Tell me story number {i} about a small bear.") for i in range(5)]
    assert any("The context is full: the " in s and "forgotten" in s for s in said[1:]), said
    assert all(" tokens · " in s for s in said)
    assert "The message is too long" in c.ask("bear " * 150)
    assert " tokens · " in c.ask("And now?")


def test_an_answer_ends_where_the_context_does(chat: Open) -> None:
    c = chat("--ctx-size", "64", "--max-tokens", "500", "--logit-bias", "2-inf", "--seed", "1")
    assert "Stopped: the context is full." in c.ask(BEAR)
    assert "forgotten" in c.ask("And?")


def test_lines_that_go_on_and_show_draft(chat: Open, tmp_path: Path) -> None:
    c = chat("--show-draft", "--max-tokens", "30", "--seed", "1")
    assert "accepted draft" in c.said and "sibling" in c.said
    c.type("Tell me\\\n")
    c.until("… ")
    c.type("about a bear.\n")
    c.prompt()
    assert "\x1b[32m" in c.raw and "\x1b[1;37;44m" in c.raw, "draft and target"
    c.ask(f"/save {tmp_path / 'chat.json'}")
    assert json.loads((tmp_path / "chat.json").read_text())["messages"][0]["content"] == "Tell me\nabout a bear."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_no_process(chat: Open, number: int) -> None:
    c = chat(*SLOW)
    workers = worker_pids(c.process.pid)
    c.begin(BEAR)
    os.kill(c.process.pid, number)
    c.process.wait(10)
    until(lambda: not any(alive(pid) for pid in workers), 5)
    assert len(workers) == 3
    assert c.process.returncode == (-number if number == signal.SIGKILL else 128 + number)


def test_a_stage_that_dies_ends_the_chat_with_one_line(chat: Open) -> None:
    c = chat(*SLOW)
    c.begin(BEAR)
    stage = next(pid for pid, role in worker_pids(c.process.pid).items() if role == "stage")
    os.kill(stage, signal.SIGKILL)
    assert c.end() == 1
    assert re.search(r"\nError: Stage [01] .* was killed by signal 9.*\n$", c.said) and "Traceback" not in c.said


def test_lines_from_a_pipe() -> None:
    result = pipeinfer("chat", "--max-tokens", "5", "--temp", "0", given=b"Hi\n/dance\nAnd?\n")
    assert result.code == 0 and not result.left
    assert len(result.out.splitlines()) == 2 and "\x1b" not in result.out and "> " not in result.out
    assert result.err.count(" tokens · ") == 2 and "no command /dance" in result.err


def test_a_draft_that_is_here_is_offered() -> None:
    terminal = Terminal("chat", "--target", TARGET, "--stages", 1)
    try:
        said = terminal.until("Let it draft? [Y/n]: ")
        assert "demo-draft-q8_0.gguf (5.9 MB) is on this machine and has the same vocabulary." in " ".join(said.split())
        terminal.type("\n")
        said = " ".join(terminal.until("/help shows").split())
        assert "Memory needed on this machine (" in said and "tokens costs 8.6 kB." in said
        terminal.prompt()
        terminal.type("Hello\n")
        terminal.until("acceptance")
    finally:
        terminal.close()
