"""The embedded model: weights that an installed Python package ships as GGUF, converted once into a cache folder.

The package is never imported (it wants libraries that are not needed to read its weights); only its file is read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path

from esckit.errors import StorageError
from esckit.records import fresh_folder

_log = logging.getLogger(__name__)
_LAYOUT = 1
"""Goes up when the conversion changes, so that old folders are not taken for new ones."""


def cache_dir() -> Path:
    """Return esckit's cache folder: ``$ESCKIT_CACHE``, else ``$XDG_CACHE_HOME/esckit``, else ``~/.cache/esckit``."""
    own = os.environ.get("ESCKIT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "esckit"


def shipped_gguf(package: str) -> Path | None:
    """Return the GGUF file inside an installed package, None if the package is absent."""
    spec = util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    return files[0] if files else None


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
    folder = cache_dir() / "backbones" / f"{name}-{metadata.version(package)}-{_LAYOUT}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _convert(gguf, folder)
    except OSError as error:
        raise StorageError(
            f"cannot write the converted weights to {folder.parent}: {error}",
            hint="Set ESCKIT_CACHE to a folder with 300 MB of room.",
        ) from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; the system frees it if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights as safetensors in bfloat16; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from esckit.models.capabilities import dequantised_gguf

    quiet_off_terminal()
    _log.info("converting %s once into %s", gguf.name, folder)
    with fresh_folder(folder) as fresh:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False, dtype=torch.bfloat16, **dequantised_gguf()
        )
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


def quiet_off_terminal() -> None:
    """Turn off the progress bars of transformers where nobody would see them move."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
