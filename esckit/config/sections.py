"""The sections that recipes are made of, each written once: they refuse unknown keys and are handed on as they are.

Here are the base of all recipes and what several commands share: the ``data:`` section (which dialogues of which corpus
a run uses), the ``models:`` section (which model plays a role, and how it is sampled), rollouts and critics, adapters
and optimisers (a training's own subclass states the defaults of its method). A model is exactly one of four kinds: a
local ``backbone``, an ``endpoint``, a ``checkpoint`` that esckit trained, or a ``scripted`` fake. Secrets never stand
in a recipe: an endpoint names the environment variable that holds its key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from esckit.documents import strings_in
from esckit.registry import did_you_mean
from esckit.types import Limits, Prices, Sampling


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys and non-finite numbers refused."""

    # A value in a wrong place may be a key, and tracebacks show pydantic's messages.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), hide_input_in_errors=True
    )


def _number_to_text(value: object) -> object:
    """Return a YAML number as the text it was written as; ``bool`` is no number here."""
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DECIMAL = r"^-?[0-9]+(\.[0-9]+)?$"

_Decimal = Annotated[str, Field(pattern=DECIMAL)]

DecimalText = Annotated[_Decimal, BeforeValidator(_number_to_text, json_schema_input_type=_Decimal | float)]
"""A decimal number kept as text, so that comparisons with it can be exact (``Fraction(text)``)."""


def named_or_own(names: Sequence[str]) -> AfterValidator:
    """Return the check of a field that takes one of some names, or a user's own code as ``module:attr``."""

    def check(value: str) -> str:
        if value not in names and ":" not in value:
            raise ValueError(f"must be one of {', '.join(names)}, or module:attr")
        return value

    return AfterValidator(check)


class Threads(Section):
    """How a training uses the machine. Operational.

    Attributes:
        threads: Threads of the tensor library; None leaves the choice to it.
    """

    threads: PositiveInt | None = None


class LocalModels(Threads):
    """How local models use a machine; changes no draw. Operational, but for ``batching``.

    Attributes:
        batch_tokens: Tokens that a local model may have in flight together; None takes what its device usually holds
            (:data:`esckit.models.local.BATCH_TOKENS`).
        batching: ``auto`` computes requests that wait at the same time together. ``invariant`` computes each alone and
            from its first token on, so that the same machine gives the same bytes whatever the concurrency. It is
            slower, since requests share nothing.
    """

    batch_tokens: PositiveInt | None = None
    batching: Literal["auto", "invariant"] = "auto"

    @property
    def is_invariant(self) -> bool:
        """Whether a local model computes each request alone."""
        return self.batching == "invariant"


class Executor(LocalModels):
    """Units are played in the process of the command. Operational.

    Attributes:
        kind: Where units are played: ``local`` is this process.
    """

    kind: Literal["local"] = "local"


_SECRET = re.compile(r"(key|token)$|secret|password|credential", re.IGNORECASE)
"""In names of variables and options that hold a secret; ``--tokenizer`` and ``--max-num-batched-tokens`` hold none."""


def _holds_login(text: str) -> bool:
    """Return whether a text holds an address with a user name or password; a slash in one ends no search."""
    return "@" in text.partition("://")[2]


class RayExecutor(LocalModels):
    """Units are played by the workers of a Ray cluster, each with its own models. Operational.

    Attributes:
        kind: Where units are played: ``ray`` is a Ray cluster.
        address: ``local`` starts a cluster on this machine for this run, ``auto`` joins the one that runs here or that
            RAY_ADDRESS names, ``HOST:PORT`` one whose head is elsewhere, ``ray://HOST:PORT`` one through Ray's client.
        workers: Number of workers; the units in flight are shared out among them.
        cpus: Processors that a worker reserves.
        gpus: GPUs that a worker reserves and sees; a part of one lets several workers share it.
        wait_s: Longest wait for the cluster and for the first worker's place in it, in seconds.
        runtime_env: What Ray brings to the workers, such as ``{working_dir: .}``; see Ray's "runtime environments".
    """

    kind: Literal["ray"]
    address: str = Field(default="auto", pattern=r"^(auto|local|(ray://)?[^/:\s]+:[0-9]+)$")
    workers: PositiveInt
    cpus: NonNegativeFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    wait_s: PositiveFloat = 120.0
    runtime_env: dict[str, Any] = {}

    @field_validator("runtime_env")
    @classmethod
    def _no_secret(cls, runtime_env: dict[str, Any]) -> dict[str, Any]:
        variables = runtime_env.get("env_vars", {})
        if isinstance(variables, Mapping) and (secret := next(filter(_SECRET.search, variables), None)):
            raise ValueError(f"env_vars must hold no secret ({secret}): set it where the nodes are started")
        if any(map(_holds_login, strings_in(runtime_env))):
            raise ValueError("must hold no user name or password: fetch it on the nodes, or name a local folder")
        return runtime_env


