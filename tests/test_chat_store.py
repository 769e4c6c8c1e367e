"""Chats on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_conversation import conversation, turn

from pipeinfer_cpp.cli.chat_store import KEPT, ChatStore, worth_saying
from pipeinfer_cpp.errors import UserError


def test_one_file_a_chat_for_its_owner_only_and_the_newest_stay(tmp_path: Path) -> None:
    for i in range(KEPT + 3):
        store, c = ChatStore(tmp_path / "chats"), conversation()
        turn(c, f"question {i}")
        store.write(c, seed=i)
        turn(c, "and?")
        store.write(c, seed=i)
    files = list((tmp_path / "chats").iterdir())
    assert len(files) == KEPT and all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    newest = store.newest()
    assert newest[0].messages[0]["content"] == f"question {KEPT + 2}" and newest[0].seed == KEPT + 2
    assert newest[-1].messages[0]["content"] == "question 3"


def test_an_open_question_is_kept_and_a_resumed_chat_goes_on_in_its_file(tmp_path: Path) -> None:
    store, c = ChatStore(tmp_path), conversation()
    turn(c, "Hi")
    c.ask("And?", reserve=10)
    store.write(c, seed=1, asked="And?")
    (tmp_path / "broken.json").write_text("{")
    store, again = ChatStore(tmp_path), conversation()
    saved = store.resume(1, again)
    assert saved.asked == "And?" and again.n_turns == 1
    turn(again, "And?")
    store.write(again, seed=1)
    assert len(list(tmp_path.iterdir())) == 2 and len(store.newest()[0].messages) == 4
    with pytest.raises(UserError, match=r"no chat 2: there are 1 \(the newest\) to 1"):
        store.resume(2, again)


def test_two_chats_that_go_on_with_the_same_one_lose_nothing(tmp_path: Path) -> None:
    store, c = ChatStore(tmp_path), conversation()
    turn(c, "Hi")
    store.write(c, seed=1)
    both = [(ChatStore(tmp_path), conversation()) for _ in range(2)]
    for own, its in both:
        own.resume(1, its)
    for number in range(2):
        for name, (own, its) in zip("ab", both, strict=True):
            turn(its, f"{name}{number}")
            own.write(its, seed=1)
    found = [[m["content"] for m in chat.messages if m["role"] == "user"] for chat in store.newest()]
    assert sorted(found) == [["Hi", "a0", "a1"], ["Hi", "b0", "b1"]]


def test_not_enabled_it_writes_nothing(tmp_path: Path) -> None:
    store, c = ChatStore(tmp_path, enabled=False), conversation()
    turn(c, "Hi")
    store.write(c, seed=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no chat to resume"):
        store.resume(1, c)


def test_what_never_helps_is_said_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chat or by `generate`, whichever comes first."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cores, other = "3 processes share 2 cores here: expect no speed-up on this machine.", "Something else."
    assert [worth_saying([cores, other]) for _ in range(2)] == [[cores, other], [other]]
