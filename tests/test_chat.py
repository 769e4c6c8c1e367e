"""`pipeinfer chat` in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest
from cli_helpers import COMMAND, pipeinfer
from pipeline_helpers import TARGET, alive, until, worker_pids
from terminal import Terminal
from tiny_models import Tiny, build

BEAR = "Tell me a long story about a bear."
SLOW = ["--verbose", "--stretch", "15", "--max-tokens", "400", "--seed", "1", "--logit-bias", "2-inf"]
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
    c = chat("--verbose", "--pair", "demo-plain", "--temp", "0", "--max-tokens", "40")
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
    hinted = c.ask("/stat")
    assert "/stat is no command, so it is said to the model. Did you mean /stats?" in hinted and " tokens · " in hinted
    assert " tokens · " in (said := c.ask("//stats")) and "no command" not in said
    c.ask("/reset")
    c.ask(BEAR)
    path = tmp_path / "chat.json"
    assert c.ask(f"/save {path}") == f"Saved 1 turn to {path}."
    assert "is there already: /save --force" in c.ask(f"/save {path}")
    assert c.ask(f"/save --force {path}") == f"Saved 1 turn to {path}." and path.stat().st_mode & 0o777 == 0o600
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
    c = chat("--max-tokens", "5", "--verbose")
    assert c.ask("/set temp 0") == "temp is now 0."
    answer = c.ask(BEAR)
    assert "temp is 0, where a seed changes nothing" in c.ask("/regen")
    assert c.ask("/set max_tokens 3") == "max_tokens is now 3."
    assert "3 tokens ·" in c.ask("/regen") and "5 tokens ·" in answer
    assert "did you mean top_k?" in c.ask("/set top_kk 3")
    assert "did you mean repeat_penalty?" in c.ask("/set repeat_p 1")
    assert "did you mean max_tokens?" in c.ask("/set max 3")
    assert "must be a number, not 'warm'" in c.ask("/set temp warm")
    assert c.ask("/set top_p 7").startswith("Error: top_p must be") and "invalid grammar" in c.ask("/set grammar root")
    assert c.ask("/set mode fast").startswith("Error: mode must be one of")
    assert "did you mean temp?" in c.ask("/set temperature 1")
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
    c = chat("--ctx-size", "64", "--logit-bias", "2-inf", "--seed", "1")
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


def questions(c: Terminal, path: Path) -> list[str]:
    c.ask(f"/save --force {path}")
    return [m["content"] for m in json.loads(path.read_text())["messages"] if m["role"] == "user"]


def test_many_lines_are_one_message(chat: Open, tmp_path: Path) -> None:
    c, path = chat("--max-tokens", "3", "--no-save"), tmp_path / "chat.json"
    c.ask("\x1b[200~one\r\ntwo\rthree\x1b[201~")
    c.ask("four\x1b\rfive")
    c.type('"""six\n')
    c.until("… ")
    c.ask('seven"""')
    assert questions(c, path) == ["one\ntwo\nthree", "four\nfive", "six\nseven"]