def _executor_kind(value: object) -> str:
    """Return the tag of an executor, as plain data or built; without a kind it is local."""
    kind = value.get("kind", "local") if isinstance(value, Mapping) else getattr(value, "kind", "local")
    return f"<{kind}>"


AnyExecutor = Annotated[
    Annotated[Executor, Tag("<local>")] | Annotated[RayExecutor, Tag("<ray>")],
    Discriminator(
        _executor_kind,
        custom_error_type="executor_kind",
        custom_error_message="must have the kind 'local' or 'ray'",
    ),
]
"""Where units are played."""


_DELETED = (
    "data.allow_overlap",
    "data.allow_cross_family",
    *(f"models.{role}.adapter" for role in ("seeker", "critic", "strategist", "judge", "turn_judge", "reward")),
    *(
        f"models.{role}.{name}"
        for role in ("seeker", "supporter", "critic", "judge", "turn_judge", "reward")
        for name in ("value_weight", "top_k")
    ),
    *(f"models.reward.{name}" for name in ("sampling", "on_length", "max_words", "max_context_tokens")),
)
"""Fields of 0.1.0 that had no effect where they stood; what an older manifest says of them does not count."""


class Page(Section):
    """Base of all that one YAML page describes. A subclass narrows ``command`` to its own name.

    ``OPERATIONAL`` lists the dotted paths that may change between two attempts at one run; everything else is the run's
    identity (:meth:`esckit.runs.RunFolder.open`).

    Attributes:
        command: The command that the page is for.
    """

    OPERATIONAL: ClassVar[tuple[str, ...]] = ()

    command: str

    def resolved(self) -> dict[str, Any]:
        """Return the whole page as plain JSON data, defaults written out."""
        return self.model_dump(mode="json")


class Recipe(Page):
    """Base of the recipes: pages that describe one run.

    Attributes:
        seed: Seed of every random draw of the run.
        trackers: Integrations of transformers that get the metrics too, such as ``tensorboard`` or ``wandb``.
            Operational.
    """

    OPERATIONAL: ClassVar[tuple[str, ...]] = (
        "concurrency",
        *(f"executor.{name}" for name in {**Executor.model_fields, **RayExecutor.model_fields} if name != "batching"),
        "budget",
        "cache",
        "max_failure_rate",
        "*.retry_failed",
        "logging",
        "trackers",
        "report",
        *(f"models.*.{name}" for name in ("concurrency", "timeout_s", "endpoint.devices", "endpoint.ready_s")),
        *_DELETED,
    )

    seed: int = Field(ge=0, lt=2**63)


class Roles(Section):
    """Base of ``models:`` where every field is the model of a role, or None.

    Attributes:
        seeker: The model that speaks as the person in distress.
        supporter: The model that speaks as the supporter.
        critic: The model that scores conversations while they are played.
        strategist: The model that chooses the supporter's strategy.
    """

    def bindings(self) -> dict[str, Binding]:
        """Return the models that are named, by role."""
        return {role: binding for role, binding in self if binding is not None}


