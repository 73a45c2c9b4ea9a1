"""What raters see: the instructions, and a sheet as one HTML page that needs no network.

The page keeps answers in the browser while it is filled in, and saves them as a CSV that ``study read`` takes. Texts
reach it as JSON and are shown as text only; its policy allows its own script and style and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from esckit.report.render import embedded, page_policy
from esckit.roles.critics import DIMENSIONS
from esckit.study.key import RATED, StudyKey

Texts = tuple[tuple[str, str], ...]
"""Who says what, turn by turn."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The texts of one question.

    Attributes:
        question: Its id.
        situation: What the person's situation is said to be; may be empty.
        before: The conversation that is answered.
        answers: One, or two side by side.
    """

    question: str
    situation: str
    before: Texts
    answers: tuple[Texts, ...]


def asked_of(key: StudyKey) -> dict[str, str]:
    """Return what is asked of every question, by dimension, as a sentence."""
    if key.kind == "rating":
        return {name: RATED[name] for name in key.dimensions}
    found = {name: f"{DIMENSIONS[name][:1].upper()}{DIMENSIONS[name][1:]}?" for name in key.dimensions}
    # The judge's words are about replies.
    what = "conversation" if key.suite == "dialogue" else "reply"
    return {name: sentence.replace("reply", what) for name, sentence in found.items()}


def instructions(key: StudyKey) -> str:
    """Return the page that tells raters what to do, as Markdown."""
    what = "conversation" if key.suite == "dialogue" else "reply"
    if key.kind == "ab":
        task = (
            "Each question shows a conversation with a person in distress, and two ways to go on (answer 1 and answer "
            "2). For every line, answer `1` or `2`, or `tie` if you find no difference."
        )
    else:
        task = (
            f"Each question shows a conversation with a person in distress, and one {what} to rate. For every line, "
            "answer with a number from `1` (not at all) to `5` (very much)."
        )
    lines = [
        "# Instructions for raters",
        "",
        task,
        "",
        *(f"- **{name}**: {sentence}" for name, sentence in asked_of(key).items()),
        "",
        "Judge every line by itself: an answer can be well formed and of little comfort. Do not guess who or what "
        "wrote it.",
        "Some questions check that everything is read; they say what to answer.",
        "",
        "Fill in either the form (`forms/rN.html`, open it in a browser; it keeps your answers on this device until "
        "you save them as a file) or the sheet (`sheets/rN.csv`, in a spreadsheet; save it as CSV). Change nothing but "
        "the answers. Send back the one file.",
        "",
        "The conversations speak of grief, fear and other distress. You may pause or stop at any time.",
    ]
    return "\n".join(lines) + "\n"


def render_form(key: StudyKey, rater: str, shown: list[Shown]) -> str:
    """Return the form of one rater."""
    data: dict[str, Any] = {
        "study": key.study,
        "rater": rater,
        "kind": key.kind,
        "values": list(key.values),
        "dimensions": [[name, sentence] for name, sentence in asked_of(key).items()],
        "questions": [[each.question, each.situation, each.before, each.answers] for each in shown],
    }
    script, style = _asset("form.js"), _asset("form.css")
    templates = Environment(
        loader=PackageLoader("esckit.study", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = templates.get_template("form.html").render(
        rater=rater,
        policy=page_policy(script, style),
        script=Markup(script),
        style=Markup(style),
        data=Markup(embedded(data)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _asset(name: str) -> str:
    return (files("esckit.study") / "assets" / name).read_text(encoding="utf-8").strip()
