"""What ``train-sft`` learns from: replies of a corpus, of good futures, or of the best paths of search trees.

An example is a context, the reply to it, and what is known about the reply: the reasoning before it and its strategy.
Nothing is made up. Reasoning is what a model wrote before the reply, or what a turn of the practice world's supporter
rests on, which the world's own rules read from the words. Here are also the text that is learnt (:func:`target`) and
its token ids (:func:`build_rows`); no model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from esckit.data.contexts import build_contexts
from esckit.data.selection import select_dialogues
from esckit.data.splits import without_dev
from esckit.errors import DataError
from esckit.play.futures import RewardInputs, label_by, read_inputs
from esckit.play.trees import read_trees, tree_file
from esckit.practice.corpus import CORPUS
from esckit.practice.language import supporter_thought
from esckit.prompts.prompt import Prompt
from esckit.records import file_sha256
from esckit.roles.asking import asks_for_tags, read_output
from esckit.runs import MANIFEST, read_manifest
from esckit.sft.recipe import Form, ReplySource, TrainSftRecipe
from esckit.training.policy import PolicyPrompt
from esckit.types import Context, Future, Message, Outcome, SearchTree, TreeNode, Turn, main_line, trajectories


@dataclass(frozen=True, slots=True)
class SftExample:
    """One reply to learn.

    Attributes:
        context: The conversation that it answers; its id is unique among the examples of a source.
        reply: What the seeker sees.
        reasoning: What stood before it, or it rests on; None if the source has none.
        strategy: Its strategy; None if the source names none.
    """

    context: Context
    reply: str
    reasoning: str | None = None
    strategy: str | None = None

    @property
    def dialogue_id(self) -> str:
        """The dialogue that its context is of."""
        return self.context.dialogue_id


@dataclass(frozen=True, slots=True)
class SftMaterial:
    """Everything that is learnt from, split by dialogue.

    Attributes:
        train: Examples to train on.
        dev: Held-out examples.
        left_out: How many replies were left out, by the reason.
        dialogue_ids: Dialogues that are trained or selected on, those of the inputs included.
        facts: What the manifest says about the data.
        inputs: SHA-256 of the input files by run.
    """

    train: tuple[SftExample, ...]
    dev: tuple[SftExample, ...]
    left_out: dict[str, int]
    dialogue_ids: tuple[str, ...]
    facts: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def dev_ids(self) -> tuple[str, ...]:
        """The held-out dialogues."""
        return tuple(dict.fromkeys(example.dialogue_id for example in self.dev))


def collect(replies: ReplySource) -> SftMaterial:
    """Return the replies that a source has, without any model; perhaps none.

    Raises:
        DataError: If the source cannot be read.
        ConfigError: If the taxonomies differ and no mapping fits.
    """
    found = {"corpus": _of_corpus, "futures": _of_futures, "trees": _of_trees}[replies.source](replies)
    left_out = Counter(found.left_out)
    train = _usable(found.train, replies.form, left_out)
    dev = _usable(found.dev, replies.form, left_out)
    return SftMaterial(train, dev, dict(left_out), found.dialogue_ids, found.facts, found.inputs)


def collect_to_train(recipe: TrainSftRecipe) -> SftMaterial:
    """Return what the recipe learns from, without any model.

    Raises:
        DataError: If a source cannot be read, or no reply of it is left.
        ConfigError: If the taxonomies differ and no mapping fits.
    """
    material = collect(recipe)
    if not material.train:
        raise _nothing_left(recipe, material.left_out)
    if recipe.optim.select == "best_dev" and not material.dev:
        raise DataError("no dev example to select by", hint="Raise dev.share, change seed, or set optim.select: last")
    return material


def _usable(examples: Iterable[SftExample], form: Form, left_out: Counter[str]) -> tuple[SftExample, ...]:
    """Return the examples that have all that the form asks for, each reply to a context once; count the others."""
    kept: dict[tuple[str, str], SftExample] = {}
    for example in examples:
        text = target(example, form)
        output = read_output(text)
        if form.reasoning and not example.reasoning:
            left_out["without_reasoning"] += 1
        elif form.strategy != "none" and not example.strategy:
            left_out["without_strategy"] += 1
        elif output.response != example.reply or output.format_ok != form.is_tagged:
            left_out["malformed"] += 1  # the reply is blank, or holds tags or labels of its own
        elif kept.setdefault((example.context.id, text), example) is not example:
            left_out["repeated"] += 1
    return tuple(kept.values())


def _nothing_left(recipe: TrainSftRecipe, left_out: Mapping[str, int]) -> DataError:
    """Return why there is nothing to train on."""
    counted = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in left_out.items() if n) or "none left out"
    if left_out.get("without_reasoning"):
        return DataError(
            f"form.reasoning: true, and no reply of this source has reasoning ({counted})",
            expected="futures of a supporter that reasons, or turns of the practice world's supporter",
            hint="Set form.reasoning=false; with form.strategy=tag the agreed form holds the strategy alone",
        )
    if left_out.get("without_strategy"):
        return DataError(
            f"form.strategy: {recipe.form.strategy}, and no reply of this source names its strategy ({counted})",
            expected="a corpus with strategy labels, or runs with a strategist",
            hint="Set form.strategy=none",
        )
    hints = {
        "corpus": "See data.split, data.limit and dev.share",
        "futures": "Choose another rule in futures.keep: esckit train-reward RECIPE --dry-run shows the share of each",
        "trees": "Lower trees.min_value, search more dialogues, or lower dev.share",
    }
    return DataError(
        f"no reply to train on ({counted})",
        expected="at least one outside the dev dialogues",
        hint=hints[recipe.source],
    )


# ---------------------------------------------------------------- a corpus


def _of_corpus(recipe: ReplySource) -> SftMaterial:
    assert recipe.data is not None
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy)
    contexts = build_contexts(selection.dialogues, recipe.contexts, run_seed=recipe.seed)
    is_world = selection.format == CORPUS

    def examples() -> Iterator[SftExample]:
        for context in contexts:
            answer = context.reference
            assert answer is not None  # a context of a corpus is cut before a supporter's turn
            reply = answer.text.strip()
            thought = supporter_thought(reply, context.turns) if is_world else None
            yield SftExample(context, reply, thought, answer.strategy)

    train, dev = without_dev(examples(), seed=recipe.seed, share=recipe.dev.share)
    return SftMaterial(tuple(train), tuple(dev), {}, selection.ids, selection.facts())


# ---------------------------------------------------------------- futures


def _of_futures(recipe: ReplySource) -> SftMaterial:
    assert recipe.futures is not None
    inputs = read_inputs(recipe.inputs)
    scored = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    parts = without_dev(scored, seed=recipe.seed, share=recipe.dev.share)
    good = [
        [future for future, is_good in zip(part, labelling.labels, strict=True) if is_good]
        for part, labelling in zip(parts, label_by(recipe.futures.keep, *parts), strict=True)
    ]
    counts = {"failed": len(inputs.futures) - len(scored), "not_good": len(scored) - sum(map(len, good))}
    is_world = any(_is_world(Path(folder)) for folder in recipe.inputs)
    train, dev = (
        tuple(example for future in part for example in _replies(future, inputs, recipe, is_world=is_world))
        for part in good
    )
    return SftMaterial(train, dev, counts, inputs.dialogue_ids, inputs.facts(), inputs.digests)


def _replies(future: Future, inputs: RewardInputs, recipe: ReplySource, *, is_world: bool) -> Iterator[SftExample]:
    """Yield the reply that a future is of, or all supporter turns of it."""
    assert recipe.futures is not None
    context = inputs.contexts.get(future.context_id)
    if context is None:
        raise DataError(f"future {future.id} without its context", expected="a whole run of simulate")
    turns = context.turns
    for exchange in future.exchanges if recipe.futures.exchanges == "all" else future.exchanges[:1]:
        output = exchange.supporter
        reply = output.response.strip()
        thought = output.reasoning or (supporter_thought(reply, turns) if is_world else None)
        # The candidates of a context share it; later turns stand in conversations of their own.
        name = context.id if exchange.k == 0 else f"{future.id}:{future.run_seed}:{exchange.k}"
        here = context.model_copy(update={"id": name, "turns": turns})
        yield SftExample(here, reply, thought, exchange.strategy)
        turns = (*turns, Turn(speaker="supporter", text=output.response))
        if exchange.seeker is None:
            return
        turns = (*turns, Turn(speaker="seeker", text=exchange.seeker))


def _is_world(folder: Path) -> bool:
    """Return whether the supporter of a run was the practice world's, whose turns rest on what its rules read."""
    if not (folder / MANIFEST).is_file():
        return False
    models = read_manifest(folder)["recipe"].get("models") or {}
    return "world" in (models.get("supporter") or {})


