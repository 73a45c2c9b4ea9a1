"""The models of a run: each is loaded once, however many roles name it, and counts against one budget.

A binding names a backbone, an endpoint, a script or a checkpoint. The kind of a checkpoint
(:func:`esckit.models.checkpoint.kind_of`) says how it can be used and loads it, so that no training is imported here.
Which role uses a model how, and with which prompt, stands in :mod:`esckit.roles.cast`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from esckit.config.sections import (
    BackboneBinding,
    Binding,
    Checkpoint,
    CheckpointBinding,
    EndpointAddress,
    EndpointBinding,
    LocalModels,
    ManagedServer,
    RoleOptions,
    ScriptedBinding,
    StrategistCheckpoint,
    SupporterCheckpoint,
    WorldBinding,
)
from esckit.errors import CheckpointError, ConfigError, named_by
from esckit.models.backbones import find_backbone, resolve_backbone
from esckit.models.budget import Budget, BudgetedModel
from esckit.models.cache import CachedModel, ResponseCache, Shelf, cache_path
from esckit.models.chat_api import ShippedEndpoint, load_endpoint
from esckit.models.checkpoint import FOLDER, kind_of
from esckit.models.scripted import load_scripted
from esckit.models.server import Servers, check_servers, is_managed, server_name
from esckit.practice.world import load_profile
from esckit.protocols import ChatModel, CheckpointKind, Part
from esckit.roles.asking import Voice, Window, gather_or_cancel
from esckit.runs import read_manifest
from esckit.strategies.kept import find_kept, kept_taxonomy, require_same
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import FREE, Limits, Usage

if TYPE_CHECKING:
    from esckit.models.endpoint import EndpointModel
    from esckit.models.local import LocalModel, PerplexityScorer

log = logging.getLogger(__name__)

_TRAINED_FOR: dict[str, Part] = {
    "strategist": "strategist",
    "supporter": "writer",
    "critic": "scorer",
    "reward": "scorer",
}

_DETERMINISM = {
    "endpoint": "best effort: endpoints honour seeds as well as they can",
    "local": "equal draws: the last bits of batched logits may differ and change a text",
    "invariant": "identical bytes for every concurrency on one kind of machine: local models compute requests alone",
}

_SAME_BYTES = "identical bytes for every concurrency"


def part_of(role: str, binding: Binding) -> Part:
    """Return as what a role uses a model: as a chat model, unless it was trained for this very role.

    Raises:
        CheckpointError: If a run that is named holds no checkpoint.
    """
    if isinstance(binding, WorldBinding):
        return "world"
    if not isinstance(binding, Checkpoint):
        return "chat"
    part = _TRAINED_FOR.get(role, "chat")
    is_wanted = part != "writer" or (isinstance(binding, SupporterCheckpoint) and binding.adapter == "on")
    return part if is_wanted and part in kind_of(Path(binding.checkpoint)).parts else "chat"


def look_up(bindings: Iterable[Binding | None]) -> None:
    """Check that every model named in a recipe is known, before anything heavy is imported or loaded.

    Raises:
        ConfigError: If a backbone, an endpoint or a script is unknown or faulty, a folder is not a model, or servers to
            start contradict each other.
        DataError: If a checkpoint is not a run folder.
    """
    bindings = tuple(bindings)
    check_servers(bindings)
    for binding in bindings:
        if isinstance(binding, BackboneBinding):
            find_backbone(binding.backbone)
        elif isinstance(binding, EndpointBinding) and isinstance(binding.endpoint, str):
            load_endpoint(binding.endpoint)
        elif isinstance(binding, ScriptedBinding):
            load_scripted(binding.scripted)
        elif isinstance(binding, WorldBinding):
            load_profile(binding.world)
        if (run := trained_run(binding)) is not None:
            read_manifest(Path(run))


def trained_run(binding: Binding | None) -> str | None:
    """Return the run whose model a role uses, loaded here or answering from a server; None if esckit trained none."""
    return binding.checkpoint if isinstance(binding, Checkpoint | EndpointBinding) else None


def require_checkpoints(bindings: Mapping[str, Binding], taxonomy: Taxonomy | None = None) -> None:
    """Check that every checkpoint of a recipe is there and can play its role; loads nothing heavy.

    Args:
        bindings: The models, by role.
        taxonomy: What a trained strategist must have been trained for; None takes its own.

    Raises:
        CheckpointError: If a run holds no checkpoint, or one that cannot play the role.
        ConfigError: If a flow checkpoint is to write and no taxonomy is known.
    """
    for role, binding in bindings.items():
        if isinstance(binding, Checkpoint):
            with named_by(f"models.{role}.checkpoint"):
                part = part_of(role, binding)
                _kind_for(Path(binding.checkpoint), part, known_taxonomy(taxonomy) if part == "writer" else taxonomy)
        elif (run := trained_run(binding)) is not None and kind_of(Path(run)).parts != {"chat"}:
            raise CheckpointError(
                f"models.{role}: an endpoint for {run}, whose model is read by heads of its own",
                expected="a run of train-rl or train-sft, whose model writes text",
                hint="A server returns text and no states: name the run without endpoint, and esckit loads it",
            )


def _kind_for(run: Path, part: Part, taxonomy: Taxonomy | None) -> CheckpointKind:
    """Return the kind of a checkpoint that is to know the strategies of a taxonomy; None takes its own.

    Raises:
        CheckpointError: If it cannot be this part, or is of another taxonomy.
        ConfigError: As :func:`require_taxonomy`.
    """
    if taxonomy is not None and part in ("strategist", "writer"):
        require_taxonomy(run, taxonomy)
    return kind_of(run, part, strategies=taxonomy.names if taxonomy is not None else None)


def require_taxonomy(run: Path, taxonomy: Taxonomy) -> None:
    """Refuse a checkpoint that was trained with another taxonomy of the same name, if it keeps a copy of it.

    Raises:
        ConfigError: If they differ; the message says in what.
    """
    if kind_of(run).taxonomy(run) == taxonomy.name:
        kept = find_kept(taxonomy.name, (run / FOLDER, run))
        if kept is not None:
            require_same(taxonomy, kept, here="that of this run", there=f"that of {run}")


def known_taxonomy(taxonomy: Taxonomy | None) -> Taxonomy:
    """Return the taxonomy of a run in which strategies are named.

    Raises:
        ConfigError: If neither the recipe nor the corpus names one.
    """
    if taxonomy is None:
        raise ConfigError(
            "strategies are named without a taxonomy", expected="taxonomy: NAME", hint="See 'esckit recipes show'"
        )
    return taxonomy


def policy_taxonomy(run: Path) -> Taxonomy:
    """Return the taxonomy of a strategy policy.

    Raises:
        CheckpointError: If the run holds no policy.
        ConfigError: If its taxonomy is a user's own and no copy of it was kept.
    """
    name = kind_of(run, "strategist").taxonomy(run)
    assert name is not None
    return kept_taxonomy(name, run / FOLDER, run)


def checkpoint_ids(bindings: Iterable[Binding | None]) -> dict[str, str]:
    """Return which training each named checkpoint is of, by its path, and whether it is over.

    Until a training is over its checkpoint may still change.
    """
    paths = [run for binding in bindings if (run := trained_run(binding)) is not None]
    manifests = {path: read_manifest(Path(path)) for path in paths}
    return {
        path: f"{manifest['recipe_digest']} of {manifest.get('created')}, {manifest.get('status')}"
        for path, manifest in manifests.items()
    }


class Trained(NamedTuple):
    """A checkpoint as it is used: as a strategist, a writer or a scorer, and under which name records know it."""

    part: Part
    name: str
    model: Any


class ModelPool:
    """Loads the models of bindings and owns them, with the servers that they need; leaving the context ends them all.

    Args:
        executor: How local models use the machine.
        limits: What the run may use up.
        cache: File of the response cache; None takes the one that the environment names, if any.
        permit: See :class:`~esckit.models.budget.Budget`.

    Attributes:
        budget: What was used up; everything that is asked of a model is booked on it.
    """

    IS_REHEARSAL: ClassVar[bool] = False
    """Whether stand-ins answer, so that only what is asked is of interest."""

    def __init__(
        self,
        executor: LocalModels,
        limits: Limits,
        cache: str | None = None,
        *,
        permit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.budget = Budget(limits, permit=permit)
        self._executor = executor
        self._cache_path = cache_path(cache)
        self._cache: ResponseCache | None = None
        self._shelves: dict[str, Shelf] = {}
        self._chats: dict[str, ChatModel] = {}
        self._backbones: dict[str, str] = {}
        self._servers = Servers()
        self._noting: list[LocalModel | EndpointModel] = []
        self._endpoints: dict[str, EndpointModel] = {}
        self._trained: dict[str, Trained] = {}
        self._sources: set[str] = set()
        self._local = "invariant" if executor.is_invariant else "local"
        self._scorer: PerplexityScorer | None = None

    def model(self, binding: Binding, role: str) -> ChatModel:
        """Return the chat model of a binding in a role, on the run's budget and behind its response cache.

        Raises:
            ConfigError: If there is no such model, or its key is not set.
            CheckpointError: If a checkpoint is not a chat model.
            StorageError: If the response cache cannot be used.
        """
        prices = binding.prices if isinstance(binding, EndpointBinding) else FREE
        model = BudgetedModel(self._chat(binding), self.budget, role, prices)
        shelf = self._shelf(binding)
        return model if shelf is None else CachedModel(model, shelf, self.budget, role, prices)

    def voice(self, binding: RoleOptions, role: str, *, max_attempts: int) -> Voice:
        """Return a chat model as its role uses it.

        Raises:
            ConfigError: As :meth:`model`, or if ``max_context_tokens`` is set where tokens cannot be counted.
        """
        return Voice(self.model(binding, role), binding, max_attempts, self._window(binding))

    def trained(self, binding: Binding, part: Part, taxonomy: Taxonomy | None = None) -> Trained:
        """Return a checkpoint as what it was trained for; see :class:`esckit.protocols.CheckpointKind`.

        Args:
            binding: Names the checkpoint.
            part: What it is used as.
            taxonomy: The strategies that it is to know; None where it knows none.

        Raises:
            CheckpointError: If it cannot be this, or is of another taxonomy.
            ConfigError: If the binding names no checkpoint.
        """
        if not isinstance(binding, Checkpoint):
            raise ConfigError("not a checkpoint", expected="checkpoint: RUN")
        fields = {"checkpoint", "dtype", "device"}
        options: dict[str, Any] = {"dtype": binding.dtype, "device": binding.device}
        options["is_invariant"] = self._executor.is_invariant
        if part == "strategist" and isinstance(binding, StrategistCheckpoint):
            fields |= {"value_weight", "top_k", "max_context_tokens"}
            options |= {"value_weight": binding.value_weight, "top_k": binding.top_k}
            options |= {"max_tokens": binding.max_context_tokens} if binding.max_context_tokens else {}
        key = f"{binding.model_dump_json(include=fields)} as {part}"
        if key not in self._trained:
            run = Path(binding.checkpoint)
            kind = _kind_for(run, part, taxonomy)
            abbreviations = dict(zip(taxonomy.names, taxonomy.abbrs, strict=True)) if taxonomy else {}
            self._sources.add(self._local)
            model = kind.load(run, part, abbreviations, **options)
            self._trained[key] = Trained(part, kind.identity(run), model)
        return self._trained[key]

    def scorer(self, binding: BackboneBinding) -> PerplexityScorer:
        """Return the run's language model for perplexities.

        Raises:
            ConfigError: If it is not available.
        """
        from esckit.models.local import PerplexityScorer

        self._sources.add(self._local)
        self._scorer = PerplexityScorer.load(binding.backbone, dtype=binding.dtype, device=binding.device)
        return self._scorer

    async def prepare(self, bindings: Mapping[str, Binding]) -> None:
        """Start servers, load the chat models and raise at once if one cannot be used.

        Only then are the capabilities of a model known. Servers are started at once, and none of which the response
        cache knows all that is asked.
        """
        parts = {role: part_of(role, binding) for role, binding in bindings.items()}
        named = [b.checkpoint for role, b in bindings.items() if isinstance(b, Checkpoint) and parts[role] != "scorer"]
        for run in dict.fromkeys(named):
            status = read_manifest(Path(run)).get("status")
            if status != "complete":
                log.warning("%s is not complete (%s): its model is the last that was kept", run, status)
        chat = [binding for role, binding in bindings.items() if parts[role] == "chat"]
        models = {id(model): model for model in (self._shelf(binding) or self._chat(binding) for binding in chat)}
        started = {id(self._shelf(binding) or self._chat(binding)) for binding in chat if is_managed(binding)}
        await gather_or_cancel(model.check() for key, model in models.items() if key in started)
        for model in (model for key, model in models.items() if key not in started):
            await model.check()
        for binding in chat:
            if isinstance(binding, EndpointBinding):
                endpoint: EndpointModel = self._chat(binding)  # type: ignore[assignment]
                if not endpoint.reports_usage:
                    self.budget.require_watchable(endpoint.name, Usage(unknown_calls=1), binding.prices)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the models."""
        found: dict[str, dict[str, Any]] = {
            key: {"name": model.name, "capabilities": sorted(self._shelves.get(model.name, model).capabilities)}
            for key, model in self._chats.items()
        }
        for key, backbone in self._backbones.items():
            found[key]["revision"] = resolve_backbone(backbone).revision
        for key, endpoint in self._endpoints.items():
            found[key]["in_flight"] = endpoint.in_flight
        found |= {key: {"name": trained.name, "capabilities": []} for key, trained in self._trained.items()}
        facts: dict[str, Any] = {"models": found}
        if self._scorer is not None:
            facts["scorer"] = self._scorer.name
        if self._cache is not None:
            facts["cache"] = str(self._cache.path)
        if notes := [note for model in self._noting for note in model.notes]:
            facts["notes"] = notes
        return facts

    def spent(self) -> dict[str, Any]:
        """Return what this attempt has used up, in all and by role; see :func:`esckit.ledger.total`."""
        return self.budget.spent()

    def on_spent(self, note: Callable[[], None]) -> None:
        """Have a function called with every call to a model, and when it is answered."""
        self.budget.on_change = note

    def determinism(self) -> str:
        """Return how far the seeds of this run determine its records, in a sentence for the manifest."""
        return next((sentence for source, sentence in _DETERMINISM.items() if source in self._sources), _SAME_BYTES)

    async def __aenter__(self) -> Self:
        """Return the pool."""
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Close every model, and end the servers."""
        trained = (one.model for one in self._trained.values() if one.part != "scorer")
        try:
            for model in (*self._chats.values(), *trained):
                await model.aclose()
        finally:
            if self._cache is not None:
                self._cache.close()
            await self._servers.aclose()

    def _shelf(self, binding: Binding) -> Shelf | None:
        """Return what the response cache holds of a server's model; None for other models, and without a cache."""
        if self._cache_path is None or not isinstance(binding, EndpointBinding):
            return None
        if self._cache is None:
            self._cache = ResponseCache(self._cache_path)
        model = self._chat(binding)
        return self._shelves.setdefault(model.name, Shelf(self._cache, model.name, model))

    def _window(self, binding: RoleOptions) -> Window:
        """Return how much of a talk a role's model is shown: the recipe's limit, else what a local model can take."""
        if isinstance(binding, BackboneBinding | CheckpointBinding):
            local: LocalModel = self._chat(binding)  # type: ignore[assignment]
            limit = binding.max_context_tokens or local.context_length - binding.sampling.max_tokens
            return Window(limit, local.count_tokens)
        if binding.max_context_tokens is not None:
            raise ConfigError(
                f"max_context_tokens for {self._chat(binding).name}",
                expected="a local backbone, whose tokens can be counted",
            )
        return Window()

    def _chat(self, binding: Binding) -> ChatModel:
        """Return the model of a binding; roles that differ only in how they use it share one."""
        key = _key(binding)
        if key not in self._chats:
            self._chats[key] = self._load_chat(binding)
            if isinstance(binding, BackboneBinding):
                self._backbones[key] = binding.backbone
        return self._chats[key]

    def _load_chat(self, binding: Binding) -> ChatModel:
        model: LocalModel | EndpointModel
        if isinstance(binding, ScriptedBinding):
            return load_scripted(binding.scripted)
        if isinstance(binding, EndpointBinding):
            self._sources.add("endpoint")
            model = self._endpoints[_key(binding)] = self._endpoint(binding)
        elif isinstance(binding, BackboneBinding | Checkpoint):
            self._sources.add(self._local)
            options: dict[str, Any] = {"dtype": binding.dtype, "device": binding.device}
            options |= {"max_batch_tokens": self._executor.batch_tokens, "is_invariant": self._executor.is_invariant}
            if self._executor.threads is not None:
                import torch

                torch.set_num_threads(self._executor.threads)
            if isinstance(binding, Checkpoint):
                run = Path(binding.checkpoint)
                model = kind_of(run, "chat").load(run, "chat", {}, **options)
            else:
                from esckit.models.local import LocalModel

                model = LocalModel.load(binding.backbone, **options)
        else:
            raise TypeError(f"no model kind {type(binding).__name__}")
        self._noting.append(model)
        return model

    def _endpoint(self, binding: EndpointBinding) -> EndpointModel:
        """Return the endpoint model of a binding: a name, an address, or a started server."""
        from esckit.models.endpoint import EndpointModel
        from esckit.models.transport import Timeouts

        timeouts = Timeouts(timeout_s=binding.timeout_s, concurrency=binding.concurrency)
        match binding.endpoint:
            case ManagedServer() as section:
                server = self._servers.of(section)
                return EndpointModel(
                    server.base_url,
                    binding.model,
                    label=server_name(section),
                    api_key_env=section.api_key_env,
                    timeouts=timeouts,
                    server=server,
                )
            case EndpointAddress() as address:
                spec, label = ShippedEndpoint(**address.model_dump()), None
            case name:
                spec, label = load_endpoint(name), name
        return EndpointModel(
            spec.base_url,
            binding.model,
            label=label,
            api_key_env=spec.api_key_env,
            lacks=spec.lacks,
            timeouts=timeouts,
        )


def _key(binding: Binding) -> str:
    """Return what bindings that share a model have in common."""
    return binding.model_dump_json(exclude={"sampling", "on_length", "max_words", "max_context_tokens", "prices"})
