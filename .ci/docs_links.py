"""A hook of mkdocs: links that leave ``docs/`` lead to the repository, as they do when the pages are read there."""

from __future__ import annotations

import re
from typing import Any

# [words](../path#part), but not inside code.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return a page whose links out of the folder name the repository; without one, their words remain."""
    base = config.repo_url.rstrip("/") if config.repo_url else None

    def linked(found: re.Match[str]) -> str:
        words, path, part = found[1], found[2], found[3] or ""
        return f"[{words}]({base}/blob/main/{path}{part})" if base else words

    return _OUTSIDE.sub(linked, markdown)
