"""``esckit strategies``: taxonomies and the mappings between them, looked at, checked, copied and begun.

Not here: how labels of a corpus are read (:mod:`esckit.data.selection`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esckit.cli.common import JsonOption, echo, echo_json, names_or_files, run_names, write_copy
from esckit.errors import ConfigError

if TYPE_CHECKING:
    from esckit.strategies.mapping import StrategyMapping
    from esckit.strategies.taxonomy import Taxonomy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show and copy taxonomies of support strategies, and the mappings between them.",
    pretty_exceptions_enable=False,
)


def _taxonomies(incomplete: str) -> list[str]:
    """Return the taxonomies that complete a word: shipped ones, files and runs."""
    from esckit.strategies.files import shipped_names

    return [*names_or_files(shipped_names("taxonomy"), incomplete), *run_names(incomplete)]


def _mappings(incomplete: str) -> list[str]:
    """Return the mappings that complete a word: shipped ones and files."""
    from esckit.strategies.files import shipped_names

    return names_or_files(shipped_names("mapping"), incomplete)


def _shipped(incomplete: str) -> list[str]:
    """Return the shipped taxonomies and mappings that complete a word."""
    from esckit.strategies.files import shipped_names

    names = (*shipped_names("taxonomy"), *shipped_names("mapping"))
    return [name for name in names if name.startswith(incomplete)]


ForceOption = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


@app.command("list")
def list_strategies(as_json: JsonOption = False) -> None:
    """List the taxonomies and mappings that ship with esckit."""
    from esckit.strategies.files import shipped_names
    from esckit.strategies.mapping import load_mapping
    from esckit.strategies.taxonomy import load_taxonomy

    taxonomies = [load_taxonomy(name) for name in shipped_names("taxonomy")]
    mappings = [load_mapping(name) for name in shipped_names("mapping")]
    if as_json:
        heads = [{"name": one.name, "strategies": len(one.names), "title": one.title} for one in taxonomies]
        ends = [{"name": one.name, "from": one.source, "to": one.target} for one in mappings]
        echo_json({"taxonomies": heads, "mappings": ends})
        return
    width = max(map(len, (*shipped_names("taxonomy"), *shipped_names("mapping"))))
    echo("taxonomies")
    for one in taxonomies:
        echo(f"  {one.name:<{width}}  {len(one.names):>2} strategies  {one.title}")
    echo("mappings")
    for each in mappings:
        lost = sum(target is None for target in each.map.values())
        echo(
            f"  {each.name:<{width}}  {each.source} → {each.target}" + (f", {lost} without a counterpart" * bool(lost))
        )


@app.command()
def show(
    taxonomy: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|RUN",
            show_default=False,
            autocompletion=_taxonomies,
            help="A taxonomy: name, YAML file or run.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Print a taxonomy: names, abbreviations, definitions, other spellings.

    A file of your own is checked; all that is wrong with it is named at once.
    """
    from esckit.strategies.taxonomy import load_taxonomy

    found = load_taxonomy(taxonomy)
    notes = _notes(found)
    if as_json:
        echo_json({**found.model_dump(mode="json"), "digest": found.digest, "notes": notes})
        return
    echo(f"{found.name}: {found.title}")
    echo(f"source  {found.source}")
    echo(f"stages  {', '.join(found.stages)}")
    echo(f"digest  {found.digest}")
    width = max(map(len, found.abbrs))
    for one in found.strategies:
        stages = ", ".join((one.stage, *one.stages))
        echo(f"\n{one.abbr:<{width}}  {one.name}  ({stages}{'; the fallback' * one.fallback})")
        echo(f"{'':<{width}}  {one.definition}")
        if one.aliases:
            echo(f"{'':<{width}}  also read: {', '.join(one.aliases)}")
    for note in notes:
        echo(f"note: {note}", err=True)


def _notes(taxonomy: Taxonomy) -> list[str]:
    """Return what its author should know about a taxonomy that can be used."""
    from string import ascii_uppercase

    from esckit.strategies.files import shipped_names
    from esckit.strategies.kept import differences, is_shipped
    from esckit.strategies.taxonomy import load_taxonomy

    notes, n = [], len(taxonomy.names)
    if n > len(ascii_uppercase):
        notes.append(f"{n} strategies: strategist.readout: choices reads at most {len(ascii_uppercase)}; use json")
    if taxonomy.name in shipped_names("taxonomy") and not is_shipped(taxonomy):
        found = differences(taxonomy, load_taxonomy(taxonomy.name))
        notes.append(
            f"a taxonomy called {taxonomy.name} ships with esckit, and this one is another ({'; '.join(found[:4])}): "
            "readers of your results will take it for the shipped one, so give it a name of its own"
        )
    return notes