class ModelRecipe(Recipe):
    """Base of the recipes whose commands call models.

    Attributes:
        executor: Where units are played: in this process, or on a Ray cluster. Operational.
        max_failure_rate: Largest share of units that may fail; beyond it the run stops with exit code 3, and what is
            done is kept. Operational.
        cache: File with the answers of servers, which are asked for once; None takes the environment variable
            ``ESCKIT_CACHE``, or no cache. Operational.
    """

    budget: Limits = Limits()
    cache: str | None = Field(default=None, min_length=1)
    executor: AnyExecutor = Executor()
    max_failure_rate: float = Field(default=0.02, ge=0.0, le=1.0)


def as_tuple(value: object) -> object:
    """Return a lone name as a tuple of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple, json_schema_input_type=str | tuple[str, ...])]
"""Several names; a lone one may stand without brackets."""


KINDS = ("backbone", "endpoint", "checkpoint", "scripted", "world")

DType = Literal["auto", "float32", "bfloat16", "float16"]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]


class Binding(Section):
    """Names the model of a role."""


class RoleOptions(Binding):
    """What the binding of a role that writes or rates text takes beside the model itself.

    Attributes:
        sampling: Decoding settings; what is left out takes the default of the role.
        on_length: A reply cut at the token limit is invalid (``fail``) or is cut back to its last whole sentence.
        max_words: Longest valid reply in words; None sets no limit beyond the method's own rules.
        max_context_tokens: Longest prompt in tokens; whole oldest turns are dropped above it. None: what the model can
            take.
    """

    sampling: Sampling = Sampling()
    on_length: Literal["fail", "last_sentence"] = "fail"
    max_words: PositiveInt | None = None
    max_context_tokens: PositiveInt | None = None


class BackboneBinding(RoleOptions):
    """A local model.

    Attributes:
        backbone: A name of the backbone registry, a folder, or a hub id.
        dtype: Number type of the weights; ``auto`` is bfloat16 where the device computes in it, else float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the GPU if there is one.
    """

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
        if _holds_login(base_url) or "?" in base_url or "#" in base_url:
            raise ValueError("must hold no user name, password or query: name an environment variable in api_key_env")
        return base_url


def _devices_as_text(value: object) -> object:
    """Return a device number, or several in a list, as ``CUDA_VISIBLE_DEVICES`` has them."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    is_numbers = all(isinstance(each, int) and not isinstance(each, bool) for each in numbers)
    return ",".join(map(str, numbers)) if is_numbers else value


class ManagedServer(Section):
    """An OpenAI-compatible server on this machine that the run starts, uses and stops.

    Roles whose sections have the same ``serve`` and ``devices`` share one server.

    Attributes:
        serve: Its command line, read as a shell reads words, but without a shell; ``{port}`` becomes a free port.
        devices: GPUs that it may use (its ``CUDA_VISIBLE_DEVICES``), such as ``"0,1"`` or ``[0, 1]``; None leaves it
            those that esckit has. Operational.
        environment: More environment variables. No secrets: the server also has the variables that esckit has.
        api_key_env: Name of the environment variable that holds the key; None for a server without keys.
        ready_s: Longest time from its start to its first answer, in seconds. Operational.
        name: What records and manifests call it; None makes it of the program's name and a digest of ``serve``.
    """

    serve: str = Field(min_length=1)
    devices: Annotated[
        str | None,
        BeforeValidator(_devices_as_text, json_schema_input_type=str | int | tuple[int, ...] | None),
        Field(pattern=r"^([\w./:-]+(,[\w./:-]+)*)?$"),
    ] = None
    environment: dict[str, Annotated[str, BeforeValidator(_number_to_text, json_schema_input_type=str | float)]] = {}
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ready_s: float = Field(default=1800.0, ge=1.0, le=86_400.0)
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")

    @field_validator("serve")
    @classmethod
    def _can_be_started(cls, serve: str) -> str:
        try:
            words = shlex.split(serve)
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {error}") from None
        if not any("{port}" in word for word in words):
            raise ValueError("must contain {port}, which becomes a free port: vllm serve MODEL --port {port}")
        if shell := {"&&", "||", ";", "|", "&", ">", "<"} & {*words}:
            raise ValueError(
                f"is started without a shell, so {min(shell)!r} is no operator: name a script that does it"
            )
        if "{port}" in words[0]:
            raise ValueError("must begin with a program; put environment variables into environment")
        named = (word.partition("=")[0] for word in words if word.startswith("-") or "=" in word)
        if secret := next(filter(_SECRET.search, named), None):
            raise ValueError(
                f"must hold no secret ({secret}), since recipes are kept in runs and processes are listed with their "
                "words: name the variable that holds it in api_key_env (for vLLM: VLLM_API_KEY)"
            )
        return serve

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
            if name == "CUDA_VISIBLE_DEVICES":
                raise ValueError("CUDA_VISIBLE_DEVICES stands in devices")
            if _SECRET.search(name):
                raise ValueError(f"must hold no secret: set {name} where you start esckit, the server will have it too")
        return environment


