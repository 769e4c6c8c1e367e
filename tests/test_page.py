"""The chat page in a real browser, over a real pipeline."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import chromium
from serving import serving

QUESTION, STORY = "Who lives in the forest?", "Tell me a story about a little fox."
DEMO = "--pair", "demo", "--stages", "2", "--slots", "2"
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("page"), *DEMO) as server:
        yield f"{server.url}/"


class Visit:
    """A page of a browser of its own. What goes wrong in it fails the test."""

    def __init__(self, context: Any, url: str) -> None:
        self.page, self.wrong, self.hosts = context.new_page(), [], set()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.wrong.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url)

    def ask(self, text: str) -> str:
        """Returns the answer."""
        before = self.page.locator("article.model").count()
        self.begin(text)
        self.page.locator("article.model").nth(before).locator(".figures").wait_for()
        self.page.locator("#send").wait_for()
        return str(self.page.locator("article.model").nth(before).locator(".markdown").inner_text())

    def begin(self, text: str) -> None:
        self.page.locator("#question").fill(text)
        self.page.keyboard.press("Enter")

    def texts(self, selector: str) -> list[str]:
        return list(self.page.locator(selector).all_inner_texts())

    def settings(self, **values: str) -> None:
        self.page.locator("#settings-open").click()
        for name, value in values.items():
            self.page.locator(f"#settings [name={name}]").fill(value)
        self.page.get_by_role("button", name="Save").click()

    def say(self, answer: str, **more: object) -> None:
        """The page shows this as an answer: it is what the browser had kept of a chat."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer, **more}]
        chat = {"id": "kept", "title": "Kept", "changed": 1, "messages": messages}
        self.page.evaluate("chat => localStorage.setItem('pipeinfer.chat.kept', JSON.stringify(chat))", chat)
        self.page.evaluate("() => { location.hash = 'kept' }")
        self.page.reload()
        self.page.locator("article.model").wait_for()


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Visit]]:
    contexts: list[Any] = []
    visits: list[Visit] = []

    def open_one(viewport: dict[str, int] = WIDE, context: Any = None, **more: Any) -> Visit:
        if context is None:
            context = browser.new_context(viewport=viewport, **more)
            contexts.append(context)
        visits.append(Visit(context, url))
        return visits[-1]

    yield open_one
    for context in contexts:
        context.close()
    for made in visits:
        assert made.wrong == []
        assert made.hosts == {urlsplit(url).netloc}, "the page loads from nowhere else"


def idle(url: str) -> bool:
    with urllib.request.urlopen(f"{url}pipeline") as answer:
        return all(slot["phase"] == "idle" for slot in json.load(answer)["slots"])


