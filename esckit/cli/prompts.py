"""``esckit prompts``: what models are asked, looked at, copied and checked before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esckit.cli.common import JsonOption, SetOption, echo, echo_json, names_or_files, write_copy
from esckit.errors import ConfigError

if TYPE_CHECKING:
    from esckit.roles.example import Example, NamedPrompt
    from esckit.strategies.taxonomy import Taxonomy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show, copy and check prompts: one YAML file is what one role is asked.",
    pretty_exceptions_enable=False,
)


def _shipped(incomplete: str) -> list[str]:
    """Return the shipped prompts that complete a word."""
    from esckit.prompts.prompt import prompt_names

    return [name for name in prompt_names() if name.startswith(incomplete)]


def _prompts(incomplete: str) -> list[str]:
    """Return the prompts that complete a word: shipped ones and files."""
    from esckit.prompts.prompt import prompt_names

    return names_or_files(prompt_names(), incomplete)


def _prompts_and_recipes(incomplete: str) -> list[str]:
    """Return the shipped prompts and recipes, and the files, that complete a word."""
    from esckit.config.load import shipped_recipes
    from esckit.prompts.prompt import prompt_names

    return names_or_files((*prompt_names(), *(recipe.name for recipe in shipped_recipes())), incomplete)


RoleOption = Annotated[
    str | None,
    typer.Option(
        "--role", metavar="ROLE", show_default=False, help="What the prompt is for, if it fits several roles."
    ),
]

TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        "--taxonomy",
        metavar="NAME|FILE|RUN",
        show_default=False,
        help="Strategies of the example; by default those of the recipe, or AFlow's.",
    ),
]


@app.command("list")
def list_prompts(as_json: JsonOption = False) -> None:
    """List the prompts that ship with esckit: the roles that each is for, and its placeholders."""
    from esckit.prompts.prompt import load_prompt, prompt_names

    rows: list[dict[str, Any]] = []
    for name in prompt_names():
        prompt = load_prompt(name)
        roles = _roles_of(name)
        placeholders = [*prompt.variables, *(f"{variable}?" for variable in prompt.optional)]
        rows.append({"name": name, "roles": roles, "placeholders": placeholders, "fields": _fields_of(roles)})
    if as_json:
        echo_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        echo(f"{row['name']:<{width}}  for {', '.join(row['roles'])}")
        echo(f"{'':<{width}}  fills in {', '.join(row['placeholders']) or 'nothing'}")
        echo(f"{'':<{width}}  recipe field {'; '.join(row['fields'])}")
    echo("A placeholder with ? may have no value.", err=True)


def _roles_of(name: str) -> list[str]:
    """Return the roles that a prompt is for.

    Raises:
        ConfigError: If it is for none.
    """
    from esckit.prompts.prompt import ROLES, load_prompt

    prompt = load_prompt(name)
    found = [role for role in ROLES if prompt.fits(role)]
    if found:
        return found
    declared = {*prompt.variables, *prompt.optional}
    nearest = max(ROLES, key=lambda role: _likeness(declared, {*ROLES[role].given, *ROLES[role].optional}))
    prompt.check(nearest, name)
    raise AssertionError(f"{name} fits {nearest}")


def _likeness(ours: set[str], theirs: set[str]) -> float:
    """Return the share of variables that two sets have in common, in [0, 1]."""
    return len(ours & theirs) / max(1, len(ours | theirs))


def _fields_of(roles: list[str]) -> list[str]:
    """Return where recipes name a prompt for one of some roles, as ``prompts.seeker of simulate, evaluate``."""
    from esckit.prompts.prompt import FIELDS

    found: dict[str, list[str]] = {}
    for command, fields in FIELDS.items():
        for field, fitting in fields.items():
            if set(roles) & set(fitting):
                found.setdefault(field, []).append(command)
    return [f"{field} of {', '.join(commands)}" for field, commands in found.items()]


@app.command()
def show(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", show_default=False, autocompletion=_prompts, help="A prompt: name or YAML file."
        ),
    ],
    rendered: Annotated[
        bool, typer.Option("--rendered", help="Print what a model would read, with a dialogue of the sample corpus.")
    ] = False,
    role: RoleOption = None,
    taxonomy: TaxonomyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a prompt as it is written, or filled in."""
    from esckit.documents import read_text
    from esckit.prompts.prompt import load_prompt, prompt_names, prompt_text

    if rendered or role is not None or taxonomy is not None:
        from esckit.roles.example import NamedPrompt

        chosen = NamedPrompt("", prompt, _role(prompt, role))
        _echo_examples([chosen], _taxonomy(taxonomy), None, as_json=as_json)
        return
    found = load_prompt(prompt)
    if as_json:
        echo_json({**found.model_dump(mode="json"), "digest": found.digest})
    else:
        echo(prompt_text(prompt) if prompt in prompt_names() else read_text(Path(prompt)), nl=False)


def _role(prompt: str, wanted: str | None) -> str:
    """Return the role that a prompt is looked at for: the wanted one, or the first that it fits."""
    from esckit.prompts.prompt import ROLES, load_prompt
    from esckit.registry import did_you_mean

    if wanted is None:
        return _roles_of(prompt)[0]
    if wanted not in ROLES:
        hint = did_you_mean(wanted, ROLES).capitalize() or None
        raise ConfigError(f"--role {wanted}", expected=f"one of {', '.join(ROLES)}", hint=hint)
    load_prompt(prompt, wanted)
    return wanted


