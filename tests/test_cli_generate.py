"""`pipeinfer generate`: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Ended, ended, left_by, pipeinfer, started
from pipeline_helpers import DRAFT, PROMPT, TARGET, alive, until, worker_pids

GREEDY = ["--raw", "--temp", "0", "--max-tokens", "16"]
LINE = re.compile(
    r"16 tokens · [\d.]+ tokens/s · first after [\d.]+ ms · between [\d.]+ ms \(p99 [\d.]+ ms\) · acceptance [\d.]+ · "
    r"runs \d+ sent / \d+ cancelled / \d+ aborted mid-decode · async, 2 stages · exact"
)
CORES = str(os.cpu_count())
SLOW = ["--raw", "--stretch", "20", "--max-tokens", "900", "--mode", "off", "--logit-bias", "2-inf", "--threads", CORES]
"""Slow enough to be interrupted, and with a note on stderr when it begins (threads that share cores)."""


@pytest.fixture(scope="module")
def text() -> str:
    """The target's own continuation of PROMPT."""
    result = pipeinfer("generate", "--prompt", PROMPT, "--mode", "off", *GREEDY)
    assert result.code == 0 and result.out.endswith("\n")
    return result.out.removesuffix("\n")


def test_the_text_is_on_stdout_and_the_line_on_stderr(text: str) -> None:
    result = pipeinfer("generate", "--prompt", PROMPT, *GREEDY)
    assert (result.code, result.out) == (0, text + "\n")
    assert LINE.fullmatch(result.err.splitlines()[-1]), result.err
    assert not result.left


def test_a_random_seed_is_named_and_repeats_the_text() -> None:
    first = pipeinfer("generate", "--prompt", PROMPT, "--max-tokens", "12")
    seed = re.search(r" · seed (\d+)$", first.err.strip())
    assert seed, first.err
    again = pipeinfer("generate", "--prompt", PROMPT, "--max-tokens", "12", "--seed", seed[1], "--split", "0.3,0.7")
    assert again.out == first.out and "seed" not in again.err


def objects(result: Ended) -> dict[str, Any]:
    """The one object on stdout."""
    assert result.out.count("\n") == 1 and result.out.endswith("\n")
    return json.loads(result.out)


KEYS = ["text", "token_ids", "finish_reason", "mode", "stages", "exact", "n_prompt", "n_generated", "ttft_s"]
KEYS += ["tokens_per_s", "itl_s", "draft", "runs", "wire_bytes_per_token", "memory_mb", "seed"]


def test_json_has_these_fields_and_no_others(text: str) -> None:
    result = pipeinfer("generate", "--prompt", PROMPT, "--json", *GREEDY)
    assert result.code == 0
    found = objects(result)
    assert list(found) == KEYS
    assert list(found["itl_s"]) == ["mean", "p50", "p99"]
    drafted = ["proposed", "accepted", "rejected", "wasted", "acceptance", "accept_by_depth", "sibling_hit"]
    assert list(found["draft"]) == drafted
    assert list(found["runs"]) == ["sent", "cancelled", "aborted", "rows", "in_flight_mean"]
    assert set(found["memory_mb"]) == {"stage-0", "stage-1", "draft"}
    assert found["text"] == text and len(found["token_ids"]) == found["n_generated"] == 16
    assert (found["finish_reason"], found["mode"], found["stages"], found["exact"]) == ("length", "async", 2, True)
    draft = found["draft"]
    assert draft["proposed"] == draft["accepted"] + draft["rejected"] + draft["wasted"]
    assert found["ttft_s"] > 0 and found["tokens_per_s"] > 0 and found["wire_bytes_per_token"] > 0
    assert found["runs"]["sent"] >= 1 and all(mb > 1 for mb in found["memory_mb"].values())


def test_json_without_a_draft_has_nothing_to_say_of_it(text: str) -> None:
    found = objects(
        pipeinfer("generate", "--prompt", PROMPT, "--json", *GREEDY, "--pair", "demo-plain", "--stages", "1")
    )
    assert list(found) == KEYS and found["text"] == text
    assert (found["mode"], found["stages"], found["draft"]["proposed"]) == ("off", 1, 0)
    assert found["draft"]["acceptance"] is None and set(found["memory_mb"]) == {"stage-0"}


@pytest.mark.parametrize("how", [["-"], ["--prompt-file", "prompt.txt"]], ids=" ".join)
def test_the_prompt_from_elsewhere(tmp_path: Path, text: str, how: list[str]) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    given = b"" if "prompt.txt" in how else PROMPT.encode() + b"\n"
    result = pipeinfer("generate", *how, *GREEDY, given=given, cwd=tmp_path)
    assert (result.code, result.out) == (0, text + "\n"), result.err


