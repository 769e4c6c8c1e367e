"""TinyStories: two excerpts, one of them in lower case and given its capitals back; copies and chats made of them."""

from __future__ import annotations

import random
import re

from mirror import Repo
from text import EOT, chatml, norm

CASED = ("gusjengis/toy-RNN", "data/tinystories_sample.txt", "e4c7ff8bba4ff7989e69a3a816ebe4b14813b41e")
LOWER = ("Arnoochka/Transformer-Parallelism", "tinystories.txt", "911b9e732fbe6d228ba0feacbd6735395f0d279e")


def _words(text: str) -> list[str]:
    return text.split()


NO_NAMES = set(_words("it out him her them for the a my me to his and by over back from after"))
SAYING = _words("said asked replied cried shouted called yelled exclaimed")
STOP = set(
    _words(
        "once upon time there was were they their them with that this from have into then when what would could about "
        "little named said wanted after very loved went play played other some together"
    )
)
GIRLS = _words(
    "Lily Mia Anna Sue Lucy Amy Sara Sarah Jane Emma Daisy Molly Ella Lisa Jenny Kate Rose Grace Sally Mary Zoe Bella "
    "Nina Ruby Clara"
)
BOYS = _words(
    "Tim Tom Ben Max Sam Jack Joe John Billy Bob Timmy Tommy Jim Dan Mike Leo Peter Fred Adam Luke Henry Oscar Charlie "
    "Jake Noah"
)


def tinystories(mirrors: str) -> list[str]:
    """Both excerpts' stories, without repeats, paragraphs parted by an empty line."""
    cased = Repo(mirrors, CASED[0]).read(*CASED[1:])
    lower = Repo(mirrors, LOWER[0]).read(*LOWER[1:])
    first = [norm(x) for x in cased.split(EOT)][:-1]
    second = _with_capitals(first, lower)
    out: list[str] = []
    seen: set[str] = set()
    for story in first + second:
        story = re.sub(r"\n+", "\n\n", story).strip()
        if len(story) > 150 and story[-1] in '.!?"' and story not in seen:
            seen.add(story)
            out.append(story)
    print("tinystories: cased", len(first), "recased", len(second))
    return out


def _with_capitals(cased: list[str], lower: str) -> list[str]:
    """The stories of `lower` that are not in `cased`, with capitals: names are the words that are mostly
    capitalised inside sentences of `cased`, or that the story itself introduces as names."""
    up: dict[str, int] = {}
    low: dict[str, int] = {}
    for story in cased:
        for _, word in re.findall(r"([a-z,] )([A-Za-z']+)", story):
            counts = up if word[0].isupper() else low
            counts[word.lower()] = counts.get(word.lower(), 0) + 1
    names = {w for w, n in up.items() if n > 2 * low.get(w, 0)}
    known = {_start(story.lower()) for story in cased}
    out = []
    for story in re.split(r"(?<!\n)\n(?!\n)", lower):
        story = norm(story.replace("\n\n", "\n").strip())
        if len(story) < 150 or _start(story) in known or ("!" not in story and "." not in story):
            continue
        local = names | set(re.findall(r"(?:named|called|name is|name was) ([a-z]+)", story))
        out.append(_capitals(story, local - NO_NAMES))
    return out


def _start(story: str) -> str:
    return re.sub(r"\W+", " ", story)[:80]


def _capitals(story: str, names: set[str]) -> str:
    def name(match: re.Match[str]) -> str:
        word = match.group(0)
        return word.capitalize() if word in names or word.split("'")[0] in names | {"i"} else word

    story = re.sub(r"[a-z][a-z']*", name, story)
    story = re.sub(r'(^|\n|[.!?] |[.!?]" |^"|[\s]")([a-z])', lambda m: m.group(1) + m.group(2).upper(), story)
    # After a quotation that ends in ! or ?, a lower-case verb of saying follows.
    capital = [v.capitalize() for v in SAYING]

    def after_quote(match: re.Match[str]) -> str:
        quote, word, verb = match.groups()
        return quote + (word.lower() if verb or word in capital else word) + verb

    pattern = rf'([!?]" )(She|He|They|It|The|{"|".join(capital)})\b({"|".join(" " + v for v in SAYING)}|)'
    return re.sub(pattern, after_quote, story)


def story_chat(stories: list[str], seed: int) -> list[str]:
    """Plain stories as chats: a request that fits the story, and the story as its answer."""
    r = random.Random(seed)
    out = []
    for story in stories:
        who = re.search(r"(?:there (?:was|lived)|was) (an? [a-z ]{3,28}?) (?:named|called) ([A-Z][a-z]+)", story[:300])
        words = [w for w in set(re.findall(r"\b[a-z]{4,9}\b", story)) if w not in STOP]
        if len(words) < 5:
            continue
        a, b, c = r.sample(sorted(words), 3)
        plain = ("Tell me a story.", "Write a short story for children.", "Tell me a bedtime story.")
        requests = [
            f"Write a short story that uses the words {a}, {b}, and {c}.",
            f'Tell me a story with the words "{a}" and "{b}".',
            r.choice([*plain, "Please tell me a short story."]),
        ]
        if who:
            kind, name = who.groups()
            requests += [
                f"Tell me a story about {kind} named {name}.",
                f"Write a short story about {kind}.",
                f"Tell me a story about {kind} called {name}.",
            ] * 2
        first = re.split(r"(?<=[.!?]) ", story)[0]
        if len(first) < 160 and r.random() < 0.15:
            out.append(chatml([("user", "Continue this story: " + first), ("assistant", story[len(first) :])]))
        else:
            out.append(chatml([("user", r.choice(requests)), ("assistant", story)]))
    return out


def rename(stories: list[str], copies: int, seed: int) -> list[str]:
    """Copies of the stories with other (consistent) names, so that a few names are not tied to single plots."""
    r, out = random.Random(seed), []
    for story in stories:
        for _ in range(copies):
            names: dict[str, str] = {}
            for pool in (GIRLS, BOYS):
                names.update(zip(pool, r.sample(pool, len(pool)), strict=True))
            out.append(re.sub(r"\b[A-Z][a-z]+\b", lambda m, names=names: names.get(m.group(0), m.group(0)), story))
    return out
