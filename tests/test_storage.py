"""What libraries raise when they cannot write, with real limits; and what the machine refuses the whole process."""

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from esckit.errors import EsckitError, ResourceError, StorageError
from esckit.storage import refusal, writing
from tests.tiny import tiny_random

LARGEST = 4096


@contextmanager
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda folder: (folder / "a").write_bytes(b"a" * 2 * LARGEST),
    "safetensors": lambda folder: save_file({"a": torch.zeros(LARGEST)}, str(folder / "a.safetensors")),
    "torch": lambda folder: torch.save(torch.zeros(LARGEST), str(folder / "a.pt")),
    "tokenizers": lambda folder: tiny_random()[1].save_pretrained(str(folder)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_library_that_cannot_write_is_one_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"), small_files(), writing(tmp_path):
        WRITERS[name](tmp_path)


def test_memory_that_a_library_lacks_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="memory ran out"), writing(tmp_path):
        raise SafetensorError("I/O error: Cannot allocate memory (os error 12)")


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine/data.json"
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no file", str(elsewhere)), EsckitError("x")):
        with pytest.raises(type(error)) as raised, writing(tmp_path / "run/checkpoint"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MemoryError(), ResourceError, "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), ResourceError, "memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ResourceError, "memory ran out"),
        (OSError(errno.EMFILE, "Too many open files"), ResourceError, "too many files are open"),
        (OSError(errno.EMFILE, "Too many open files", "a.jsonl"), ResourceError, "too many files are open"),
        (PermissionError(errno.EACCES, "Permission denied", "a.jsonl"), StorageError, "cannot open a.jsonl"),
        (OSError(errno.ENOSPC, "No space left", "a.jsonl"), StorageError, "cannot write a.jsonl: the disk is full"),
    ],
)
def test_what_the_machine_refuses_is_one_message(error: Exception, kind: type[EsckitError], said: str) -> None:
    told = refusal(error)
    assert isinstance(told, kind)
    assert told.found.startswith(said)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.ENOSPC, "No space left"), KeyError("a")])
def test_a_bug_is_none_of_the_machine(error: Exception) -> None:
    assert refusal(error) is None


def test_no_room_in_torch_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert isinstance(refusal(raised.value), ResourceError)