# ---------------------------------------------------------------- search trees


def _of_trees(recipe: ReplySource) -> SftMaterial:
    files = {name: tree_file(Path(name)) for name in recipe.inputs}
    counts: Counter[str] = Counter()
    examples: list[SftExample] = []
    ids: dict[str, None] = {}
    for name, file in files.items():
        is_world = _is_world(file.parent)
        for tree in read_trees(file):
            ids[tree.scenario.id] = None
            if tree.status == "failed":
                counts["failed"] += 1
                continue
            path = best_path(tree, recipe)
            if not path:
                counts["not_good"] += 1
            examples += _path_replies(tree, path, f"{name}:{tree.id}:{tree.run_seed}", is_world=is_world)
    train, dev = without_dev(examples, seed=recipe.seed, share=recipe.dev.share)
    digests = {name: file_sha256(file) for name, file in files.items()}
    return SftMaterial(
        tuple(train), tuple(dev), dict(counts), tuple(ids), {"inputs": digests, "ids": list(ids)}, digests
    )


def best_path(tree: SearchTree, recipe: ReplySource) -> Sequence[TreeNode]:
    """Return the nodes of a tree's best path, root first; none if its leaf has less than the value that is asked for.

    Of leaves of equal value the one with more visits counts, then the earlier one in depth-first order.

    Raises:
        DataError: If the tree is not whole.
    """
    rule = recipe.trees
    if rule.path == "visits":
        path = main_line(tree)
    else:
        paths = [found for found in trajectories(tree, min_actions=1) if found.leaf.value is not None]
        if not paths:
            return ()
        best = max(paths, key=lambda found: (found.leaf_value, found.leaf.visits))
        path = [*(step.state for step in best.steps), best.leaf]
    value = path[-1].value
    if len(path) < 2 or value is None or (rule.min_value is not None and value < Fraction(rule.min_value)):
        return ()
    return path


