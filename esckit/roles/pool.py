"""The models of a run: each loaded once, whatever number of roles name it, and booked on one budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from esckit.config.sections import (
    BackboneBinding,
    CheckpointBinding,
    EndpointBinding,
    Executor,
    RoleOptions,
    ScriptedBinding,
)
from esckit.errors import ConfigError
from esckit.flow.text import checkpoint_folder, read_metadata
from esckit.flow.writer import writer_metadata
from esckit.models.backbones import find_backbone, resolve_backbone
from esckit.models.budget import Budget, BudgetedModel, BudgetedPolicy
from esckit.models.chat_api import load_endpoint
from esckit.models.scripted import load_scripted
from esckit.protocols import ChatModel, StrategyPolicy
from esckit.rl.policy import load_policy, read_policy
from esckit.roles.asking import Voice, Window
from esckit.runs import read_manifest
from esckit.strategies.taxonomy import Taxonomy, kept_taxonomy
from esckit.types import FREE, Limits

if TYPE_CHECKING:
    from esckit.flow.policy import CheckpointPolicy
    from esckit.flow.writer import FlowWriter
    from esckit.models.endpoint import EndpointModel
    from esckit.models.local import LocalModel, PerplexityScorer
    from esckit.roles.critics import RewardCritic
    from esckit.roles.supporters import FlowSupporter


log = logging.getLogger(__name__)


_NO_TAXONOMY = "a flow checkpoint as supporter without a taxonomy"


def look_up(bindings: Iterable[RoleOptions | None]) -> None:
    """Check that every model named in a recipe is known, before anything heavy is imported or loaded.

    Raises:
        ConfigError: If a backbone, an endpoint or a script is unknown or faulty, or a folder is no model.
        DataError: If a checkpoint is no run folder.
    """
    for binding in bindings:
        if isinstance(binding, BackboneBinding):
            find_backbone(binding.backbone)
        elif isinstance(binding, EndpointBinding) and isinstance(binding.endpoint, str):
            load_endpoint(binding.endpoint)
        elif isinstance(binding, CheckpointBinding):
            read_manifest(Path(binding.checkpoint))
        elif isinstance(binding, ScriptedBinding):
            load_scripted(binding.scripted)


def require_checkpoints(bindings: Mapping[str, RoleOptions], taxonomy: Taxonomy | None = None) -> None:
    """Check that every checkpoint of a recipe is there and can play its role; loads nothing heavy.

    Args:
        bindings: The models, by role.
        taxonomy: What a trained strategist must have been trained for; None takes its own.

    Raises:
        CheckpointError: If a run holds no checkpoint, or one that cannot play the role.
        ConfigError: If a flow checkpoint is to write and no taxonomy is known.
    """
    for role, binding in bindings.items():
        if not isinstance(binding, CheckpointBinding):
            continue
        run = Path(binding.checkpoint)
        if is_strategy_policy(binding):
            writes = role == "supporter" and binding.adapter == "on"
            if writes and taxonomy is None:
                raise ConfigError(_NO_TAXONOMY, expected="taxonomy: NAME")
            read_metadata(run, strategies=taxonomy.names if taxonomy and (writes or role == "strategist") else None)
            if writes:
                writer_metadata(run)
        elif not (is_reward_model(binding) and role in ("reward", "critic")):
            read_policy(run)


def is_strategy_policy(binding: RoleOptions | None) -> bool:
    """Return whether a binding names what ``train-flow`` trained, which chooses strategies and writes no text."""
    return isinstance(binding, CheckpointBinding) and read_manifest(Path(binding.checkpoint))["command"] == "train-flow"


def policy_taxonomy(run: Path) -> Taxonomy:
    """Return the taxonomy of a strategy policy.

    Raises:
        CheckpointError: If the run holds no policy.
        ConfigError: If its taxonomy is a user's own and no copy of it was kept.
    """
    folder = checkpoint_folder(run)
    return kept_taxonomy(read_metadata(run).taxonomy, folder, folder.parent)


def is_reward_model(binding: RoleOptions | None) -> bool:
    """Say whether a binding names a trained reward model, which scores and does not talk."""
    return (
        isinstance(binding, CheckpointBinding) and read_manifest(Path(binding.checkpoint))["command"] == "train-reward"
    )


def checkpoint_ids(bindings: Iterable[RoleOptions | None]) -> dict[str, str]:
    """Return which training each named checkpoint is of, by its path."""
    return {
        binding.checkpoint: run_identity(Path(binding.checkpoint))
        for binding in bindings
        if isinstance(binding, CheckpointBinding)
    }


def run_identity(run: Path) -> str:
    """Return which run a folder holds, and whether it is over: until then its checkpoint may still change."""
    manifest = read_manifest(run)
    return f"{manifest['recipe_digest']} of {manifest.get('created')}, {manifest.get('status')}"


def _warn_of_unfinished(bindings: Iterable[RoleOptions]) -> None:
    """Say which trainings are not over; of reward models :func:`load_reward_model` says it."""
    unrated = [binding for binding in bindings if not is_reward_model(binding)]
    for run in dict.fromkeys(binding.checkpoint for binding in unrated if isinstance(binding, CheckpointBinding)):
        status = read_manifest(Path(run)).get("status")
        if status != "complete":
            log.warning("%s is not complete (%s): its model is the last that was kept", run, status)


class _Noting(Protocol):
    """A model that tells a manifest what became of what it was given."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences."""
        ...