def answer_of_the_api(url: str, *said: str) -> str:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    body = json.dumps({"messages": messages, "temperature": 0, "stream": True}).encode()
    request = urllib.request.Request(f"{url}v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        lines = [json.loads(line[6:]) for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    return "".join(line["choices"][0]["delta"].get("content") or "" for line in lines if line.get("choices"))


def test_a_chat_says_what_the_api_says(visit: Callable[..., Visit], url: str) -> None:
    v = visit()
    v.settings(temperature="0")
    first = v.ask(QUESTION)
    second = v.ask("And who else?")
    assert first == answer_of_the_api(url, QUESTION).strip()
    assert second.split() == answer_of_the_api(url, QUESTION, first, "And who else?").split()
    assert v.texts("article.user .text") == [QUESTION, "And who else?"]
    assert "tokens/s" in v.texts(".figures")[0]
    assert v.page.title().startswith(QUESTION)


def test_stop_ends_the_runs_and_keeps_what_was_said(visit: Callable[..., Visit], url: str) -> None:
    v = visit()
    v.begin(STORY)
    v.page.locator("article.busy .markdown p").first.wait_for()
    v.page.keyboard.press("Escape")
    v.page.locator(".note", has_text="Stopped.").wait_for()
    kept = v.texts("article.model .markdown")[0]
    assert 0 < len(kept) < 700
    deadline = time.monotonic() + 5
    while not idle(url):
        assert time.monotonic() < deadline, "the pipeline goes on though nobody reads"
    v.page.reload()
    assert v.texts("article.model .markdown") == [kept]
    v.ask(QUESTION)
    assert len(v.texts("article.model")) == 2


def test_a_reload_keeps_the_chat_and_what_was_said_of_an_answer(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.ask(QUESTION)
    v.begin(STORY)
    v.page.locator("article.busy .markdown p").first.wait_for()
    v.page.reload()
    v.page.locator(".note", has_text="Stopped.").wait_for()
    assert v.texts("article.user .text") == [QUESTION, STORY]
    assert len(v.texts("article.model .markdown")[1]) > 0
    assert v.texts("#list .open") == [QUESTION]


def test_two_tabs_at_once(visit: Callable[..., Visit]) -> None:
    one = visit()
    two = visit(context=one.page.context)
    one.begin(STORY)
    two.begin(QUESTION)
    for v in (one, two):
        v.page.locator("article.model .figures").wait_for()
        v.page.locator("#send").wait_for()
        assert v.texts("article.model .markdown")[0].strip()
        assert sorted(v.texts("#list .open")) == sorted([STORY, QUESTION])
    assert one.texts("article.user .text") == [STORY]
    assert two.texts("article.user .text") == [QUESTION]
    one.page.reload()
    assert one.texts("article.user .text") == [STORY]
    # The other tab's chat, renamed here, has its new name there.
    two.page.locator("#list li", has_text=QUESTION).hover()
    two.page.get_by_label(f"More for: {QUESTION}").click()
    two.page.get_by_role("button", name=f"Rename: {QUESTION}").click()
    two.page.locator("#ask-name").fill("Trees")
    two.page.keyboard.press("Enter")
    one.page.locator("#list .open", has_text="Trees").wait_for()


def test_edit_and_answer_again(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.settings(temperature="0")
    first = v.ask(QUESTION)
    v.page.locator("article.user").hover()
    v.page.get_by_label("Edit the question").click()
    v.page.locator("article.editing textarea").fill(STORY)
    v.page.keyboard.press("Enter")
    v.page.locator(".figures").wait_for()
    v.page.locator("#send").wait_for()
    second = v.texts("article.model .markdown")
    assert v.texts("article.user .text") == [STORY]
    assert len(second) == 1 and second[0] != first
    v.page.get_by_label("Answer again").click()
    v.page.locator("article.busy").wait_for()
    v.page.locator("#send").wait_for()
    assert v.texts("article.model .markdown") == second


def test_chats_are_deleted_and_exported(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.ask(QUESTION)
    v.page.locator("#list li").hover()
    v.page.get_by_label(f"More for: {QUESTION}").click()
    with v.page.expect_download() as download:
        v.page.get_by_role("button", name=f"Export: {QUESTION}").click()
    assert download.value.suggested_filename == "Who-lives-in-the-forest.md"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.startswith(f"# {QUESTION}\n\n## You\n\n{QUESTION}\n\n## Model\n\n")
    v.page.get_by_role("button", name=f"Delete: {QUESTION}").click()
    v.page.keyboard.press("Escape")
    assert v.texts("#list .open") == [QUESTION]
    v.page.get_by_role("button", name=f"Delete: {QUESTION}").click()
    v.page.locator("#ask-do").click()
    v.page.locator("#empty").wait_for()
    v.page.reload()
    assert v.texts("#list .open") == []


def test_a_phone(visit: Callable[..., Visit]) -> None:
    v = visit(PHONE, has_touch=True, is_mobile=True)
    wide = "| " + " | ".join(["a column"] * 9) + " |\n" + "| --- " * 9 + "|\n"
    v.say(f"{wide}\n```\n{'x' * 300}\n```\n\n{'y' * 300}\n\n[{'z' * 200}](https://example.com)")
    v.page.locator("#strip").click()
    v.page.locator("#panel table").wait_for()
    overflow = "() => document.scrollingElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    assert not v.page.evaluate(overflow)
    box = v.page.locator("#scroll").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert box[0] <= box[1]
    v.page.locator("#side-open").click()
    v.page.locator("#new").wait_for()
    v.page.keyboard.press("Escape")
    v.page.locator("#new").wait_for(state="hidden")
    for name in ("#send", "#settings-open", "#side-open", "#theme"):
        spot = v.page.locator(name).bounding_box()
        assert spot["x"] >= 0 and spot["x"] + spot["width"] <= 360 and min(spot["width"], spot["height"]) >= 34


def test_nothing_of_a_models_html_passes(visit: Callable[..., Visit]) -> None:
    v = visit()
    evil = [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "[a](javascript:alert(1)) [b](data:text/html,x) ![c](http://example.com/pixel.png) [d]( vbscript:x)",
        "| <b>x</b> |\n| --- |\n| <iframe src='http://example.com'></iframe> |",
        "```html\n<script>alert(1)</script>\n```",
        "# <style>*{display:none}</style>",
        '[e](https://example.com/"onmouseover="alert(1))',
        "> " * 200 + "deep",
        "*" * 3000 + "[" * 3000 + "`" * 301,
    ]
    v.say("\n\n".join(evil), thoughts="<script>alert(1)</script>")
    inside = ".markdown :is(script, img, iframe, style, b, [onerror], [onmouseover]), .thoughts script"
    assert v.page.locator(inside).count() == 0
    links = v.page.locator(".markdown a")
    for i in range(links.count()):
        assert links.nth(i).get_attribute("href").startswith(("http://", "https://"))
        assert "noopener" in links.nth(i).get_attribute("rel")
    assert evil[0] in v.texts("article.model .markdown p")[0]


def test_marks_that_are_never_closed_take_no_time(visit: Callable[..., Visit]) -> None:
    v = visit()
    for mark in ("__a ", "**a ", "~~a ", "`a``", "[a](", "*a _b ", "https://(a", "> - ", "| a "):
        v.say("short")
        took = v.page.evaluate(
            """async text => {
                const { show } = await import('/page/markdown.js');
                const began = performance.now();
                show(document.createElement('div'), text);
                return performance.now() - began;
            }""",
            mark * (40_000 // len(mark)),
        )
        assert took < 1500, mark


def test_markdown(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.say(
        "# Head\n\nSome **bold**, *slanted*, `a*b*c`, snake_case_name, 2 * 3 * 4 and https://example.com/a_(b).\n"
        "1. one\n   - in it\n   - again\n2. two\n\n| a | b |\n| :-- | --: |\n| 1 | `x\\|y` |\n\n"
        "```python\nif a < b:\n    print('*no*')\n```\n\n> said\n\n---\n\nbroken  \nline",
        thoughts="hidden",
    )
    at = v.page.locator("article.model .markdown")
    assert at.locator("h3").inner_text() == "Head"
    assert at.locator("strong").all_inner_texts() == ["bold"]
    assert at.locator("em").all_inner_texts() == ["slanted"]
    assert at.locator("p code").all_inner_texts() == ["a*b*c"]
    assert "snake_case_name, 2 * 3 * 4" in at.locator("p").first.inner_text()
    assert at.locator("a").get_attribute("href") == "https://example.com/a_(b)"
    assert at.locator("ol > li").count() == 2
    assert at.locator("ol ul > li").all_inner_texts() == ["in it", "again"]
    assert at.locator("td").all_inner_texts() == ["1", "x|y"]
    assert at.locator("td.right").count() == 1
    assert at.locator("pre").inner_text() == "if a < b:\n    print('*no*')"
    assert at.locator("blockquote").inner_text() == "said"
    assert at.locator("hr").count() == at.locator("br").count() == 1
    v.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    at.get_by_label("Copy the code").click()
    at.get_by_text("Copied").wait_for()
    assert v.page.evaluate("() => navigator.clipboard.readText()") == "if a < b:\n    print('*no*')"
    assert not v.page.locator(".thoughts-text").is_visible()
    v.page.locator(".thoughts summary").click()
    assert v.page.locator(".thoughts-text").inner_text() == "hidden"


def test_the_newest_words_stay_in_sight_until_one_scrolls_up(visit: Callable[..., Visit]) -> None:
    v = visit({"width": 900, "height": 420})
    v.say("\n\n".join(f"Paragraph {i}." for i in range(60)))
    far = "() => { const b = document.getElementById('scroll'); return b.scrollHeight - b.scrollTop - b.clientHeight; }"
    v.page.wait_for_timeout(100)
    assert v.page.evaluate(far) < 2
    # A scroll event that was on its way when the panel opened: nobody went up.
    late = "() => document.getElementById('scroll').dispatchEvent(new Event('scroll'))"
    v.page.evaluate(f"() => {{ document.getElementById('strip').click(); ({late})(); }}")
    v.page.locator("#panel tr").first.wait_for()
    v.page.wait_for_timeout(200)
    assert v.page.evaluate(far) < 2
    v.page.locator("#scroll").hover()
    v.page.mouse.wheel(0, -600)
    v.page.locator("#down").wait_for()
    before = v.page.evaluate(far)
    v.page.locator("#strip").click()
    v.page.wait_for_timeout(200)
    assert v.page.evaluate(far) > before - 400
    v.page.locator("#down").click()
    v.page.locator("#down").wait_for(state="hidden")
    assert v.page.evaluate(far) < 2
    v.ask(STORY)
    assert v.page.evaluate(far) < 2


def test_by_keyboard_alone(visit: Callable[..., Visit]) -> None:
    v = visit()
    keys = v.page.keyboard
    assert v.page.evaluate("() => document.activeElement.id") == "question"
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    assert v.page.locator("#question").input_value() == "one\ntwo"
    seen = []
    for _ in range(12):
        keys.press("Tab")
        seen.append(v.page.evaluate("() => document.activeElement.id"))
        if seen[-1] == "settings-open":
            break
    assert "new" in seen and "theme" in seen and seen[-1] == "settings-open"
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert v.page.evaluate(outline) == "solid"
    keys.press("Enter")
    assert v.page.evaluate("() => document.activeElement.name") == "system"
    keys.press("Escape")
    assert v.page.evaluate("() => document.activeElement.id") == "settings-open"


def test_light_dark_and_as_the_system(visit: Callable[..., Visit]) -> None:
    v = visit(color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = v.page.evaluate(ground)
    v.page.locator("#theme").click()
    light = v.page.evaluate(ground)
    assert light == "rgb(255, 255, 255)" != dark
    v.page.reload()
    assert v.page.evaluate(ground) == light
    v.page.emulate_media(color_scheme="light")
    v.page.locator("#theme").click()
    assert v.page.evaluate(ground) == dark


def test_the_servers_own_sentence_is_shown(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.begin("long " * 1200)
    v.page.get_by_role("alert").wait_for()
    said = v.page.get_by_role("alert").inner_text()
    assert "context" in said and said.endswith(".")
    v.wrong = [w for w in v.wrong if "400" not in w]  # the browser's own line
    assert v.ask(QUESTION).strip()


def test_where_the_context_is_full_the_oldest_questions_go(visit: Callable[..., Visit]) -> None:
    v = visit()
    said = "It was a long day in the deep green forest. " * 22
    messages = [{"role": role, "content": said} for _ in range(3) for role in ("user", "assistant")]
    chat = {"id": "kept", "title": "Kept", "changed": 1, "messages": messages}
    v.page.evaluate("chat => localStorage.setItem('pipeinfer.chat.kept', JSON.stringify(chat))", chat)
    v.page.evaluate("() => { location.hash = 'kept' }")
    v.page.reload()
    v.begin(QUESTION)
    note = v.page.locator(".note", has_text="The context is full: the oldest")
    note.wait_for()
    v.page.locator("#send").wait_for()
    assert v.texts("article.model .markdown")[-1].strip()
    assert len(v.texts("article.user .text")) == 4, "what is left out stays in sight"
    v.wrong = [w for w in v.wrong if "400" not in w]  # the browser's own lines


def test_the_server_asks_for_a_key(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, *DEMO, "--api-key", "sesame") as server:
        context = browser.new_context(viewport=WIDE)
        v = Visit(context, f"{server.url}/")
        v.page.locator("#model", has_text="asks for an API key").wait_for()
        v.begin(QUESTION)
        v.page.locator("#settings[open]").wait_for()
        v.page.keyboard.type("sesame")
        v.page.keyboard.press("Enter")
        v.page.locator("#model", has_text="demo").wait_for()
        v.page.get_by_label("Answer again").click()
        v.page.locator(".figures", has_text="tokens").wait_for()
        v.page.locator("#strip-stages i").first.wait_for()
        v.page.reload()
        v.page.locator("#model", has_text="demo").wait_for()
        context.close()


def test_the_strip_shows_the_pipeline(visit: Callable[..., Visit]) -> None:
    v = visit()
    v.page.locator("#strip").click()
    v.page.locator("#panel tbody tr").nth(1).wait_for()
    assert v.page.locator("#strip-stages i").count() == 2
    v.ask(STORY)
    v.page.locator("#panel .events li", has_text="ended by").first.wait_for()
    assert float(v.texts("#strip-speed")[0]) > 0
    assert v.texts("#strip-acceptance")[0].endswith("%")


def test_the_page_allows_no_code_and_no_styles_but_its_own(visit: Callable[..., Visit], url: str) -> None:
    with urllib.request.urlopen(url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "<style" not in text and " style=" not in text and "onclick" not in text
    v = visit()
    code = "s => { const e = document.createElement('script'); e.textContent = s; document.body.append(e); }"
    v.page.evaluate(code, "window.ran = 1")
    assert v.page.evaluate("() => window.ran === undefined")
    assert any("Content Security Policy" in w for w in v.wrong)
    v.wrong.clear()