def test_history_and_completion(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    c = chat("--max-tokens", "3")
    c.ask("a question about bears")
    c.type("/quit\n")
    c.end()
    c = chat("--max-tokens", "3")
    c.ask("\x1b[A\x1b[A")
    assert "\x1b" not in (said := c.ask("\x12bears\r")) and " tokens · " in said
    c.ask("/set max_t\t 2")
    assert "Stopped at 2 tokens." in c.ask("Go")
    assert questions(c, path) == ["a question about bears"] * 2 + ["Go"]
    assert "Saved 3 turns" in c.ask(f"/save --force {str(path)[:-6]}\t")
    history = Path(os.environ["XDG_STATE_HOME"]) / "pipeinfer" / "history"
    assert "+a question about bears" in history.read_text() and history.stat().st_mode & 0o777 == 0o600


def test_what_is_typed_during_an_answer_waits_for_the_next_prompt(chat: Open, tmp_path: Path) -> None:
    c = chat("--stretch", "15", "--max-tokens", "40", "--seed", "1", "--logit-bias", "2-inf", "--no-save")
    c.begin(BEAR)
    c.type("What was its name?\nhalf ")
    said = c.until("half", 60)
    answer = said.partition("tokens · ")[0]
    assert "its name" not in answer and said.count(" tokens · ") == 2 and "> What was its name?" in said
    c.ask("a line")
    assert questions(c, tmp_path / "chat.json") == [BEAR, "What was its name?", "half a line"]


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


def a_stage(c: Terminal) -> int:
    return next(pid for pid, role in worker_pids(c.process.pid).items() if role == "stage")


def answers(path: Path) -> list[str]:
    return [m["content"] for m in json.loads(path.read_text())["messages"] if m["role"] == "assistant"]


QUESTIONS = [BEAR, "What was its name?", "Where did it live?", "And then?", "Who came by?", "How did it end?"]


def test_six_turns_survive_their_pipeline_and_their_own_end(chat: Open, tmp_path: Path) -> None:
    """A stage killed in turn 2, another frozen for 20 s in turn 4, the chat itself killed in turn 5 and resumed."""
    options = ["--pair", "demo", "--stages", 2, "--stretch", "5", "--max-tokens", "60", "--temp", "0.7"]
    options += ["--logit-bias", "2-inf", "--ctx-size", "1024"]
    c = chat(*options, "--seed", 3, "--no-save")
    for question in QUESTIONS:
        c.ask(question)
    c.ask(f"/save {tmp_path / 'undisturbed.json'}")
    c.type("/bye\n")
    c.end()

    c = chat(*options, "--seed", 3)
    c.ask(QUESTIONS[0])
    c.begin(QUESTIONS[1])
    os.kill(a_stage(c), signal.SIGKILL)
    said = c.prompt(60)
    assert "was killed by signal 9" in said and "Starting it again" in said and "another one" not in said
    assert said.count("is back, and the text goes on") == 1 and "\n" in said[: said.index("was killed")]
    c.ask(QUESTIONS[2])
    c.begin(QUESTIONS[3])
    frozen = a_stage(c)
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(20)
    with contextlib.suppress(ProcessLookupError):  # the chat has put another one in its place
        os.kill(frozen, signal.SIGCONT)
    assert "another one" not in c.prompt(60)
    c.begin(QUESTIONS[4])
    c.process.kill()
    c = Terminal("chat", *options, "--resume", 1)
    try:
        assert QUESTIONS[4] in c.prompt(60)
        c.ask(QUESTIONS[5])
        c.ask(f"/save {tmp_path / 'disturbed.json'}")
        listed = c.ask("/resume")
        assert re.search(r"^ *1 +6 turns: Tell me a long story", listed, re.M), listed
    finally:
        c.close()
    assert answers(tmp_path / "disturbed.json") == answers(tmp_path / "undisturbed.json")
    assert len(answers(tmp_path / "disturbed.json")) == 6
    pasts = [json.loads((tmp_path / f"{name}.json").read_text())["past"] for name in ("disturbed", "undisturbed")]
    assert pasts[0] == pasts[1], "each cell was computed in the batch that it was first computed in"


def test_a_stage_that_dies_between_two_answers(chat: Open) -> None:
    c = chat("--max-tokens", "5", "--seed", 3)
    c.ask(BEAR)
    os.kill(a_stage(c), signal.SIGKILL)
    assert " tokens · " in c.ask(QUESTIONS[1])


def test_what_happens_at_a_prompt_is_said_above_it(chat: Open) -> None:
    """What was typed so far stays, and is not mixed with it."""
    c = chat("--max-tokens", "5", "--seed", 3, "--no-save")
    c.ask(BEAR)
    c.type("half")
    c.until("half")
    os.kill(a_stage(c), signal.SIGKILL)
    c.until("is back, and the text goes on.\n> half")
    c.type(" a question\n")
    assert " tokens · " in c.prompt()


def test_a_chat_whose_pipeline_did_not_start_again_goes_on_once_it_can(chat: Open) -> None:
    c = chat("--max-tokens", "5", "--seed", 3, "--no-save")
    c.ask(BEAR)
    c.type(QUESTIONS[1] + "\n")
    deadline = time.monotonic() + 60
    while "ask again to start the pipeline once more" not in c.said and time.monotonic() < deadline:
        for pid, role in worker_pids(c.process.pid).items():
            if role == "stage":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            c.until("ask again to start the pipeline once more", 0.1)
    c.prompt()
    assert "· async, 2 stages" in c.ask("/stats")
    assert c.ask('/set grammar root ::= "yes"').endswith("grammar is now root ::= \"yes\".")
    assert c.ask(QUESTIONS[1]).startswith("yes\n")


def test_ctrl_z_and_fg_in_a_shell() -> None:
    """Within an answer, and at the prompt."""
    shell = Terminal("-i", command=["env", "PS1=$ ", "sh"])  # a shell that leaves the terminal as it finds it
    try:
        shell.until("$ ")
        command = " ".join(map(shlex.quote, [*COMMAND, "chat", *SLOW[1:], "--no-save"]))
        shell.type(f"{command}\n")
        shell.until("\n> ", 60)
        shell.begin(BEAR)
        shell.type("\x1a")
        shell.until("Stopped")
        time.sleep(3)
        shell.type("echo shown; stty -a\n")
        said = shell.until("\nshown")
        assert " icanon" in shell.until("icanon") and "echo shown" in said, "the shell has its terminal"
        shell.type("fg\n")
        said = shell.until("tokens/s", 60)
        assert "Note" not in said and "again" not in said and len(said.split()) > 30, said
        shell.until("\n> ")
        shell.type("half \x1a")
        shell.until("Stopped")
        shell.type("fg\n")
        shell.until("> half")
        shell.type("\x15/bye\n")
        shell.until("$ ")
    finally:
        shell.close()


def test_frozen_stages_and_suspended_chats_go_on(chat: Open, tmp_path: Path) -> None:
    """A stage that is stopped for 5 s within an answer, and the chat itself within another one."""
    options = ["--stretch", "10", "--max-tokens", "60", "--temp", "0.7", "--logit-bias", "2-inf", "--no-save"]
    c, saved = chat(*options, "--seed", 3), []
    for question in QUESTIONS[:2]:
        c.ask(question)
    c.ask(f"/save {tmp_path / 'undisturbed.json'}")
    c = chat(*options, "--seed", 3)
    for i, question in enumerate(QUESTIONS[:2]):
        c.begin(question)
        workers = worker_pids(c.process.pid)
        pid = next(pid for pid, role in workers.items() if role == "stage") if i == 0 else c.process.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        with contextlib.suppress(ProcessLookupError):  # the chat has put another one in its place
            os.kill(pid, signal.SIGCONT)
        if i:
            c.type("/he")
        saved.append(c.prompt(60) if i == 0 else c.until("> /he", 60))
    assert "/he" not in saved[1].partition("tokens/s")[0], "what is typed is not shown within the answer"
    c.ask("\x15/set temp 0.7")
    c.ask(f"/save {tmp_path / 'disturbed.json'}")
    assert answers(tmp_path / "disturbed.json") == answers(tmp_path / "undisturbed.json")


def test_40_columns(chat: Open, tmp_path: Path) -> None:
    c = chat("--max-tokens", "60", "--seed", "1", "--logit-bias", "2-inf", columns=40)
    c.type("Tell me a very long story about a bear and its friends.\n")
    c.until("tokens/s")
    c.prompt()
    screen = pyte.Screen(40, 50)
    pyte.Stream(screen).feed(c.raw)
    lines = [line.rstrip() for line in screen.display]
    first = max(i for i, line in enumerate(lines) if line.endswith("its friends.")) + 1
    answer = lines[first : next(i for i, line in enumerate(lines) if line.startswith("Stopped at"))]
    assert len(answer) > 4 and all(len(line) < 40 for line in answer)
    c.ask(f"/save {tmp_path / 'c'}")
    messages = json.loads((tmp_path / "c").read_text())["messages"]
    assert messages[0]["content"] == "Tell me a very long story about a bear and its friends."
    shown = " ".join("\n".join(answer).split())
    assert " ".join(messages[1]["content"].split()) in shown


def test_lines_from_a_pipe() -> None:
    result = pipeinfer("chat", "--max-tokens", "5", "--temp", "0", given=b"Hi\n/dance\nAnd?\n/set temp warm\n")
    assert result.code == 0 and not result.left
    assert len(result.out.splitlines()) == 3 and "\x1b" not in result.out and "> " not in result.out
    assert result.err.count(" tokens · ") == 3 and "/dance is no command" in result.err


def test_what_stands_behind_an_answer() -> None:
    short = pipeinfer("chat", "--max-tokens", "5", "--temp", "0", given=b"Hi\n").err.splitlines()[-1]
    assert re.fullmatch(r"5 tokens · [\d.]+ tokens/s · acceptance [\d.]+", short)
    result = pipeinfer("chat", "--max-tokens", "50", "--temp", "0", "--quiet", given=b"Hi\n")
    assert result.err == "" and result.out


def test_another_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}{{ m.content if loud else '' }}{% endfor %}")
    options = ["chat", "--max-tokens", "5", "--temp", "0", "--chat-template"]
    done = pipeinfer(*options, path, given=b"Once upon a time\n")
    assert done.code == 1 and "leaves out what was said" in done.err
    assert pipeinfer(*options, path, "--chat-template-kwargs", '{"loud": 1}', given=b"Once upon a time\n").code == 0
    assert pipeinfer(*options, "chatml", given=b"Hi\n").out == pipeinfer(*options[:-1], given=b"Hi\n").out != ""
    no_object = (path, "--chat-template-kwargs", "1"), "not a JSON object"
    for bad, words in ((("chatm",), "did you mean chatml?"), no_object):
        done = pipeinfer(*options, *bad, given=b"Hi\n")
        assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1


