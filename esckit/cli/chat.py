"""``esckit chat`` and ``esckit serve``: talk to what was trained, on a terminal, or through a server with a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esckit.cli.common import SetOption, echo, echo_facts, run_names
from esckit.cli.openmp import choose_waiting
from esckit.errors import ConfigError

if TYPE_CHECKING:
    from esckit.chat.recipe import ChatRecipe
    from esckit.config.load import LoadedRecipe

_STOPPED_BY_FAILURES = 3


def _targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs, recipes and backbones that complete a word."""
    from esckit.config.load import shipped_recipes
    from esckit.models.backbones import load_backbones

    recipes = [recipe.name for recipe in shipped_recipes() if recipe.command == "chat"]
    names = [*recipes, *load_backbones()]
    return [*run_names(incomplete), *(name for name in names if name.startswith(incomplete))]


TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN|MODEL|RECIPE",
        show_default=False,
        autocompletion=_targets,
        help="A run folder, a backbone, or a recipe of this command.",
    ),
]


def _role_option(text: str) -> Any:
    return typer.Option(metavar="MODEL", show_default=False, help=f"{text}: a run folder, a backbone or world:PROFILE.")


SupporterOption = Annotated[str | None, _role_option("Who answers, in place of the run's own")]

StrategistOption = Annotated[str | None, _role_option("Who names the strategy of every reply")]

CriticOption = Annotated[str | None, _role_option("Who reads the conversation where you ask for it")]

LocaleOption = Annotated[
    str | None,
    typer.Option(
        "--locale",
        metavar="NAME|FILE",
        show_default=False,
        help="Whose resources are shown on words of a crisis: en, de, zh or a file; by default by language.",
    ),
]


def _loaded(target: str, roles: dict[str, str | None], changes: Sequence[str] | None) -> LoadedRecipe[ChatRecipe]:
    from esckit.chat.target import load_target

    return load_target(target, roles, changes or ())


def chat(
    ctx: typer.Context,
    target: TargetArgument = None,
    supporter: SupporterOption = None,
    strategist: StrategistOption = None,
    critic: CriticOption = None,
    changes: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Where the conversation is kept; by default a new folder runs/chat-<name of the target>.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            show_default=False,
            autocompletion=run_names,
            help="Go on with a conversation that was kept.",
        ),
    ] = None,
    locale: LocaleOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print who would take part.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each exchange as one line of JSON.")] = False,
) -> None:
    """Talk to what was trained: you are the seeker, and the run's supporter answers.

    This is a research tool, no help in a crisis. The conversation is kept from its first word, as a dialogue that every
    other command reads.

    Type /help for strategies, reasons, the critic's reading, undoing and saving. With lines
    from a pipe, the exit code is 3 if any reply failed.

    Try it: esckit chat chat/scripted
    """
    from esckit.chat.crisis import load_screen
    from esckit.chat.partner import check
    from esckit.chat.session import fresh_folder_of, opened
    from esckit.chat.target import load_kept

    roles = {"supporter": supporter, "strategist": strategist, "critic": critic}
    screen = load_screen(locale)
    if resume is not None:
        if target is not None or out is not None or changes or any(roles.values()):
            raise ConfigError(
                "--resume with other settings", expected="--resume FOLDER alone: all settings are kept there"
            )
        recipe, folder = load_kept(resume), resume
    elif target is None:
        raise ConfigError(
            "nobody to talk to", expected="a run folder, a backbone or a recipe", hint="Try chat/scripted"
        )
    else:
        loaded = _loaded(target, roles, changes)
        recipe, folder = loaded.recipe, out or fresh_folder_of(loaded.default_out())
    if dry_run:
        echo_facts({**_cast(recipe), **check(recipe), "out": str(folder)}, as_json=as_json)
        return
    choose_waiting(recipe.executor.threads)
    is_new = not folder.exists()
    try:
        code = _talk(opened(recipe, folder, screen), recipe, folder, quiet=ctx.obj.quiet, as_json=as_json)
    finally:
        if is_new:
            _remove_silent(folder)
    raise typer.Exit(code)


