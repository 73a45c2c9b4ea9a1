"""Every error that a user of esckit can meet, as one tree.

::

    EsckitError                     exit 2   prints what was found, what was expected, what to do
    ├── ConfigError                          a recipe, an option or a combination of them is wrong
    │   ├── MissingExtraError                a library that only some recipes need is not installed
    │   └── NoRoomError                      the weights of a model do not fit the memory of a device
    ├── DataError                            a corpus or an input file is not what it should be
    ├── StorageError                         the disk is full, read-only or the folder is in use
    ├── ResourceError                        memory or open files ran out
    ├── CheckpointError                      a trained model does not fit what it is asked to do
    │   └── NotFiniteError                   a model or a reward gives a number that is not finite
    ├── TrainingError (RuntimeError)         training diverged
    ├── ModelError                           one call to a model gave nothing usable; recorded, not fatal
    │   ├── ParseError                       the reply is not in the agreed form
    │   ├── UnscoredError                    a critic or judge gave no readable answer
    │   └── BackendError                     the backend failed or cannot be reached
    │       └── FailureRateError    exit 3   more failures than the recipe allows
    ├── ClusterError                exit 3   the workers of a cluster die, or its machines are gone
    ├── OutageError                 exit 3   a server that answered before does not answer any more
    └── BudgetError                 exit 3   the run's budget is used up

Anything that is not an :class:`EsckitError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

NOT_FINITE = "not_finite"
"""The kind of a call that failed for a number which is not finite, or which no such number can be."""


BACKEND_KINDS = frozenset(
    {
        "backend",  # a local model, or what has no kind of its own
        "rate_limit",
        "quota",
        "server_error",
        "timeout",
        "unreachable",
        "redirect",
        "no_access",
        "not_found",
        "bad_request",
        "refusal",
        "content_filter",
        "unreadable",
        "no_text",
        "no_log_probs",
        NOT_FINITE,
    }
)
"""The kinds of :class:`BackendError`: what counts for ``max_failure_rate``, unlike an answer in the wrong form."""


class EsckitError(Exception):
    """An error with a message for the user.

    Args:
        found: What was found, one clause, no final full stop.
        expected: What was expected instead.
        hint: What the user can do about it, a sentence.
    """

    exit_code: ClassVar[int] = 2

    named_by: str | None = None
    """Field of a recipe that names what the error is about, where one does."""

    def __init__(self, found: str, *, expected: str | None = None, hint: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(found)

    @property
    def headline(self) -> str:
        """What was found, and where, after the field of a recipe that names it."""
        return f"{self.named_by}: {self._told}" if self.named_by else self._told

    @property
    def _told(self) -> str:
        return self.found

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as it is, whatever the class asks of its callers."""
        return _rebuilt, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        """Return the whole message: headline, what was expected, what to do."""
        text = self.headline
        if self.expected:
            text += f"; expected {self.expected}"
        if self.hint:
            text += f". {self.hint}"
        return text


def _rebuilt(kind: type[EsckitError], args: tuple[Any, ...], state: dict[str, Any]) -> EsckitError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


@contextmanager
def named_by(field: str) -> Iterator[None]:
    """Let errors say which field of a recipe, such as ``model.start``, names what they are about."""
    try:
        yield
    except EsckitError as error:
        error.named_by = field
        raise


class ConfigError(EsckitError):
    """A recipe, an option, or a combination of them, is wrong."""