def _path_replies(tree: SearchTree, path: Sequence[TreeNode], name: str, *, is_world: bool) -> Iterator[SftExample]:
    """Yield the supporter turns of a path; turns of the root belong to the corpus."""
    turns: tuple[Turn, ...] = ()
    for node in path:
        for turn in node.turns:
            if turn.speaker == "supporter" and node.parent is not None:
                reply = turn.text.strip()
                thought = supporter_thought(reply, turns) if is_world else None
                context = Context(
                    id=f"{name}:{len(turns)}", dialogue_id=tree.scenario.id, scenario=tree.scenario, turns=turns
                )
                yield SftExample(context, reply, thought, turn.strategy or node.strategy)
            turns = (*turns, turn)


# ---------------------------------------------------------------- what is learnt


def target(example: SftExample, form: Form) -> str:
    """Return the text that is learnt: the reply alone, or in the agreed form behind what comes before it."""
    if not form.is_tagged:
        return example.reply
    thoughts = [example.reasoning or ""] if form.reasoning else []
    if form.strategy == "tag":
        thoughts.append(f"Strategy: {example.strategy}.")
    return f"<think>{' '.join(thoughts)}</think> <response>{example.reply}</response>"


def form_warnings(form: Form, prompt: Prompt) -> list[str]:
    """Return what is unusual about the form of replies behind a prompt."""
    if asks_for_tags(prompt) and not form.is_tagged:
        return [
            f"prompt {prompt.identity} asks for <think> and <response>, and the replies that are learnt have neither; "
            "name the strategy in a tag, write the reasoning, or take the prompt supporter_ppdpp"
        ]
    if form.is_tagged and not asks_for_tags(prompt):
        return [f"the replies that are learnt have <think> and <response>, for which {prompt.identity} does not ask"]
    return []


@dataclass(frozen=True, slots=True)
class SftRow:
    """An example as tokens.

    Attributes:
        id: That of its context.
        prompt: Ids up to the reply.
        completion: Ids of what is learnt, the end of the turn included.
    """

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def as_columns(self) -> dict[str, list[int]]:
        """Return what TRL's trainer takes: ``input_ids``, and ``labels`` that are -100 in the prompt."""
        ignored = [-100] * len(self.prompt)
        return {"input_ids": [*self.prompt, *self.completion], "labels": [*ignored, *self.completion]}


def build_rows(
    examples: Iterable[SftExample], prompt: PolicyPrompt, form: Form, *, max_completion_tokens: int
) -> tuple[list[SftRow], dict[str, int]]:
    """Return examples as tokens, exactly those that the supporter will be asked with and has to write.

    Returns:
        The rows in order, and how many there are (``rows``), lost oldest turns (``cut``), or were left out since the
        prompt's last turn or the reply does not fit (``too_long``).
    """
    rows: list[SftRow] = []
    counts = {"rows": 0, "cut": 0, "too_long": 0}
    for example in examples:
        fitted = prompt.fitted(example.context, example.strategy if form.strategy == "prompt" else None)
        (said,) = prompt.chat.as_dicts([Message("assistant", target(example, form))])  # no control string leaves it
        completion = prompt.chat.answer(said["content"])
        if fitted is None or len(completion) > max_completion_tokens:
            counts["too_long"] += 1
            continue
        counts["rows"] += 1
        counts["cut"] += fitted[1] > 0
        rows.append(SftRow(example.context.id, prompt.chat.encode(fitted[0]), completion))
    return rows, counts
