"""What files say, without what differs from run to run: times, versions, and how a page is laid out in its source."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?")
_HASH = re.compile(r"sha256-[A-Za-z0-9+/=]+")
_FACT = re.compile(r"^(- \*\*(?:median seconds|longest|hours)\*\*: ).*$", re.MULTILINE)
_TIMED = ("median seconds", "longest", "hours")
_VARYING = {"created", "updated", "began", "ended", "hours", "train_s", "seconds"}
_LONG = 300


def digest(text: str) -> str:
    """Return the short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def facts(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the value of every leaf of JSON data; a list is a leaf."""
    if isinstance(data, dict) and data:
        for name, value in data.items():
            if name in _VARYING:
                yield f"{path}.{name}".lstrip("."), "varies"
            elif name == "versions":
                yield f"{path}.{name}".lstrip("."), json.dumps(sorted(value))
            elif name == "attempts":
                yield from facts(dict(enumerate(value)), f"{path}.{name}".lstrip("."))
            else:
                yield from facts(value, f"{path}.{name}".lstrip("."))
        return
    text = _TIME.sub("TIME", json.dumps(data, ensure_ascii=False, sort_keys=True))
    yield path, text if len(text) <= _LONG else json.dumps(f"{len(text)} characters, {digest(text)}")


def by_value(named: Mapping[str, Any]) -> str:
    """Return one line for every leaf of several files alike: each value, and which of the files hold it."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, data in sorted(named.items()):
        for path, value in facts(data):
            found.setdefault(path, {}).setdefault(value, []).append(name)
    return "".join(f"{path}: {json.dumps(holders(found[path], len(named)))}\n" for path in sorted(found))


def holders(found: Mapping[str, list[str]], n_all: int) -> dict[str, Any]:
    """Name who holds each value; those of the commonest are "the others" unless some hold none."""
    usual = max(sorted(found), key=lambda value: len(found[value]))
    whole = sum(map(len, found.values())) == n_all
    others = "all" if len(found) == 1 else "the others"
    return {value: others if whole and value == usual else found[value] for value in sorted(found)}


def markdown(text: str, versions: Mapping[str, str]) -> str:
    """Return a report's Markdown without times and versions."""
    text = _FACT.sub(r"\1varies", _TIME.sub("TIME", text))
    for name, value in versions.items():
        text = text.replace(f"| {name} | {value} |", f"| {name} | VERSION |")
    return text


def headings(text: str) -> str:
    """Return the headings of a Markdown text with the digest of what stands below each."""
    parts = re.split(r"^(?=#+ |\*\*[^*]+\*\*$)", text, flags=re.MULTILINE)
    return "".join(f"{part.partition(chr(10))[0] or '(top)'}: {digest(part)}\n" for part in parts if part)


def page(text: str, versions: Mapping[str, str]) -> str:
    """Return the parts of an HTML page, one a line: its name, how many tags and texts it has, and their digest."""
    reader = _Page(set(versions.values()))
    reader.feed(_HASH.sub("sha256-…", _TIME.sub("TIME", text)))
    reader.close()
    return "".join(
        f"{name}: {json.dumps(f'{len(tokens)} tags and texts, {digest(chr(10).join(tokens))}')}\n"
        for name, tokens in reader.parts
        if tokens
    )


def drawing(text: str) -> str:
    """Return the texts of an SVG file and the digest of what it draws, without what names its maker."""
    reader = _Page(set())
    reader.feed(re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL))
    tokens = [token for _, part in reader.parts for token in part]
    texts = [token for token in tokens if not token.startswith("<")]
    return json.dumps({"digest": digest("\n".join(tokens)), "texts": texts}, ensure_ascii=False)


class _Page(HTMLParser):
    """Cuts a page at headings, charts and scripts into named lists of tags and texts."""

    def __init__(self, versions: set[str]) -> None:
        super().__init__()
        self.parts: list[tuple[str, list[str]]] = [("top", [])]
        self._versions = versions
        self._above: list[list[str]] = []
        self._heading = False
        self._timed = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("svg", "script", "style"):
            named = dict(attrs).get("id") or dict(attrs).get("aria-label") or ""
            self._above.append(self.parts[-1][1])
            self.parts.append((f"  {tag} {named}".rstrip(), []))
        if tag in ("h1", "h2", "h3"):
            self.parts.append((tag, []))
            self._heading = True
        shown = " ".join(f"{name}={' '.join((value or '').split())!r}" for name, value in sorted(attrs))
        self._take(f"<{tag} {shown}>" if shown else f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        self._take(f"</{tag}>")
        if tag in ("svg", "script", "style") and self._above:
            # What follows a chart belongs to the part that the chart stands in.
            self.parts.append(("  after", []))
            self._above.pop()

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text:
            return
        if self._heading:
            name, tokens = self.parts[-1]
            self.parts[-1] = (f"{name} {text}", tokens)
            self._heading = False
        if self._timed or text in self._versions:
            text, self._timed = "varies", False
        elif text in _TIMED:
            self._timed = True
        self._take(_canonical(text) if self.parts[-1][0].startswith("  script") else text)

    def _take(self, token: str) -> None:
        self.parts[-1][1].append(token)


def _canonical(text: str) -> str:
    """Return JSON in one form; other text as it is."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text
