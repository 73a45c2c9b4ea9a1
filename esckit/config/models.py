"""The ``models:`` section: which model plays a role, and how it is sampled.

A binding is exactly one of four kinds: a local ``backbone``, an ``endpoint``, a ``checkpoint`` that esckit trained, or
a ``scripted`` fake. Secrets never stand in a recipe: an endpoint names the environment variable that holds its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeFloat, PositiveInt, Tag, field_validator
from pydantic_core import PydanticCustomError

from esckit.config.recipe import Section
from esckit.registry import did_you_mean
from esckit.types import Limits, Prices, Sampling

KINDS = ("backbone", "endpoint", "checkpoint", "scripted")
DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]


class RoleOptions(Section):
    """What every binding takes beside the model itself.

    Attributes:
        sampling: Decoding settings; what is left out takes the role's own default in the recipe class.
        on_length: A reply cut at the token limit is invalid (``fail``) or is cut back to its last whole sentence.
        max_words: Longest valid reply in words; None sets no limit beyond the method's own rules.
        max_context_tokens: Longest prompt; whole oldest turns are dropped above it. None: what the model can take.
    """

    sampling: Sampling = Sampling()
    on_length: Literal["fail", "last_sentence"] = "fail"
    max_words: PositiveInt | None = None
    max_context_tokens: PositiveInt | None = None


class BackboneBinding(RoleOptions):
    """A local model: a name of the backbone registry, a folder, or a hub id."""

    backbone: str = Field(min_length=1)
    dtype: DType = "auto"
    device: Device = "auto"


class EndpointAddress(Section):
    """An OpenAI-compatible server.

    Attributes:
        base_url: Address up to and including the version, ``https://host/v1``.
        api_key_env: Name of the environment variable that holds the key; None for a server without keys.
    """

    base_url: str = Field(pattern=r"^https?://")
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, base_url: str) -> str:
        if "@" in base_url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("must hold no user name or password: name an environment variable in api_key_env")
        return base_url


def _address_tag(value: object) -> str:
    return "<address>" if isinstance(value, Mapping | EndpointAddress) else "<name>"


class EndpointBinding(RoleOptions):
    """A model behind an OpenAI-compatible server: the name of a shipped endpoint, or an address."""

    endpoint: Annotated[
        Annotated[str, Field(min_length=1), Tag("<name>")] | Annotated[EndpointAddress, Tag("<address>")],
        Discriminator(_address_tag),
    ]
    model: str = Field(min_length=1)
    prices: Prices | None = None


def _switch(value: Any) -> Any:
    """Return on or off as they are written: to YAML the bare words are true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CheckpointBinding(RoleOptions):
    """Something that esckit trained: a run folder, whose manifest says what it is.

    Attributes:
        adapter: A run of ``train-flow`` as supporter: ``off`` is its plain backbone as a chat model, ``on`` lets the
            adapter write, if it was trained to (``response_weight``). Without meaning for other runs and roles.
        value_weight: A run of ``train-flow`` as chooser: weight of V beside log π; None is 1, or 0 where the values
            were not trained.
        top_k: The same: so many strategies of highest π may be chosen; None is all.
    """

    checkpoint: str = Field(min_length=1)
    adapter: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = "off"
    value_weight: NonNegativeFloat | None = None
    top_k: PositiveInt | None = None
    dtype: DType = "auto"
    device: Device = "auto"


class ScriptedBinding(RoleOptions):
    """The shipped fake: a script file, or ``module:attr``."""

    scripted: str = Field(min_length=1)


def _check_kind(value: object) -> object:
    """Refuse a mapping that names no kind of model, or several."""
    if not isinstance(value, Mapping):
        return value
    named = [kind for kind in KINDS if kind in value]
    if len(named) == 1:
        return value
    if named:
        raise PydanticCustomError("binding_kind", "names {named}; keep one of them", {"named": " and ".join(named)})
    hints = [f"{key!r}: {hint}" for key in value if (hint := did_you_mean(str(key), KINDS))]
    raise PydanticCustomError(
        "binding_kind",
        "names no model; expected one of {kinds}{hints}",
        {"kinds": ", ".join(KINDS), "hints": "".join(f" ({hint})" for hint in hints)},
    )


def _kind_tag(value: object) -> str | None:
    """Return the tag of a binding, as plain data or built."""
    keys: Iterable[str] = ()
    if isinstance(value, Mapping):
        keys = value
    elif isinstance(value, RoleOptions):
        keys = type(value).model_fields
    return next((f"<{kind}>" for kind in KINDS if kind in keys), None)


ModelBinding = Annotated[
    Annotated[BackboneBinding, Tag("<backbone>")]
    | Annotated[EndpointBinding, Tag("<endpoint>")]
    | Annotated[CheckpointBinding, Tag("<checkpoint>")]
    | Annotated[ScriptedBinding, Tag("<scripted>")],
    Discriminator(
        _kind_tag,
        custom_error_type="binding_kind",
        custom_error_message=f"must be a mapping with one of {', '.join(KINDS)}",
    ),
    BeforeValidator(_check_kind),
]
"""The model of a role, one of four classes; tell them apart with ``match`` or ``isinstance``."""


def role_defaults(*, sampling: Mapping[str, Any], **options: Any) -> BeforeValidator:
    """Return a validator that fills what a binding leaves out with the defaults of its role.

    Args:
        sampling: Defaults of ``sampling``'s fields.
        **options: Defaults of the other fields of :class:`RoleOptions`.
    """

    def fill(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = value.get("sampling", {})
        filled = {**sampling, **given} if isinstance(given, Mapping) else given
        return {**options, **value, "sampling": filled}

    return BeforeValidator(fill)


def check_prices(budget: Limits, bindings: Iterable[RoleOptions | None]) -> None:
    """Refuse a limit of cost that could not be watched.

    Raises:
        ValueError: If ``max_cost`` is set and an endpoint states no prices.
    """
    if budget.max_cost is None:
        return
    for binding in bindings:
        if isinstance(binding, EndpointBinding) and binding.prices is None:
            raise ValueError(f"budget.max_cost needs prices for the endpoint model {binding.model!r}")
