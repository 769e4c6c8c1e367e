"""The other natural sources: each function returns documents (strings), chats in ChatML."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator

from mirror import Repo
from text import SLURS, chatml, norm


def books(mirrors: str, folders: tuple[str, ...], skip: tuple[str, ...] = ()) -> list[str]:
    """Books of the CLiC corpora, cut at chapters or after 2500 to 6000 characters; `skip` names books left out."""
    repo = Repo(mirrors, "birmingham-ccr/corpora")
    docs = []
    for path in repo.ls():
        folder, _, file = path.partition("/")
        if folder in folders and file.endswith(".txt") and file[:-4] not in skip:
            docs += _pieces(path, norm(repo.read(path)).replace("_", ""))
    return docs


def _pieces(path: str, text: str) -> Iterator[str]:
    size = random.Random(path).randint
    piece: list[str] = []
    n, limit = 0, size(2500, 6000)
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s*\n\s*", " ", paragraph).strip()
        front = re.match(r"(\[?illustration|footnote|\*|contents|transcriber)", paragraph, re.IGNORECASE)
        if not paragraph or SLURS.search(paragraph) or front:
            continue
        chapter = re.match(r"(chapter|book|part|volume) [ivxlcd\d]+", paragraph, re.IGNORECASE) and n > 1200
        if not chapter:
            piece.append(paragraph)
            n += len(paragraph) + 2
        if chapter or n > limit:
            yield "\n\n".join(piece)
            piece, n, limit = [], 0, size(2500, 6000)
    if n > 800:
        yield "\n\n".join(piece)


def fairytale(mirrors: str) -> tuple[list[str], list[str]]:
    """FairytaleQA: (tales in parts of six sections, questions about a section with their answers)."""
    repo = Repo(mirrors, "uci-soe/FairytaleQAData")
    docs, chats, r = [], [], random.Random(5)
    for path in repo.ls("data-by-train-split/section-stories/"):
        if "/all/" in path:
            continue
        rows = csv.DictReader(io.StringIO(repo.read(path)))
        sections = {x["section"]: re.sub(r"\s*\n\s*", " ", norm(x["text"])) for x in rows if x.get("text")}
        texts = list(sections.values())
        for i in range(0, len(texts), 6):
            doc = "\n\n".join(t for t in texts[i : i + 6] if not SLURS.search(t))
            if len(doc) > 300:
                docs.append(doc)
        asked = repo.find(path.replace("section-stories", "questions").replace("-story.csv", "-questions.csv"))
        for x in csv.DictReader(io.StringIO(asked or "")):
            section = sections.get((x.get("cor_section") or "").split(",")[0])
            if section and x.get("answer1") and 100 < len(section) < 1800 and not SLURS.search(section):
                answer = norm(x["answer1"]).strip()
                answer = answer[0].upper() + answer[1:] + ("" if answer[-1] in '.!?"' else ".")
                opening = r.choice(["Read this and answer: ", "Here is a part of a story. ", ""])
                question = opening + section + "\n\n" + norm(x["question"])
                chats.append(chatml([("user", question), ("assistant", answer)]))
    return docs, chats


def picture_books(mirrors: str) -> list[str]:
    """African Storybook and StoryWeaver in English: the CC BY and public domain ones only."""
    docs = []
    for name in ("global-asp/asp-source", "global-asp/pb-source"):
        repo = Repo(mirrors, name)
        for path in repo.ls("en/"):
            if path.endswith("README.md"):
                continue
            text = norm(repo.read(path))
            found = re.search(r"License: \[(.*?)\]", text)
            licence = found.group(1).upper() if found else ""
            if "NC" in licence or not re.search(r"CC-?BY|PUBLIC", licence):
                continue
            title = text.split("\n")[0].lstrip("# ").strip()
            body = text.split("\n", 1)[1].split("\n* License")[0]
            pages = [re.sub(r"\s*\n\s*", " ", page).strip() for page in body.split("##")]
            doc = title + "\n\n" + "\n\n".join(page for page in pages if page)
            if len(doc) > 150:
                docs.append(doc)
    return docs


def fables(mirrors: str) -> tuple[list[str], list[str]]:
    """TinyFabulist, of the openly licensed models only: (fables, requests with the fable as answer)."""
    repo = Repo(mirrors, "klusai/tinyfabulist")
    docs: list[str] = []
    chats: list[str] = []
    seen: set[str] = set()
    asks = [
        "Write a fable about {}. The lesson is: {}.",
        "Tell me a fable about {} with the moral: {}.",
        "Tell me a story about {} that teaches that {}.",
    ]
    for path in repo.ls():
        if not re.search(r"fables/(mistral-7b|qwen2-5|smollm2|phi-3)[^/]*/tf_fables", path):
            continue
        for line in repo.read(path).split("\n"):
            try:
                x = json.loads(line)
            except ValueError:
                continue
            fable = norm(x.get("fable") or "")
            if len(fable) < 300 or fable in seen or re.search(r"age group|###|\*\*|trait", fable):
                continue
            seen.add(fable)
            fable = re.sub(r"^title: .*?\n", "", fable, flags=re.IGNORECASE)
            docs.append(fable)
            prompt = x.get("prompt") or ""
            who, lesson = re.search(r"Main Character: (.*)", prompt), re.search(r"Teaching: (.*)", prompt)
            if who and lesson:
                ask = random.Random(fable).choice(asks)
                ask = ask.format(who.group(1).strip(), lesson.group(1).strip().rstrip("."))
                chats.append(chatml([("user", ask), ("assistant", fable)]))
    return docs, chats


def topical(mirrors: str) -> list[str]:
    """Topical-Chat's validation and test conversations, one side as the assistant."""
    repo, out = Repo(mirrors, "alexa/Topical-Chat"), []
    for part in ("valid_freq", "valid_rare", "test_freq", "test_rare"):
        for conversation in json.loads(repo.read(f"conversations/{part}.json")).values():
            turns: list[tuple[str, str]] = []
            for x in conversation["content"]:
                role, text = "user" if x["agent"] == "agent_1" else "assistant", norm(x["message"])
                if turns and turns[-1][0] == role:
                    turns[-1] = (role, turns[-1][1] + " " + text)
                else:
                    turns.append((role, text))
            if turns and turns[0][0] == "assistant":
                turns = turns[1:]
            if len(turns) > 4 and not SLURS.search(" ".join(text for _, text in turns)):
                out.append(chatml([("system", "You are chatting with a friend about hobbies and news."), *turns]))
    return out