THINKING = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if enable_thinking is false %}No. {% else %}<think>"
THINKING += "{% endif %}"


def test_thoughts_are_dimmed_or_folded_or_not_thought(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(THINKING)
    c = chat("--chat-template", path, "--grammar", 'root ::= "hm</think>yes"', "--no-save")
    assert c.ask("Hi").startswith("hmyes\n") and "\x1b[2mh" in c.raw
    assert c.ask("/think fold") == "think is now fold."
    assert c.ask("Hi").startswith("(thinking) yes\n")
    assert c.ask("/think off") == "think is now off."
    assert c.ask("Hi").startswith("hm</think>yes\n"), "no thought was begun"
    assert "one of on, fold, off" in c.ask("/think loud")
    c = chat("--chat-template", path, "--grammar", 'root ::= "hm</think>yes"', "--no-save", "--reasoning-budget", 0)
    assert c.ask("Hi").startswith("hm</think>yes\n")
    c.ask("/think on")
    assert c.ask("Hi").startswith("hmyes\n")


def test_a_reasoning_budget_that_cannot_be_kept() -> None:
    for bad, words in ((0, "this one has none"), (50, "is 0 (no thoughts) or -1")):
        done = pipeinfer("chat", "--reasoning-budget", bad, given=b"Hi\n")
        assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1


def test_a_model_without_a_template_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    build(tmp_path / "bare.gguf", Tiny(chat_template=None))
    (tmp_path / "models.toml").write_text('[pair.x]\ntarget = { path = "bare.gguf" }\n')
    models = ["--models", tmp_path / "models.toml", "--pair", "x"]
    for given in (["--target", tmp_path / "bare.gguf"], models):
        done = pipeinfer("chat", *given, given=b"Hi\n")
        assert done.code == 2 and "has no chat template" in done.err and "chatml, " in done.err
        assert len(done.err.splitlines()) == 1, "nothing was planned, nothing was started"
    done = pipeinfer("chat", *models, "--chat-template", "chatml", "-n", 3, "--seed", 1, given=b"Hi\n" * 4)
    assert done.code == 0 and "\ufffd" in done.out, "also where an answer ends with half a character"


@pytest.mark.parametrize("command", ["models inspect {}", "chat --target {} -n 3"])
def test_what_a_model_says_of_itself_does_not_steer_the_terminal(tmp_path: Path, command: str) -> None:
    build(tmp_path / "m.gguf", Tiny(name="evil \x1b]0;owned\x07 [bold]\x9b2J"))
    terminal = Terminal(*command.format(tmp_path / "m.gguf").split())
    try:
        said = terminal.until(r"evil \x1b]0;owned\x07 [bold]\x9b2J", 60)
        assert "\x1b]0;" not in terminal.raw and "\x9b" not in said
    finally:
        terminal.close()


def test_what_a_template_says_does_not_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ raise_exception('\x1b]0;owned\x07\x9b2J') }}")
    done = pipeinfer("chat", "--chat-template", path, given=b"Hi\n")
    assert done.code == 1 and r"\x1b]0;owned\x07\x9b2J" in done.err and "\x1b" not in done.err


def test_piped_questions_that_all_failed_are_no_success() -> None:
    result = pipeinfer("chat", "--ctx-size", "64", "--max-tokens", "5", given=b"bear " * 150)
    assert result.code == 1 and "The message is too long" in result.err


def test_a_draft_that_is_here_is_offered() -> None:
    terminal = Terminal("chat", "--target", TARGET, "--stages", 1)
    try:
        said = terminal.until("Use it as the draft model? [Y/n]: ")
        assert "demo-draft-q8_0.gguf (5.9 MB) is on this machine and has the same vocabulary." in " ".join(said.split())
        terminal.type("\n")
        said = " ".join(terminal.until("/help shows").split())
        assert "Memory needed on this machine (" in said and "tokens costs 8.6 kB." in said
        terminal.prompt()
        terminal.type("Hello\n")
        terminal.until("acceptance")
    finally:
        terminal.close()