def test_a_stop_string_ends_the_text_before_it(text: str) -> None:
    stop = text.split()[4]
    found = objects(pipeinfer("generate", "--prompt", PROMPT, "--json", *GREEDY, "--stop", stop))
    assert found["finish_reason"] == "stop" and found["text"] == text[: text.index(stop)]


def test_a_typed_stop_string_may_hold_a_line_break() -> None:
    """As in the chat's `/set stop`."""
    asked = ["generate", "--json", *GREEDY, "--prompt", "Café 世"]
    whole = objects(pipeinfer(*asked))["text"]
    found = objects(pipeinfer(*asked, "--stop", "\\n\\n"))
    assert "\n\n" in whole and found["text"] == whole[: whole.index("\n\n")] and found["finish_reason"] == "stop"


def test_a_prompt_that_is_not_utf_8_is_said_to_be_none() -> None:
    result = pipeinfer("generate", "--raw", b"Caf\xe9".decode(errors="surrogateescape"))
    assert result.code == 2 and "the text is not UTF-8 (byte 0xE9 at position 3)" in result.err


def test_a_grammar_shapes_the_text() -> None:
    options = ["--raw", "--grammar", 'root ::= " yes" | " no"', "--max-tokens", "16", "--seed", "1"]
    found = objects(pipeinfer("generate", "--prompt", PROMPT, "--json", *options))
    assert found["text"] in (" yes", " no") and found["finish_reason"] == "stop"


@pytest.mark.parametrize("mode", ["off", "async"])
def test_a_schema_and_a_regular_expression_shape_the_text(mode: str) -> None:
    schema = '{"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3}'
    common = ["--mode", mode, "--max-tokens", "160", "--seed", "1", "--repeat-penalty", "1.1", "--repeat-last-n", "-1"]
    found = objects(pipeinfer("generate", "--prompt", PROMPT, "--json", *common, "--json-schema", schema))
    assert {*json.loads(found["text"])} <= {"red", "blue"} and found["finish_reason"] == "stop"
    common += ["--regex", r" \d{4}-\d\d", "--top-k", "-1"]
    found = objects(pipeinfer("generate", "--prompt", PROMPT, "--json", *common))
    assert re.fullmatch(r" \d{4}-\d\d", found["text"]) and found["finish_reason"] == "stop"


def test_the_end_of_the_context_is_a_length() -> None:
    options = ["--raw", "--ctx-size", "48", "--max-tokens", "500", "--temp", "0", "--logit-bias", "2-inf"]
    found = objects(pipeinfer("generate", "--prompt", PROMPT, "--json", *options))
    assert found["finish_reason"] == "length" and found["n_prompt"] + found["n_generated"] == 48