def _taxonomy(name: str | None) -> Taxonomy | None:
    from esckit.strategies.taxonomy import load_taxonomy

    return load_taxonomy(name) if name is not None else None


@app.command()
def copy(
    prompt: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, autocompletion=_shipped, help="A prompt that ships."),
    ],
    to: Annotated[Path | None, typer.Argument(show_default=False, help="File; by default my_<name>.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Copy a prompt into a file of your own, under the name of the file; recipes name the file."""
    from esckit.prompts.prompt import prompt_names, prompt_text
    from esckit.registry import did_you_mean

    names = prompt_names()
    if prompt not in names:
        hint = did_you_mean(prompt, names).capitalize() or None
        raise ConfigError(f"no prompt {prompt!r} ships with esckit", expected=f"one of {', '.join(names)}", hint=hint)
    target = to or Path(f"my_{prompt}.yaml")
    if target.is_dir():
        target = target / f"my_{prompt}.yaml"
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target} does not end in .yaml", expected="a file by whose name recipes can find it")
    write_copy(target, prompt_text(prompt).replace(f"name: {prompt}\n", f"name: {target.stem}\n", 1), force=force)
    echo(str(target))


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT|RECIPE",
            show_default=False,
            autocompletion=_prompts_and_recipes,
            help="A prompt, or a recipe whose prompts to check.",
        ),
    ],
    changes: SetOption = None,
    role: RoleOption = None,
    taxonomy: TaxonomyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a prompt, or all prompts of a recipe, and print what the models would read; no model is loaded.

    What may be wrong is noted. Exits with 2 if a role could not use the prompt.
    """
    from esckit.roles.example import NamedPrompt, named_prompts, preset_of, taxonomy_of

    if not _is_recipe(what):
        if changes:
            raise ConfigError("--set with a prompt", expected="a recipe, whose fields it changes")
        named = [NamedPrompt("", what, _role(what, role))]
        _echo_examples(named, _taxonomy(taxonomy), None, as_json=as_json)
        return
    from esckit.config.load import load_any_recipe
    from esckit.config.sections import Recipe

    if role is not None:
        raise ConfigError("--role with a recipe", expected="a prompt; a recipe says what its prompts are for")
    recipe = load_any_recipe(what, overrides=changes or ()).recipe
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{what} is a pipeline", expected="the recipe of one of its stages")
    named = named_prompts(recipe)
    labels = _taxonomy(taxonomy) or taxonomy_of(recipe)
    _echo_examples(named, labels, preset_of(recipe), as_json=as_json)


def _is_recipe(what: str) -> bool:
    """Return whether a word names a recipe rather than a prompt."""
    from esckit.config.load import shipped_recipes
    from esckit.documents import parse_yaml, read_text
    from esckit.prompts.prompt import prompt_names
    from esckit.registry import did_you_mean

    if what in prompt_names():
        return False
    if not Path(what).is_file():
        recipes = [recipe.name for recipe in shipped_recipes()]
        if what not in recipes:
            known = (*prompt_names(), *recipes)
            hint = did_you_mean(what, known).capitalize() or "'esckit prompts list' and 'esckit recipes list' show them"
            raise ConfigError(f"no prompt or recipe {what!r}", expected="a YAML file, or a name that ships", hint=hint)
        return True
    content = parse_yaml(read_text(Path(what)), what)
    return isinstance(content, dict) and "command" in content


def _echo_examples(named: list[NamedPrompt], taxonomy: Taxonomy | None, preset: str | None, *, as_json: bool) -> None:
    """Print what models would read with some prompts, message by message, and what is remarkable about them."""
    from esckit.prompts.prompt import load_prompt
    from esckit.roles.example import CORPUS, examples, remarks

    if not named:
        echo("no prompt takes part: whoever plays was trained, or reads none", err=True)
    found = []
    for field, name, role in named:
        prompt = load_prompt(name, role)
        shown = examples(name, role, taxonomy=taxonomy)
        notes = remarks(prompt, role, preset=preset)
        found.append((field, name, role, prompt.identity, shown, notes))
    if as_json:
        rows = [
            {
                "field": field or None,
                "prompt": name,
                "role": role,
                "identity": identity,
                "examples": [{"form": one.form or None, "messages": _plain(one)} for one in shown],
                "notes": notes,
            }
            for field, name, role, identity, shown, notes in found
        ]
        echo_json(rows)
        return
    for number, (field, name, role, identity, shown, notes) in enumerate(found):
        echo(("\n" if number else "") + f"{f'{field}: ' if field else ''}{name} ({identity}), for the role: {role}")
        for one in shown:
            echo(f"\n=== what the model reads{f', {one.form}' if one.form else ''}")
            for message in one.messages:
                echo(f"--- {message.role}\n{message.content}")
        for note in notes:
            echo(f"note: {name}: {note}", err=True)
    if named:
        echo(
            f"The dialogue is the first of {CORPUS}; its turns carry the strategies in order, whatever they say.",
            err=True,
        )


def _plain(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]
