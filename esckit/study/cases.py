"""The cases of several evaluations as people see them: what was said before, and what each system answered.

Replies (``response``, ``pairwise``) answer a context of the corpus, which is read again from where the recipe names it;
a self-played dialogue (``dialogue``) is shown as a whole. Only cases that every system answered are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from esckit.errors import DataError
from esckit.evaluate.paired import recipe_of
from esckit.evaluate.recipe import SUITES
from esckit.evaluate.suite import Material
from esckit.evaluate.suites.critics import Episode
from esckit.evaluate.suites.pairwise import PairCase
from esckit.evaluate.suites.response import ResponseCase
from esckit.play.unit_file import latest
from esckit.report.source import Run, section
from esckit.types import Turn

SuiteName: TypeAlias = Literal["response", "pairwise", "dialogue"]

SHOWABLE: tuple[SuiteName, ...] = ("response", "pairwise", "dialogue")

Talk = tuple[tuple[str, str], ...]
"""Speaker and text, turn by turn."""


@dataclass(frozen=True, slots=True)
class ShownCase:
    """One case with the answers of all systems.

    Attributes:
        situation: What the seeker's situation is said to be; may be empty.
        before: The conversation that all systems answer.
        answers: By system, what it added: one reply, or a whole conversation.
    """

    id: str
    dialogue_id: str
    situation: str
    before: Talk
    answers: Mapping[str, Talk]


def shared_suite(runs: Mapping[str, Run]) -> SuiteName:
    """Return the first suite that all runs have and people can rate.

    Raises:
        DataError: If there is none.
    """
    for suite in SHOWABLE:
        if all(suite in section(run.manifest, "conditions") for run in runs.values()):
            return suite
    raise DataError(
        f"no suite in common of {', '.join(runs)}", expected=f"evaluations with one of {', '.join(SHOWABLE)}"
    )


def cases_on_disk(run: Run, suite: str) -> dict[str, Any]:
    """Return the cases of a suite of an evaluation by id; none where it has no such file."""
    file = next(file for each in SUITES if each.name == suite for file in each.files)
    return latest(run.path / file.path, file.kind)


def shown_cases(runs: Mapping[str, Run], suite: SuiteName) -> list[ShownCase]:
    """Return the cases that every run has an answer to, in the order of the first run.

    Args:
        runs: At least one, evaluated on the same cases.
        suite: A suite that all of them have.

    Raises:
        DataError: If there is none, or the corpus is not what it was.
    """
    answers = {name: _answers(cases_on_disk(run, suite)) for name, run in runs.items()}
    first = next(iter(answers.values()))
    ids = [case_id for case_id in first if all(case_id in found for found in answers.values())]
    if not ids:
        raise DataError(f"no case of {suite} that {', '.join(runs)} all answered", expected="one case at least")
    before = _conversations(next(iter(runs.values())), suite, ids)
    return [
        ShownCase(
            case_id,
            first[case_id][0],
            *before[case_id],
            {name: found[case_id][1] for name, found in answers.items()},
        )
        for case_id in ids
    ]


def _answers(cases: Mapping[str, Any]) -> dict[str, tuple[str, Talk]]:
    """Return the dialogue and the answer of every case that has one."""
    readers: dict[type, Callable[[Any], Talk | None]] = {
        ResponseCase: lambda case: _reply(case.reply),
        PairCase: lambda case: _reply(case.reply_a),
        Episode: _played,
    }
    found = {case_id: (case.dialogue_id, readers[type(case)](case)) for case_id, case in cases.items()}
    return {case_id: (dialogue_id, talk) for case_id, (dialogue_id, talk) in found.items() if talk}


def _reply(text: str | None) -> Talk | None:
    return (("supporter", text.strip()),) if text and text.strip() else None


def _played(episode: Episode) -> Talk | None:
    """Return the turns of a dialogue, None of one that broke off."""
    if episode.failure is not None:
        return None
    pairs = [(("supporter", turn.supporter.response), ("seeker", turn.seeker)) for turn in episode.turns]
    return tuple((speaker, text.strip()) for pair in pairs for speaker, text in pair if text and text.strip())


def _conversations(run: Run, suite: SuiteName, ids: Sequence[str]) -> dict[str, tuple[str, Talk]]:
    """Return the situation and what was said before, by case."""
    if suite == "dialogue":
        episodes = cases_on_disk(run, suite)
        return {name: ("", (("seeker", episodes[name].scenario.situation.strip()),)) for name in ids}

    def said(turns: Sequence[Turn]) -> Talk:
        return tuple((turn.speaker, turn.text.strip()) for turn in turns)

    wanted = set(ids)
    found = {
        context.id: (context.scenario.situation.strip(), said(context.turns))
        for context in Material(recipe_of(run)).reply_contexts()
        if context.id in wanted
    }
    if lost := sorted(wanted - found.keys()):
        raise DataError(
            f"{len(lost)} of {len(ids)} contexts are not in the corpus any more, such as {lost[0]}",
            path=str(section(run.recipe, "data").get("path")),
            expected="the corpus that was evaluated on",
        )
    return found