def _endpoint_tag(value: object) -> str:
    if isinstance(value, ManagedServer) or (isinstance(value, Mapping) and "serve" in value):
        return "<server>"
    return "<address>" if isinstance(value, Mapping | EndpointAddress) else "<name>"


def _check_endpoint(value: object) -> object:
    """Refuse a section that names both a server that runs already and one to start."""
    if isinstance(value, Mapping) and "serve" in value and "base_url" in value:
        raise PydanticCustomError("endpoint_kind", "names base_url and serve; keep one of them")
    return value


class EndpointBinding(RoleOptions):
    """A model behind an OpenAI-compatible server: the name of a shipped endpoint, an address, or a server to start.

    Attributes:
        endpoint: The server: the name of a shipped endpoint, ``base_url`` of one that runs already, or ``serve``, the
            command line of one to start.
        model: The server's id of the model.
        checkpoint: The run of ``train-rl`` or ``train-sft`` whose model the server answers with, exported or as an
            adapter; so the run knows what it was trained on, and does not go on with another one. None for others.
        prices: What the model costs; None if unknown.
        concurrency: Most requests in flight at once; fewer while the server is slow or refuses. Roles that name the
            same server, model and limits share them. Operational.
        timeout_s: Longest time of one request, from connecting to the last byte, in seconds. Operational.
    """

    endpoint: Annotated[
        Annotated[str, Field(min_length=1), Tag("<name>")]
        | Annotated[EndpointAddress, Tag("<address>")]
        | Annotated[ManagedServer, Tag("<server>")],
        Discriminator(_endpoint_tag),
        BeforeValidator(_check_endpoint),
    ]
    model: str = Field(min_length=1)
    checkpoint: str | None = Field(default=None, min_length=1)
    prices: Prices | None = None
    concurrency: int = Field(default=32, ge=1, le=4096)
    timeout_s: float = Field(default=180.0, ge=1.0, le=86_400.0)


CHANGES_NO_ANSWER: Mapping[str, bool | set[str]] = {
    **dict.fromkeys(("prices", "concurrency", "timeout_s"), True),
    "endpoint": {"devices", "ready_s"},
}
"""Fields of an endpoint that say nothing about what its model answers (``exclude=`` of pydantic); no record of a run
holds them."""