def schema_guided(mirrors: str) -> list[str]:
    """Schema-Guided Dialogue: people who book and find things."""
    repo, out = Repo(mirrors, "google-research-datasets/dstc8-schema-guided-dialogue"), []
    for path in repo.ls("train/") + repo.ls("dev/") + repo.ls("test/"):
        text = repo.find(path) if "dialogues_" in path else None  # files over 4 MiB were not in the clone used
        for dialogue in json.loads(text or "[]"):
            roles = {"USER": "user", "SYSTEM": "assistant"}
            turns = [(roles[x["speaker"]], norm(x["utterance"])) for x in dialogue["turns"]]
            out.append(chatml([("system", "You help people to find and book things."), *turns]))
    return out


def arithmetic(mirrors: str) -> list[str]:
    """GSM8K's training questions, answered step by step."""
    out = []
    lines = Repo(mirrors, "openai/grade-school-math").read("grade_school_math/data/train.jsonl").split("\n")
    for x in (json.loads(line) for line in lines if line.strip()):
        answer = re.sub(r"<<.*?>>", "", x["answer"])
        answer = re.sub(r"\n#### (.*)", r"\nThe answer is \1.", answer)
        turns = [("system", "Think step by step."), ("user", norm(x["question"])), ("assistant", norm(answer))]
        out.append(chatml(turns))
    return out


def roleplay(mirrors: str) -> list[str]:
    """GPTeacher's role play, answers of 40 to 2500 characters."""
    out = []
    path = "Roleplay/roleplay-simple-deduped-roleplay-instruct.json"
    for x in json.loads(Repo(mirrors, "teknium1/GPTeacher").read(path)):
        question = norm(x["instruction"] + ("\n" + x["input"] if x.get("input") else ""))
        answer = norm(x.get("response") or x.get("output") or "")
        if 40 < len(answer) < 2500 and not SLURS.search(answer):
            out.append(chatml([("user", question), ("assistant", answer)]))
    return out