class ModelPool:
    """Builds chat models from bindings and owns them; leaving the context closes them all.

    Args:
        executor: How local models use the machine.
        budget: What the run may use up.
    """

    def __init__(self, executor: Executor, budget: Limits) -> None:
        self._executor = executor
        self._budget = Budget(budget)
        self._models: dict[str, ChatModel] = {}
        self._backbones: dict[str, str] = {}
        self._noting: list[_Noting] = []
        self._kinds: set[str] = set()
        self._policies: dict[str, CheckpointPolicy] = {}
        self._writers: dict[str, FlowWriter] = {}
        self._scorer: PerplexityScorer | None = None

    def model(self, binding: RoleOptions) -> ChatModel:
        """Return the model of a binding, on the run's budget.

        Raises:
            ConfigError: If there is no such model, or its key is not set.
        """
        prices = binding.prices if isinstance(binding, EndpointBinding) else FREE
        return BudgetedModel(self._shared(binding), self._budget, prices)

    def voice(self, binding: RoleOptions, *, max_attempts: int) -> Voice:
        """Return a model as its role uses it."""
        return Voice(
            self.model(binding),
            binding.sampling,
            max_attempts=max_attempts,
            on_length=binding.on_length,
            max_words=binding.max_words,
        )

    def policy(self, binding: RoleOptions, taxonomy: Taxonomy) -> StrategyPolicy:
        """Return a trained strategy policy for a taxonomy.

        Raises:
            CheckpointError: If the run holds none, or it is of another taxonomy.
            ConfigError: If the binding names no checkpoint.
        """
        if not isinstance(binding, CheckpointBinding):
            raise ConfigError("a strategy policy that is no checkpoint", expected="checkpoint: RUN")
        identity = binding.model_dump_json(exclude={"adapter", "sampling", "on_length", "max_words"})
        if identity not in self._policies:
            from esckit.flow.policy import CheckpointPolicy

            self._kinds.add("backbone")
            options = {"max_tokens": binding.max_context_tokens} if binding.max_context_tokens else {}
            self._policies[identity] = CheckpointPolicy.load(
                Path(binding.checkpoint),
                strategies=taxonomy.names,
                abbreviations=dict(zip(taxonomy.names, taxonomy.abbrs, strict=True)),
                dtype=binding.dtype,
                device=binding.device,
                value_weight=binding.value_weight,
                top_k=binding.top_k,
                **options,
            )
        return BudgetedPolicy(policy := self._policies[identity], self._budget, policy.name)

    def flow_supporter(
        self, binding: RoleOptions, taxonomy: Taxonomy | None, *, max_attempts: int
    ) -> FlowSupporter | None:
        """Return the supporter that a flow checkpoint plays with its adapter on; None for any other binding.

        Raises:
            ConfigError: If no taxonomy is known.
            CheckpointError: If the checkpoint was not trained to write, or is of another taxonomy.
        """
        if not (isinstance(binding, CheckpointBinding) and binding.adapter == "on" and is_strategy_policy(binding)):
            return None
        if taxonomy is None:
            raise ConfigError(_NO_TAXONOMY, expected="taxonomy: NAME")
        from esckit.flow.writer import FlowWriter
        from esckit.roles.supporters import FlowSupporter

        run = Path(binding.checkpoint)
        read_metadata(run, strategies=taxonomy.names)
        identity = binding.model_dump_json(include={"checkpoint", "dtype", "device"})
        if identity not in self._writers:
            self._kinds.add("backbone")
            self._writers[identity] = FlowWriter.load(
                run,
                abbreviations=dict(zip(taxonomy.names, taxonomy.abbrs, strict=True)),
                dtype=binding.dtype,
                device=binding.device,
            )
        return FlowSupporter(
            self._writers[identity], binding.sampling, self._budget, max_attempts, binding.on_length, binding.max_words
        )

    def reward_critic(self, binding: CheckpointBinding) -> RewardCritic:
        """Return a trained reward model as a critic of supporter turns.

        Raises:
            CheckpointError: If the run holds none.
        """
        from esckit.reward.models import load_reward_model
        from esckit.roles.critics import RewardCritic

        self._kinds.add("backbone")
        run = Path(binding.checkpoint)
        model = load_reward_model(run, dtype=binding.dtype, device=binding.device)
        return RewardCritic(model, f"reward_model/{read_manifest(run)['recipe_digest']}", self._budget)

    def scorer(self, binding: BackboneBinding) -> PerplexityScorer:
        """Return the run's language model for perplexities.

        Raises:
            ConfigError: If it cannot be had.
        """
        from esckit.models.local import PerplexityScorer

        self._kinds.add("backbone")
        self._scorer = PerplexityScorer.load(binding.backbone, dtype=binding.dtype, device=binding.device)
        return self._scorer

    def window(self, binding: RoleOptions) -> Window:
        """Return how much of a talk the role's model is shown: the recipe's limit, else what a local model can take.

        Raises:
            ConfigError: If a limit is set for a model whose tokens cannot be counted here.
        """
        if isinstance(binding, BackboneBinding | CheckpointBinding):
            local: LocalModel = self._shared(binding)  # type: ignore[assignment]
            limit = binding.max_context_tokens or local.context_length - binding.sampling.max_tokens
            return Window(limit, local.count_tokens)
        if binding.max_context_tokens is not None:
            raise ConfigError(
                f"max_context_tokens for {self._shared(binding).name}",
                expected="a local backbone, whose tokens can be counted",
            )
        return Window()

    async def prepare(self, bindings: Iterable[RoleOptions]) -> None:
        """Load models and raise at once if one cannot be reached or used; only then are its capabilities known."""
        bindings = tuple(bindings)
        _warn_of_unfinished(bindings)
        chat = [binding for binding in bindings if not is_strategy_policy(binding) and not is_reward_model(binding)]
        for model in {id(model): model for model in map(self._shared, chat)}.values():
            await model.check()

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the models."""
        found: dict[str, dict[str, Any]] = {
            key: {"name": model.name, "capabilities": sorted(model.capabilities)} for key, model in self._models.items()
        }
        for key, backbone in self._backbones.items():
            found[key]["revision"] = resolve_backbone(backbone).revision
        found |= {key: {"name": policy.name, "capabilities": []} for key, policy in self._policies.items()}
        found |= {
            f"{run} as writer": {"name": writer.name, "capabilities": []} for run, writer in self._writers.items()
        }
        facts: dict[str, Any] = {"models": found}
        if self._scorer is not None:
            facts["scorer"] = self._scorer.name
        if notes := [note for model in self._noting for note in model.notes]:
            facts["notes"] = notes
        return facts

    def spent(self) -> dict[str, int | float | None]:
        """Return what this go has used up."""
        return self._budget.spent()

    def determinism(self) -> str:
        """Return what the seeds of this run are worth, in a sentence for the manifest."""
        if "endpoint" in self._kinds:
            return "best effort: endpoints honour seeds as well as they can"
        if "backbone" in self._kinds:
            return "equal draws: the last bits of batched logits may differ and change a text"
        return "identical bytes for every concurrency"

    async def __aenter__(self) -> Self:
        """Return the pool."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every model."""
        for model in self._models.values():
            await model.aclose()
        for policy in self._policies.values():
            await policy.aclose()
        for writer in self._writers.values():
            await writer.aclose()

    def _shared(self, binding: RoleOptions) -> ChatModel:
        identity = binding.model_dump_json(
            exclude={"sampling", "on_length", "max_words", "max_context_tokens", "prices"}
        )
        if identity not in self._models:
            self._models[identity] = self._build(binding)
            if isinstance(binding, BackboneBinding):
                self._backbones[identity] = binding.backbone
        return self._models[identity]

    def _build(self, binding: RoleOptions) -> ChatModel:
        match binding:
            case BackboneBinding():
                self._kinds.add("backbone")
                from esckit.models.local import LocalModel

                local = LocalModel.load(
                    binding.backbone,
                    dtype=binding.dtype,
                    device=binding.device,
                    threads=self._executor.threads,
                    max_batch_tokens=self._executor.batch_tokens,
                )
                self._noting.append(local)
                return local
            case EndpointBinding():
                self._kinds.add("endpoint")
                self._noting.append(endpoint := _endpoint(binding))
                return endpoint
            case ScriptedBinding():
                return load_scripted(binding.scripted)
            case CheckpointBinding():
                self._kinds.add("backbone")
                if is_strategy_policy(binding):
                    backbone = read_metadata(Path(binding.checkpoint)).backbone
                    return self._build(BackboneBinding(backbone=backbone, dtype=binding.dtype, device=binding.device))
                return load_policy(
                    Path(binding.checkpoint),
                    dtype=binding.dtype,
                    device=binding.device,
                    threads=self._executor.threads,
                    max_batch_tokens=self._executor.batch_tokens,
                )
            case _:
                raise TypeError(f"no model kind {type(binding).__name__}")


def _endpoint(binding: EndpointBinding) -> EndpointModel:
    """Return the endpoint model of a binding: a shipped endpoint by name, or an address."""
    from esckit.models.endpoint import EndpointModel

    if isinstance(binding.endpoint, str):
        spec = load_endpoint(binding.endpoint)
        return EndpointModel(
            spec.base_url, binding.model, label=binding.endpoint, api_key_env=spec.api_key_env, lacks=spec.lacks
        )
    return EndpointModel(binding.endpoint.base_url, binding.model, api_key_env=binding.endpoint.api_key_env)