def _switch(value: Any) -> Any:
    """Return on or off as they are written: to YAML the bare words are true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Checkpoint(Binding):
    """Something that esckit trained.

    Attributes:
        checkpoint: The run folder of the training, whose manifest says what it is.
        dtype: Number type of the weights; ``auto`` is bfloat16 where the device computes in it, else float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the GPU if there is one.
    """

    checkpoint: str = Field(min_length=1)
    dtype: DType = "auto"
    device: Device = "auto"


class CheckpointBinding(Checkpoint, RoleOptions):
    """Something that esckit trained and that plays a role."""


class SupporterCheckpoint(CheckpointBinding):
    """A checkpoint as supporter.

    Attributes:
        adapter: A run of ``train-flow``: ``off`` is its plain backbone as a chat model, ``on`` lets the adapter write,
            if it was trained to (``response_weight``). Without meaning for other runs.
    """

    adapter: Annotated[
        Literal["on", "off"], BeforeValidator(_switch, json_schema_input_type=Literal["on", "off"] | bool)
    ] = "off"


class StrategistCheckpoint(CheckpointBinding):
    """A checkpoint that chooses strategies.

    Attributes:
        value_weight: Weight of V beside log π; None is 1, or 0 where the values were not trained.
        top_k: So many strategies of highest π may be chosen; None is all.
    """

    value_weight: NonNegativeFloat | None = None
    top_k: PositiveInt | None = None


class ScriptedBinding(RoleOptions):
    """The fake model that ships with esckit, or a function of your own.

    Attributes:
        scripted: Name of a shipped script, a script file, or ``module:attr``. Scripts ship for every role: ``seeker``,
            ``supporter``, ``strategist``, ``critic`` (verdicts) and ``critic_rubric`` (scores by criterion), ``judge``;
            ``seeker_aflow`` and ``supporter_aflow`` answer AFlow's prompts.
    """

    scripted: str = Field(min_length=1)


WorldProfile = Literal["default", "guarded", "open", "terse", "leaver"]
"""The profiles of ``esckit/practice/profiles.yaml``."""


class WorldBinding(RoleOptions):
    """A player of the practice world, which asks no model; its sampling is without effect.

    Attributes:
        world: Profile of the seeker; all roles of a recipe name the same.
    """

    world: WorldProfile


class WorldSupporter(WorldBinding):
    """A supporter of the practice world, which words the strategies that it is given.

    Attributes:
        slips: Share of the turns whose words do nothing: a reflection of what nobody said, or an earlier reply again.
    """

    slips: float = Field(default=0.0, ge=0.0, le=1.0)


class WorldStrategist(WorldBinding):
    """A strategist of the practice world.

    Attributes:
        policy: At ``random``, in a ``fixed`` order, by the ``rule`` that reads the need from the seeker's words, as a
            ``novice``, who follows the rule in half of the turns and guesses in the others, or the ``optimum``, which
            sees the hidden state.
    """

    policy: Literal["random", "fixed", "novice", "rule", "optimum"] = "rule"


def _check_kind(value: object) -> object:
    """Refuse a mapping that names no kind of model, or several."""
    if not isinstance(value, Mapping):
        return value
    named = [kind for kind in KINDS if kind in value]
    if len(named) == 1 or named == ["endpoint", "checkpoint"]:
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


_Backbone = Annotated[BackboneBinding, Tag("<backbone>")]

_Endpoint = Annotated[EndpointBinding, Tag("<endpoint>")]

_Scripted = Annotated[ScriptedBinding, Tag("<scripted>")]

_World = Annotated[WorldBinding, Tag("<world>")]

_BY_KIND = Discriminator(
    _kind_tag,
    custom_error_type="binding_kind",
    custom_error_message=f"must be a mapping with one of {', '.join(KINDS)}",
)

_ONE_KIND = BeforeValidator(_check_kind)

ModelBinding = Annotated[
    _Backbone | _Endpoint | Annotated[CheckpointBinding, Tag("<checkpoint>")] | _Scripted | _World, _BY_KIND, _ONE_KIND
]
"""The model of a role, one of five classes; tell them apart with ``match`` or ``isinstance``."""

SupporterBinding = Annotated[
    _Backbone
    | _Endpoint
    | Annotated[SupporterCheckpoint, Tag("<checkpoint>")]
    | _Scripted
    | Annotated[WorldSupporter, Tag("<world>")],
    _BY_KIND,
    _ONE_KIND,
]
"""The model of a supporter."""

StrategistBinding = Annotated[
    _Backbone
    | _Endpoint
    | Annotated[StrategistCheckpoint, Tag("<checkpoint>")]
    | _Scripted
    | Annotated[WorldStrategist, Tag("<world>")],
    _BY_KIND,
    _ONE_KIND,
]
"""The model that chooses strategies."""


@dataclass(frozen=True, slots=True, eq=False)  # a type holds it, so it has to be hashable
class RoleDefaults:
    """Fills what a binding leaves out with the defaults of its role.

    Attributes:
        sampling: Defaults of ``sampling``'s fields.
        options: Defaults of the other fields of :class:`RoleOptions`.
    """

    sampling: Mapping[str, Any]
    options: Mapping[str, Any]

    def __call__(self, value: object) -> object:
        """Return a binding as plain data with the defaults; anything else as it is."""
        if not isinstance(value, Mapping):
            return value
        given = value.get("sampling", {})
        filled = {**self.sampling, **given} if isinstance(given, Mapping) else given
        return {**self.options, **value, "sampling": filled}

    @property
    def in_words(self) -> str:
        """The defaults as a sentence of the recipe reference."""
        sampling = ", ".join(f"{name}: {value}" for name, value in self.sampling.items())
        options = "".join(f", `{name}: {value}`" for name, value in self.options.items())
        return f"Defaults of this role: `sampling: {{{sampling}}}`{options}."


def role_defaults(*, sampling: Mapping[str, Any], **options: Any) -> BeforeValidator:
    """Return a validator that fills in :class:`RoleDefaults`."""
    return BeforeValidator(RoleDefaults(sampling, options))


RolloutSupporter = Annotated[
    SupporterBinding,
    role_defaults(sampling={"temperature": 1.1, "top_k": 80, "max_tokens": 512}, on_length="last_sentence"),
]

RolloutSeeker = Annotated[
    ModelBinding, role_defaults(sampling={"temperature": 0.7, "max_tokens": 64}, on_length="last_sentence")
]

RolloutCritic = Annotated[ModelBinding, role_defaults(sampling={"temperature": 1.1, "max_tokens": 16})]
"""Who plays a future; the sampling is that of RLFF-ESC (arXiv 2508.12935)."""


def check_prices(budget: Limits, bindings: Iterable[Binding | None]) -> None:
    """Refuse a limit of cost that could not be watched.

    Raises:
        ValueError: If ``max_cost`` is set and an endpoint states no prices.
    """
    if budget.max_cost is None:
        return
    for binding in bindings:
        if isinstance(binding, EndpointBinding) and binding.prices is None:
            raise ValueError(f"budget.max_cost needs prices for the endpoint model {binding.model!r}")


_IN_THE_WORLD = frozenset({"seeker", "supporter", "critic", "strategist", "turn_judge"})


def check_worlds(bindings: Mapping[str, Binding | None], *, is_guided: bool) -> None:
    """Refuse players of the practice world that cannot play together.

    Args:
        bindings: The model of each role.
        is_guided: Whether a strategist names the strategy of every supporter turn.

    Raises:
        ValueError: If a role is no part of the world, profiles differ, or the world's supporter gets no strategy.
    """
    worlds = {role: binding.world for role, binding in bindings.items() if isinstance(binding, WorldBinding)}
    if strangers := worlds.keys() - _IN_THE_WORLD:
        raise ValueError(f"models.{min(strangers)}: the practice world has only {', '.join(sorted(_IN_THE_WORLD))}")
    if len(set(worlds.values())) > 1:
        named = ", ".join(f"{role}: {world}" for role, world in worlds.items())
        raise ValueError(f"all roles of a recipe play one profile of the practice world, not {named}")
    if "supporter" in worlds and not is_guided:
        raise ValueError(
            "models.supporter: {world: …} words the strategies that it is given, and here it is given none; "
            "name a models.strategist and let it lead"
        )


def calls_of_models(calls: Mapping[str, int], bindings: Mapping[str, Binding]) -> dict[str, int]:
    """Return the calls of the roles that a model plays: the practice world asks none."""
    return {role: n for role, n in calls.items() if not isinstance(bindings.get(role), WorldBinding)}


class Contexts(Section):
    """Which prefixes of a dialogue are used, and how they are cut.

    Attributes:
        supporter_opening: What becomes of a supporter turn that opens the conversation.
        situation_first: Insert the situation as the first seeker turn.
        per_dialogue: Seeded subsample of so many contexts of each dialogue; None uses all.
    """

    supporter_opening: Literal["drop", "keep"] = "drop"
    situation_first: bool = False
    per_dialogue: PositiveInt | None = None


class Rollout(Section):
    """How a future is played.

    Attributes:
        horizon: Exchanges after the first reply's own, at most.
        score_first_exchange: Ask the critic after the first reply's own exchange too, and perhaps stop there.
        max_attempts: Tries in all for one reply.
    """

    horizon: PositiveInt = 8
    score_first_exchange: bool = False
    max_attempts: int = Field(default=3, ge=1, le=10)


class ResolutionCritic(Section):
    """How the resolution critic is asked and read.

    Attributes:
        preset: The levels that the critic names, and their values.
        readout: ``sampled`` answers, or the ``expected`` value from the levels' log-probabilities.
        samples: Answers asked for by ``sampled``.
        samples_as: None asks for each answer in a request of its own, with its own seed; ``choices`` asks for all of a
            round as the choices of one request (``n``) with one seed. The latter needs an endpoint whose server draws
            its choices independently; the prompt then counts, and costs, once.
        threshold: The goal is reached if the mean lies strictly above it; a decimal in [-1, 1], compared exactly.
        max_attempts: Rounds of ``samples`` in all until one round is readable.
        min_parsed: Answers of a round that must be readable.
        by: What ``expected`` reads: the levels' ``names``, or ``letters`` beside them in the prompt, which small models
            answer more surely; None is names where the model can score them.
        expected_score: Log-probability of a level name as it is, or by token.
        ppdpp_compat: Count an unreadable round as 0, as PPDPP's code does; counted in the summary.
    """

    preset: Literal["rlff7", "ppdpp4"] = "rlff7"
    readout: Literal["sampled", "expected"] = "sampled"
    samples: PositiveInt = 10
    samples_as: Literal["choices"] | None = None
    threshold: DecimalText = "0.5"
    max_attempts: PositiveInt = 2
    min_parsed: PositiveInt = 1
    by: Literal["names", "letters"] | None = None
    expected_score: Literal["sequence", "length_normalised"] = "sequence"
    ppdpp_compat: bool = False

    @property
    def calls(self) -> int:
        """Calls of one round."""
        return 1 if self.readout == "expected" or self.samples_as == "choices" else self.samples

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, threshold: str) -> str:
        if abs(Fraction(threshold)) > 1:
            raise ValueError("must lie in [-1, 1], where the critic's values lie")
        return threshold

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.min_parsed > self.samples:
            raise ValueError(f"min_parsed ({self.min_parsed}) is more than samples ({self.samples})")
        return self


class RubricCritic(Section):
    """How supporter turns are rated.

    Attributes:
        rubric: The criteria by which turns are rated; ``aflow`` has the four of that paper.
        readout: Four ``sampled`` ratings, their ``expected`` values from next-token probabilities, or the probability
            of a trained ``reward_model``, which ``models.critic`` then names as a checkpoint.
        show_strategy: Whether the critic sees the strategies of supporter turns.
        weights: Weight per criterion; the reward is their weighted mean over 5.
        min_label_mass: With ``expected``, the least probability of all ratings together for a turn to be scored.
    """

    rubric: Literal["aflow"] = "aflow"
    readout: Literal["sampled", "expected", "reward_model"] = "sampled"
    show_strategy: bool = True
    weights: dict[str, NonNegativeFloat] = Field(
        default={"empathy": 0.1, "information": 0.1, "naturalness": 0.1, "strategy": 0.2}
    )
    min_label_mass: float = Field(default=0.05, ge=0.0, le=1.0)


class Strategist(Section):
    """How the strategist is read.

    Attributes:
        readout: Probabilities that the model writes as ``json``, or those of the strategy names scored as ``choices``.
    """

    readout: Literal["json", "choices"] = "json"


class Prompts(Section):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        seeker: Prompt of the seeker, by name or as a file.
        supporter: Prompt of the supporter, by name or as a file.
        critic: Prompt of the critic, by name or as a file; where None is allowed, it takes its preset's own.
        strategist: Prompt of the strategist, by name or as a file.
    """


class Resume(Section):
    """What happens to cases that are there already. Operational.

    Attributes:
        retry_failed: Play cases again that failed or are unscored.
    """

    retry_failed: bool = False