def test_the_trace_has_a_track_for_each(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    result = pipeinfer("generate", "--prompt", PROMPT, "--json", "--max-tokens", "60", "--seed", "1", "--trace", path)
    found, events = objects(result), json.loads(path.read_text())["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert sorted(tracks.values()) == ["coordinator", "draft", "stage-0", "stage-1"]
    others = [e for e in events if e["ph"] != "M"]
    assert all(e["ts"] >= 0 and e["pid"] == 1 and e["tid"] in tracks and e["name"] for e in others)
    spans = [e for e in others if e["ph"] == "X"]
    assert all(e["dur"] > 0 for e in spans) and {tracks[e["tid"]] for e in spans} >= {"draft", "stage-0", "stage-1"}
    ends = [e["args"].get("outcome") for e in spans if tracks[e["tid"]].startswith("stage")]
    assert "done" in ends and ("skipped" in ends or "aborted" in ends) == (found["runs"]["cancelled"] > 0)
    assert len({e["args"]["run"] for e in spans if e["args"].get("outcome") == "aborted"}) == found["runs"]["aborted"]
    assert sum(e["name"] == "token" for e in others) >= found["n_generated"]


def interrupted(number: int, *options: str) -> Ended:
    """Sent the signal when the first text is there (with --json: a moment after it has begun)."""
    process = started("generate", "--prompt", PROMPT, *SLOW, *options)
    assert process.stdout is not None and process.stderr is not None
    if "--json" in options:
        note, text = b"", b""
        while b"Emulated" not in note:  # the line on memory comes before the stages are loaded, which may take longer
            said = process.stderr.read1(4096)
            assert said, note
            note += said
        time.sleep(1)
    else:
        note, text = b"", process.stdout.read1(1)
    process.send_signal(number)
    result = ended(process)
    result.out, result.err = text.decode() + result.out, note.decode() + result.err
    return result


def test_ctrl_c_keeps_what_is_there() -> None:
    result = interrupted(signal.SIGINT)
    last = re.match(r"(\d+) tokens · .* sent / ", result.err.splitlines()[-1])
    assert last and 0 < int(last[1]) < 900, result.err
    assert result.code == 130 and result.out.strip() and not result.left


def test_ctrl_c_with_json_still_gives_the_object() -> None:
    result = interrupted(signal.SIGINT, "--json", "--emulate", "gigabit")
    found = objects(result)
    assert result.code == 130 and found["finish_reason"] == "cancelled" and not result.left
    assert found["n_generated"] == len(found["token_ids"]) < 900


def test_sigterm_ends_everything() -> None:
    result = interrupted(signal.SIGTERM)
    assert result.code == 128 + signal.SIGTERM and not result.left


def test_sigkill_leaves_no_process() -> None:
    process = started("generate", "--prompt", PROMPT, *SLOW)
    until(lambda: len(worker_pids(process.pid)) == 2, 20)
    workers = worker_pids(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in workers), 5)


def test_ctrl_c_while_it_starts() -> None:
    process = started("generate", "--prompt", PROMPT, *SLOW)
    until(lambda: len(worker_pids(process.pid)) == 2, 20)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 130 and not result.left


def test_a_reader_that_leaves_ends_it() -> None:
    process = started("generate", "--prompt", PROMPT, *SLOW)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read1(1)
    process.stdout.close()
    try:
        assert process.wait(20) == 141
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert b"Error" not in process.stderr.read() and not left_by(process.pid)


def test_a_question_is_put_in_the_chat_template() -> None:
    """As an argument and through a pipe; --raw continues it."""
    options = ["--temp", "0", "--json", "-n", "24"]
    given = pipeinfer("generate", "Tell me about a fox", *options)
    piped = pipeinfer("generate", *options, given=b"\xef\xbb\xbfTell me about a fox\r\n")
    raw = pipeinfer("generate", "Tell me about a fox", "--raw", *options)
    asked, other = objects(given), objects(raw)
    assert asked["text"] == objects(piped)["text"] != other["text"] and asked["n_prompt"] > other["n_prompt"]
    assert "chat template is used" in given.err + pipeinfer("generate", "Hi", "-n", "1").err
    assert "chat template" not in raw.err


def test_another_chat_template(tmp_path: Path) -> None:
    """By name, and as a file with variables."""
    options = ["--temp", "0", "--json", "-n", "8"]
    own, named = (pipeinfer("generate", "Hi", *options, *more) for more in ([], ["--chat-template", "zephyr"]))
    assert "The given chat template is used" in named.err and objects(named)["n_prompt"] != objects(own)["n_prompt"]
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content * times }}{% endfor %}")
    once, thrice = (
        objects(pipeinfer("generate", "fox ", *options, "--chat-template", file, "--chat-template-kwargs", variables))
        for variables in ('{"times": 1}', '{"times": 3}')
    )
    assert thrice["n_prompt"] > once["n_prompt"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--chat-template zephir", "did you mean zephyr?"),
        ("--chat-template-kwargs [1]", "is not a JSON object"),
        ("--chat-template chatml --chat-template-kwargs {}  --raw", "--raw leaves the chat template out"),
    ],
)
def test_chat_templates_that_are_none(line: str, words: str) -> None:
    result = pipeinfer("generate", "Hi", *line.split())
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1


def test_a_cut_text_says_so_and_minus_one_goes_on_to_the_end() -> None:
    cut = pipeinfer("generate", "-p", PROMPT, "--raw", "--temp", "0", "-n", "5")
    assert "was cut at 5 tokens: -n allows more" in cut.err
    full = pipeinfer(
        "generate", "-p", PROMPT, "--raw", "--temp", "0", "-n", "-1", "-c", "48", "--json", "--logit-bias", "2-inf"
    )
    assert "the context of 48 tokens is full" in full.err
    assert objects(full)["n_prompt"] + objects(full)["n_generated"] == 48


def test_no_token_says_why() -> None:
    result = pipeinfer("generate", "-p", PROMPT, "--raw", "--temp", "0", "--grammar", 'root ::= ""')
    assert result.out == "\n" and "ended its text at once" in result.err


def test_the_names_of_llama_cpp(text: str) -> None:
    options = ["-m", TARGET, "-md", DRAFT, "-c", "256", "-t", "1", "-s", "3", "-ngl", "0"]
    result = pipeinfer("generate", "-p", PROMPT, *GREEDY, *options)
    assert (result.code, result.out) == (0, text + "\n"), result.err


def test_seed_minus_one_is_random_and_named() -> None:
    seeds = [objects(pipeinfer("generate", "Hi", "--json", "-n", "1", "--seed", "-1"))["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1] and -1 not in seeds


def test_mode_off_starts_no_draft_worker() -> None:
    """Its memory and its share of the cores are the stages'."""
    found = objects(pipeinfer("generate", "-p", PROMPT, "--json", *GREEDY, "--mode", "off"))
    assert set(found["memory_mb"]) == {"stage-0", "stage-1"} and found["mode"] == "off"