class MissingRunsError(ConfigError):
    """A recipe names runs that are not there yet; what needs only the recipe can still be planned.

    Args:
        paths: The runs, as the recipe names them.
    """

    def __init__(
        self, found: str, *, paths: tuple[str, ...], expected: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(found, expected=expected, hint=hint)
        self.paths = paths


class MissingExtraError(ConfigError):
    """A library that only some recipes need is not installed.

    Args:
        wanted_by: The option or the field of the recipe, with its value.
        extra: Name of the library, which is the name of esckit's extra too.
        command: Installs a library that is no extra of esckit.
    """

    def __init__(self, wanted_by: str, extra: str, *, command: str | None = None) -> None:
        super().__init__(
            f"{wanted_by} needs {extra}, which is not installed",
            hint="Install it: "
            + (command or f"pip install 'esckit[{extra}]' (docs/installing.md has the locked versions)"),
        )


class NoRoomError(ConfigError):
    """The weights of a model do not fit the memory of a device.

    Args:
        name: The model.
        device: The device.
        needed: Bytes of the weights, as a text with the number type; None if unknown.
        free: Free bytes on the device; None if unknown.
    """

    def __init__(
        self, name: str, device: str, *, needed: tuple[int, str] | None = None, free: int | None = None
    ) -> None:
        sizes = [f"they take {needed[0] / 1e9:,.1f} GB in {needed[1]}"] if needed else []
        sizes += [f"{free / 1e9:,.1f} GB are free"] if free is not None else []
        super().__init__(
            f"the weights of {name} do not fit {device}" + (f": {', '.join(sizes)}" if sizes else ""),
            expected="a device that holds all of them",
            hint="Run the model on a server that splits or quantises it, and name its endpoint (the recipe "
            "rlff/simulate_server shows how), set dtype: bfloat16 where it is float32, or name a smaller model",
        )


class DataError(EsckitError):
    """A corpus or an input file is not what it should be.

    Args:
        found: What was found (keys, labels, types and lengths only; never an utterance).
        path: File as the user gave it.
        record: 0-based record index.
        line: 1-based line (JSON lines only).
        field: Path of the field inside the record, such as ``dialog[3].content``.
        expected: What was expected instead.
        hint: What to do about it.
        whole_file: True if the error concerns the whole file, so that no record can be skipped.
    """

    def __init__(
        self,
        found: str,
        *,
        path: str | None = None,
        record: int | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        whole_file: bool = False,
    ) -> None:
        super().__init__(found, expected=expected, hint=hint)
        self.path = path
        self.record = record
        self.line = line
        self.field = field
        self.whole_file = whole_file

    @classmethod
    def of_file(
        cls,
        path: object,
        found: str,
        *,
        record: int | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> DataError:
        """Return an error that concerns the whole file, so that skipping a record does not help."""
        return cls(found, path=str(path), record=record, expected=expected, hint=hint, whole_file=True)

    @property
    def _told(self) -> str:
        """``FILE: record I, line L, FIELD: found X``."""
        place = [
            f"record {self.record}" if self.record is not None else None,
            f"line {self.line}" if self.line is not None else None,
            self.field,
        ]
        where = ", ".join(part for part in place if part)
        heads = [head for head in (self.path, where) if head]
        return ": ".join([*heads, f"found {self.found}" if heads else self.found])


class StorageError(EsckitError):
    """A file cannot be written, or its folder is in use by another process."""


class ResourceError(EsckitError):
    """The machine has too little of what the command needs: memory, open files."""


class CheckpointError(EsckitError):
    """A trained model does not fit what it is asked to do."""


class NotFiniteError(CheckpointError):
    """A model or a reward gives a number that is not finite; while training, that is a divergence.

    Args:
        name: What the number is.
        value: The number.
    """

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"{name} is not finite: {value}", expected="finite numbers")
        self.name = name
        self.value = value

    def as_failure(self) -> BackendError:
        """Return the failure of the one call that gave the number, for runs that continue without it."""
        return BackendError(self.found, kind=NOT_FINITE, expected=self.expected)


class TrainingError(EsckitError, RuntimeError):
    """Training diverged or cannot continue."""


class ModelError(EsckitError):
    """One call to a model gave nothing usable.

    Args:
        found: What came back, or what went wrong.
        kind: The word under which the failure is counted (``rate_limit``, ``blank``, ``unparsed``, ``too_long`` …).
        samples: At most three texts that could not be used.

    Attributes:
        attempts: Calls made before giving up; set by whoever retried.
        billed: What an answer that came and cannot be used has cost, as the fields of a ``Usage``; None without one.
    """

    default_kind: ClassVar[str] = "backend"

    def __init__(
        self,
        found: str,
        *,
        kind: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        samples: tuple[str, ...] = (),
    ) -> None:
        super().__init__(found, expected=expected, hint=hint)
        self.kind = kind or self.default_kind
        self.samples = samples[:3]
        self.attempts = 1
        self.billed: dict[str, int] | None = None


class ParseError(ModelError):
    """A reply is not in the agreed form."""

    default_kind = "unparsed"


class UnscoredError(ModelError):
    """A critic or judge gave no readable answer, also after asking again."""

    default_kind = "unparsed"


class BackendError(ModelError):
    """The backend failed, refused the request or cannot be reached."""


class FailureRateError(BackendError):
    """More units of work failed than ``max_failure_rate`` allows; what is done stays on disk."""

    exit_code = 3


class OutageError(EsckitError):
    """A server that answered before is silent; calls in flight are no failures, and the run can be resumed."""

    exit_code = 3


class ClusterError(EsckitError):
    """The workers of a cluster die one after the other, or have no place any more; the run can be resumed."""

    exit_code = 3


class BudgetError(EsckitError):
    """The run's budget is used up; what is done stays on disk and the run can be resumed."""

    exit_code = 3
