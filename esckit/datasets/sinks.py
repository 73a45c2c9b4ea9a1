"""The two sinks that ship: one stops at the first refusal, one counts refusals and lets the loader go on."""

from __future__ import annotations

from esckit.errors import DataError
from esckit.protocols import Issue


class StrictSink:
    """Collects notes and warnings; raises on the first refusal.

    Attributes:
        issues: What was noted, in order.
    """

    def __init__(self) -> None:
        self.issues: list[Issue] = []

    def note(self, issue: Issue) -> None:
        """Keep the issue."""
        self.issues.append(issue)

    def refuse(self, error: DataError) -> None:
        """Raise the error."""
        raise error


class CountingSink:
    """Collects notes, warnings and refused records; raises only where the whole file is concerned.

    Attributes:
        issues: What was noted, in order.
        refusals: Why records were refused, in order.
    """

    def __init__(self) -> None:
        self.issues: list[Issue] = []
        self.refusals: list[DataError] = []

    def note(self, issue: Issue) -> None:
        """Keep the issue."""
        self.issues.append(issue)

    def refuse(self, error: DataError) -> None:
        """Keep the error, or raise it if no record can be skipped to get past it."""
        if error.whole_file:
            raise error
        self.refusals.append(error)