def _remove_silent(folder: Path) -> None:
    """Remove the folder of a chat in which nothing was said."""
    from esckit.archive import remove
    from esckit.chat.session import ENTRIES
    from esckit.runs import MANIFEST

    if (folder / MANIFEST).is_file() and not (folder / ENTRIES).exists():
        remove(folder)


def _cast(recipe: ChatRecipe) -> dict[str, Any]:
    """Return who takes part, as the recipe names them."""
    return {role: None if binding is None else _named(binding) for role, binding in recipe.resolved()["models"].items()}


def _named(binding: dict[str, Any]) -> str:
    """Return what to call a model as a recipe binds it."""
    if binding.get("endpoint"):
        return f"{binding['model']} on a server"
    return next(
        f"{kind} {binding[kind]}" for kind in ("backbone", "checkpoint", "scripted", "world") if kind in binding
    )


def _talk(opening: Any, recipe: ChatRecipe, folder: Path, *, quiet: bool, as_json: bool) -> int:
    """Hold a chat to its end, and return the exit code."""
    from esckit.chat.wording import NOTICE, privacy
    from esckit.cli.terminal import Chat, View, piped, stepwise, typed

    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    view = View(is_terminal=is_terminal, as_json=as_json)
    with stepwise(opening) as (steps, session):
        if is_terminal or not quiet:  # whoever sits there always sees what this is not
            view.aside(NOTICE, privacy(recipe, str(folder)), "")
            cast = ", ".join(f"{role} {name}" for role, name in _cast(recipe).items() if name)
            view.aside(f"{cast}. /help lists what you can do; Ctrl-D leaves.")
            view.replay(session)
        talk = Chat(session, steps, view)
        for line in typed(steps) if is_terminal else piped(steps, sys.stdin):
            if not talk.take(line):
                break
        if not quiet and session.last is not None:
            view.aside(f"Kept in {folder}. To go on: esckit chat --resume {folder}")
    return _STOPPED_BY_FAILURES if talk.n_failed and not is_terminal else 0


def serve(
    target: TargetArgument = None,
    supporter: SupporterOption = None,
    strategist: StrategistOption = None,
    changes: SetOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any free one.")] = 8000,
    token_env: Annotated[
        str,
        typer.Option("--token-env", metavar="VARIABLE", help="Environment variable with the token that clients send."),
    ] = "ESCKIT_SERVE_TOKEN",
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=1024, help="Replies written at the same time.")] = 4,
    queue: Annotated[int, typer.Option(min=0, max=10_000, help="Requests that may wait; more are refused (429).")] = 16,
    drain: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long replies in flight may take when it is ended.")
    ] = 30.0,
    locale: LocaleOption = None,
    crisis_in_reply: Annotated[
        bool, typer.Option("--crisis-in-reply", help="Put the notice on crises into the text of replies too.")
    ] = False,
) -> None:
    """Offer the supporter of a run as an OpenAI-compatible server, with a page to talk to it.

    This is a research tool, no help in a crisis. Nothing that is said is kept. The page needs no network but this
    server. SIGTERM and Ctrl-C let replies in flight end.

    Try it: esckit serve chat/scripted
    """
    import asyncio

    from esckit.chat.crisis import load_screen
    from esckit.chat.server import ServerOptions
    from esckit.chat.server import serve as serve_until_told
    from esckit.chat.wording import NOTICE, privacy

    if target is None:
        raise ConfigError("nobody to serve", expected="a run folder, a backbone or a recipe", hint="Try chat/scripted")
    options = ServerOptions(
        host=host,
        port=port,
        token=os.environ.get(token_env) or None,
        at_once=at_once,
        queue=queue,
        drain_s=drain,
        notice_in_reply=crisis_in_reply,
    )
    loaded = _loaded(target, {"supporter": supporter, "strategist": strategist}, changes)
    choose_waiting(loaded.recipe.executor.threads)

    def ready(address: str) -> None:
        echo(f"page    {address}/\nAPI     {address}/v1\nmodel   {loaded.name}")
        sys.stdout.flush()
        echo(f"{NOTICE}\n{privacy(loaded.recipe, None)}", err=True)

    asyncio.run(
        serve_until_told(loaded.recipe, model=loaded.name, screen=load_screen(locale), options=options, ready=ready)
    )
