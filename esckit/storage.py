"""What a machine refuses, as errors of ours: files that cannot be written, open files and memory that run out.

Libraries say so in their own ways: Python with an ``OSError``, those in Rust with a text that holds the number of the
system's error, torch with a ``RuntimeError``. Here each becomes one message.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esckit.errors import EsckitError, ResourceError, StorageError

_FREE = "Free some space and run the same command again: what is done is kept"
_ELSEWHERE = "Choose another folder with --out"
_MORE_FILES = "Allow more (ulimit -n 4096), or lower the concurrency of the recipe, and run the same command again"

_REASONS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("the disk quota is used up", _FREE),
    errno.EFBIG: (
        "the file is larger than is allowed here (ulimit -f)",
        _FREE.replace("Free some space", "Allow more"),
    ),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("no permission to write", _ELSEWHERE),
    errno.EPERM: ("no permission to write", _ELSEWHERE),
    errno.ENOTDIR: ("a file is where a folder is needed", _ELSEWHERE),
    errno.EEXIST: ("a file is where a folder is needed", _ELSEWHERE),
    errno.EMFILE: ("too many files are open", _MORE_FILES),
    errno.ENFILE: ("too many files are open", _MORE_FILES),
}

_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "CUDA out of memory",
    "DefaultCPUAllocator",
    "failed to map segment",
)
"""What torch says where memory ran out, in a RuntimeError, and the loader of libraries, in an ImportError."""


def storage_error(error: OSError, path: Path) -> StorageError:
    """Return what to tell the user when a file could not be written."""
    found, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    return StorageError(f"cannot write {path}: {found}", hint=hint)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what a library raises when it cannot write name the path and the reason.

    Args:
        path: Where it writes, or what takes the place of that later and stands beside it.

    Raises:
        StorageError: In place of that error.
        ResourceError: In its place if the library lacked memory.
    """
    try:
        yield
    except EsckitError:
        raise
    except Exception as error:
        refused = _refused(error, path.absolute())
        if refused is None:
            raise
        raise (_no_memory() if refused.errno == errno.ENOMEM else storage_error(refused, path)) from error


def _refused(error: Exception, path: Path) -> OSError | None:
    """Return the system's own error behind that of a library that wrote to a path; None for any other error."""
    if isinstance(error, OSError):
        if error.filename is None:
            return error if error.errno in _REASONS else None
        return error if path.parent in Path(os.fsdecode(error.filename)).absolute().parents else None
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, tokenizers
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if "PytorchStreamWriter failed writing" in str(error) or "unexpected pos" in str(error):
        # torch tells no number; of its reasons only this one can be looked up.
        there = next(place for place in (path, *path.parents) if place.exists())
        is_full = os.statvfs(there).f_bavail == 0
        return OSError(errno.ENOSPC if is_full else errno.EIO, str(error).splitlines()[0])
    return None


def _no_memory() -> ResourceError:
    return ResourceError(
        "memory ran out",
        hint="Lower the concurrency or the batch of the recipe, or use a machine with more memory, and run the same "
        "command again: what is done is kept",
    )


def refusal(error: Exception) -> EsckitError | None:
    """Return what to tell the user of an error that nobody expected; None if it is none of the machine.

    Errors of a file that was written are told where it is written. What comes here concerns the whole process, or
    names a file that could not be opened.
    """
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return _no_memory()
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ResourceError("too many files are open", expected=f"at most {allowed:,} (ulimit -n)", hint=_MORE_FILES)
    if error.errno == errno.ENOMEM:
        return _no_memory()
    if error.filename is None:
        return None
    if isinstance(error, PermissionError):
        return StorageError(f"cannot open {error.filename}: no permission")
    is_storage = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return storage_error(error, Path(error.filename)) if is_storage else None