@app.command("map")
def show_mapping(
    mapping: Annotated[
        str | None,
        typer.Argument(
            metavar="[MAPPING]",
            show_default=False,
            autocompletion=_mappings,
            help="A mapping: name or YAML file.",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", metavar="PATH", show_default=False, help="Count what the mapping does to a corpus."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="TAXONOMY", show_default=False, help="In place of MAPPING: the one end"),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="TAXONOMY", show_default=False, help="and the other.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", show_default=False, help="Begin a mapping between the two, to fill in."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a mapping makes of every strategy; or, with --from and --to, which mappings there are.

    --corpus counts the labels of a corpus that the mapping loses. --out writes a file in which only counterparts with
    the same name are filled in.
    """
    if mapping is not None and source is None and target is None and out is None:
        _show_mapping(mapping, corpus, as_json=as_json)
    elif mapping is None and source is not None and target is not None and corpus is None:
        _find_mapping(source, target, out, force=force, as_json=as_json)
    else:
        raise ConfigError(
            "what to show is not clear",
            expected="a MAPPING (with --corpus PATH if you like), or --from TAXONOMY --to TAXONOMY (with --out FILE)",
            hint="'esckit strategies list' shows the mappings that ship",
        )


def _show_mapping(name: str, corpus: str | None, *, as_json: bool) -> None:
    from esckit.strategies.mapping import load_mapping
    from esckit.strategies.taxonomy import load_taxonomy

    mapping = load_mapping(name)
    source, target = load_taxonomy(mapping.source), load_taxonomy(mapping.target)
    unused = [one for one in target.names if one not in mapping.map.values()]
    counts = _label_counts(corpus, source) if corpus is not None else None
    if as_json:
        facts = {**mapping.model_dump(mode="json", by_alias=True), "digest": mapping.digest, "never_used": unused}
        echo_json(facts if counts is None else {**facts, "corpus": _effect(mapping, counts)})
        return
    echo(f"{mapping.name}: {source.name} → {target.name}{', loses information' * mapping.lossy}")
    echo(f"note    {mapping.note}")
    width = max(map(len, source.names))
    for strategy in source.strategies:
        n = "" if counts is None else f"{counts[strategy.name]:>8,}  "
        echo(f"{n}{strategy.name:<{width}}  →  {mapping.map[strategy.name] or '– (no label)'}")
    if unused:
        echo(f"no strategy becomes {', '.join(unused)}")
    if counts is not None:
        effect = _effect(mapping, counts)
        share = f" ({effect['lost'] / effect['labelled']:.1%})" if effect["labelled"] else ""
        echo(
            f"{effect['labelled']:,} labelled turns: {effect['lost']:,} lose their label{share}; "
            f"{effect['merged']:,} share their new label with another strategy; "
            f"{effect['unlabelled']:,} have no label or an unknown one before the mapping"
        )


def _label_counts(corpus: str, taxonomy: Taxonomy) -> Counter[str | None]:
    """Return how often each strategy of a taxonomy labels a supporter turn of a corpus; None for those without one."""
    from esckit.data.selection import LabelRules, read_labelled

    rules = LabelRules(target=taxonomy, unknown="keep")
    reading = read_labelled(corpus, format="auto", rules=rules, go_on=True)
    turns = (turn for dialogue in reading.dialogues for turn in dialogue.turns if turn.speaker == "supporter")
    return Counter(turn.strategy for turn in turns)


def _effect(mapping: StrategyMapping, counts: Mapping[str | None, int]) -> dict[str, Any]:
    """Return what a mapping makes of the labels of a corpus, in supporter turns."""
    labelled = {name: n for name, n in counts.items() if name is not None}
    makers = Counter(mapping.map[name] for name in labelled)
    return {
        "labels": labelled,
        "labelled": sum(labelled.values()),
        "unlabelled": counts.get(None, 0),
        "lost": sum(n for name, n in labelled.items() if mapping.map[name] is None),
        "merged": sum(n for name, n in labelled.items() if mapping.map[name] and makers[mapping.map[name]] > 1),
    }


def _find_mapping(source: str, target: str, out: Path | None, *, force: bool, as_json: bool) -> None:
    from esckit.strategies.files import mappings_between
    from esckit.strategies.mapping import skeleton
    from esckit.strategies.taxonomy import load_taxonomy

    ends = load_taxonomy(source), load_taxonomy(target)
    shipped = mappings_between(ends[0].name, ends[1].name)
    if out is not None:
        write_copy(out, skeleton(source, target, name=out.stem), force=force)
        if not as_json:
            echo(str(out))
            return
    if as_json:
        echo_json({"shipped": list(shipped), "written": str(out) if out is not None else None})
    elif shipped:
        echo("\n".join(shipped))
    else:
        echo(f"none from {ends[0].name} to {ends[1].name} ships; --out FILE begins one of your own", err=True)


@app.command()
def copy(
    name: Annotated[
        str,
        typer.Argument(
            show_default=False,
            autocompletion=_shipped,
            help="A taxonomy or mapping (see 'esckit strategies list').",
        ),
    ],
    to: Annotated[Path | None, typer.Argument(show_default=False, help="File; by default my_<name>.yaml here.")] = None,
    force: ForceOption = False,
) -> None:
    """Copy a taxonomy or a mapping into a file of your own, under the name of the file."""
    from esckit.documents import read_text
    from esckit.registry import did_you_mean
    from esckit.strategies.files import shipped_file, shipped_names

    taxonomies, mappings = shipped_names("taxonomy"), shipped_names("mapping")
    if name not in (*taxonomies, *mappings):
        raise ConfigError(
            f"no taxonomy or mapping {name!r} ships with esckit",
            expected=f"one of {', '.join((*taxonomies, *mappings))}",
            hint=did_you_mean(name, (*taxonomies, *mappings)).capitalize() or None,
        )
    text = read_text(shipped_file("mapping" if name in mappings else "taxonomy", name))
    target = to or Path(f"my_{name}.yaml")
    if target.is_dir():
        target = target / f"my_{name}.yaml"
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target} does not end in .yaml", expected="a file by whose name recipes can find it")
    write_copy(target, text.replace(f"name: {name}\n", f"name: {target.stem}\n", 1), force=force)
    echo(str(target))
