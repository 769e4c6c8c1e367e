"""`pipeinfer top` on a server, and `/top` in a chat."""

from __future__ import annotations

import contextlib
import http.server
import json
import stat
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cli_helpers import ENV, pipeinfer
from serving import serving
from terminal import PROMPT, Terminal

from pipeinfer_cpp.cluster.live import Live
from pipeinfer_cpp.cluster.window import Window, windows
from pipeinfer_cpp.ui.live_view import bar, spark


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = "--pair", "demo", "--stages", "2", "--slots", "1", "--api-key", "sesame"
    with serving(tmp_path_factory.mktemp("top"), *options) as server:
        yield f"{server.url}/"


def ask(url: str, max_tokens: int = 20) -> None:
    messages = [{"role": "user", "content": "Tell me a story."}]
    body = json.dumps({"messages": messages, "max_tokens": max_tokens, "stream": True}).encode()
    headers = {"Authorization": "Bearer sesame", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}v1/chat/completions", body, headers)
    with urllib.request.urlopen(request) as answer:
        assert b"[DONE]" in answer.read()


def test_sparks() -> None:
    assert spark([0.0, 0.5, 1.0, None], 1.0) == "▁▅█·"
    assert spark([1, 2, 4]) == "▃▅█"
    assert spark([0, 0]) == "··"
    assert [bar(share, 2) for share in (0.0, 0.25, 0.5, 1.0, 7.0)] == ["  ", "▌ ", "█ ", "██", "██"]


def test_one_look(url: str) -> None:
    ask(url)
    looked = pipeinfer("top", url, "--api-key", "sesame", "--once")
    assert looked.code == 0, looked.err
    for name in ("tokens/s", "acceptance", "stage", "queue", "slot", "a prompt of"):
        assert name in looked.out
    assert [line.split()[:2] for line in looked.out.splitlines() if line[:2] in ("0 ", "1 ")][:2] == [
        ["0", "0-5"],
        ["1", "6-11"],
    ]
    as_json = pipeinfer("top", url, "--api-key", "sesame", "--json")
    now = msgspec.json.decode(as_json.out.encode(), type=Live)
    assert len(now.stages) == 2 and now.tokens > 0


def test_it_is_live_and_ctrl_c_ends_it(url: str) -> None:
    with contextlib.closing(Terminal("top", url, "--api-key", "sesame", "--interval", "0.1", columns=100)) as terminal:
        terminal.until("sends")
        terminal.type("")
        ask(url, 7)
        terminal.until("7 tokens, ended by length.")
        terminal.interrupt()
        assert terminal.end() == 0


def test_a_server_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, "--pair", "demo", "--stages", "1") as server:
        terminal = Terminal("top", server.url, "--interval", "0.1", columns=100)
        terminal.until("sends")
    with contextlib.closing(terminal):
        terminal.until("It does not answer any more; what is shown is what it said last.")
        terminal.interrupt()
        assert terminal.end() == 0


def test_what_cannot_be_watched_is_said_in_a_sentence(url: str) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    other = f"127.0.0.1:{server.server_port}"
    cases = {
        (url,): (2, "asks for an API key: give it with --api-key"),
        ("127.0.0.1:9",): (1, "Nothing answers at http://127.0.0.1:9: start `pipeinfer serve` there"),
        (other,): (2, f"What answers at http://{other} is no pipeinfer server (it answered with 404)."),
        ("ftp://x",): (2, "'ftp://x' is no address"),
        (url, "--interval", "0"): (2, "--interval must be between 0.05 and 3600 seconds."),
    }
    for args, (code, said) in cases.items():
        got = pipeinfer("top", *args)
        assert (got.code, got.out) == (code, "") and said in got.err and got.err.count("\n") == 1
    server.shutdown()


def test_a_pipeline_of_this_machine_is_found_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))  # a socket's path has to be short
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        for module in ("cli_helpers", "terminal"):
            monkeypatch.setattr(f"{module}.ENV", {**ENV, "XDG_RUNTIME_DIR": folder})
        assert windows() == {}
        chats = [Terminal("chat", "--pair", "demo", "--stages", str(n), "--no-save") for n in (1, 2)]
        for chat in chats:
            stack.callback(chat.close)
            chat.until(PROMPT)
        pids = [chat.process.pid for chat in chats]
        several = pipeinfer("top", "--once")
        assert several.code == 2 and all(str(pid) in several.err for pid in pids)
        for n, pid in enumerate(pids, 1):
            looked = pipeinfer("top", pid, "--json")
            assert len(msgspec.json.decode(looked.out.encode(), type=Live).stages) == n
        chats[1].type("/bye\n")
        assert chats[1].end() == 0
        [(pid, path)] = windows().items()
        assert pid == pids[0] and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        chats[0].ask("Who?")
        looked = pipeinfer("top", "--once")
        assert looked.code == 0 and "ended by" in looked.out
        missing = pipeinfer("top", pids[1])
        assert missing.code == 2 and f"Process {pids[1]} has no pipeline" in missing.err and str(pid) in missing.err
        chats[0].process.kill()
        chats[0].process.wait()
        assert windows() == {} and not list(path.parent.iterdir())


def test_a_folder_of_others_is_no_place_for_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "pipeinfer").mkdir(mode=0o777)
    (tmp_path / "pipeinfer").chmod(0o777)
    with pytest.raises(PermissionError):
        Window(lambda: pytest.fail("nobody may look"))
    assert windows() == {}


def test_a_chat_shows_the_stages_behind_an_answer() -> None:
    command = "chat", "--pair", "demo", "--stages", "2", "--no-save", "--temp", "0"
    with contextlib.closing(Terminal(*command)) as terminal:
        terminal.until(PROMPT)
        assert "0 in flight" in terminal.ask("/top")
        said = terminal.ask("Who lives in the forest?")
        line = next(line for line in said.splitlines() if line.startswith("stages "))
        assert "acceptance 0." in line or "acceptance 1." in line
        assert float(line.split()[-2]) > 0
        assert "is off" in terminal.ask("/top")
        assert "stages " not in terminal.ask("Who?")
