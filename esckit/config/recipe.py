"""What every recipe is made of: sections that refuse unknown keys, and the fields that all commands share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from esckit.types import Limits


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _number_to_text(value: object) -> object:
    """Return a YAML number as the text it was written as; ``bool`` is no number here."""
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DecimalText = Annotated[str, BeforeValidator(_number_to_text), Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
"""A decimal number kept as text, so that comparisons with it can be exact (``Fraction(text)``)."""


class Executor(Section):
    """How local models use the machine; changes no draw. Operational.

    Attributes:
        threads: Threads of the tensor library; None leaves the choice to it.
        batch_tokens: Tokens, padding included, that one forward pass of a local model may hold.
    """

    threads: PositiveInt | None = None
    batch_tokens: PositiveInt = 16_384


class Recipe(Section):
    """Base of all recipes. A subclass narrows ``command`` to its own name.

    ``OPERATIONAL`` lists the dotted paths that may change between two goes at one run; everything else is the run's
    identity (:meth:`esckit.runs.RunFolder.open`).
    """

    OPERATIONAL: ClassVar[tuple[str, ...]] = (
        "concurrency",
        "executor",
        "budget",
        "max_failure_rate",
        "*.retry_failed",
        "logging",
        "trackers",
        "report",
    )

    command: str
    seed: int = Field(ge=0, lt=2**63)

    def resolved(self) -> dict[str, Any]:
        """Return the whole recipe as plain JSON data, defaults written out."""
        return self.model_dump(mode="json")


class ModelRecipe(Recipe):
    """Base of the recipes whose commands call models."""

    budget: Limits = Limits()
    executor: Executor = Executor()
    max_failure_rate: float = Field(default=0.02, ge=0.0, le=1.0)
