"""The losses of AFlow (arXiv 2602.08826) over one forward pass.

L = L_flow + w_rank · L_rank + β · KL + w_resp · L_resp. Every term is a sum over the pass divided by the denominators
of the whole update, so the passes of an update add up to its loss.

What training watches beside its loss (arXiv 2602.08826): how sharp the policy is, and where its flows lie.

Flow training on the Hugging Face Trainer: only the batches and the loss are ours.

One item of the data loader is one optimiser step: all forward passes of one process, which carry what the losses divide
by (:mod:`esckit.flow.batch`). So the update is the same whatever the number of processes and the size of the
passes, and accelerate, DeepSpeed, FSDP, mixed precision, checkpoints and trackers come with the Trainer.

What happens between the optimiser steps of flow training: keep the best, write rows.

Validation of a flow model on trees from seed dialogues that training never saw (arXiv 2602.08826).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.errors import TrainingError
from esckit.flow.batch import Chunk, Encoding, FlowBatch, FlowSettings, make_update, n_tokens
from esckit.flow.model import FlowModel, FlowOutputs
from esckit.flow.objectives import (
    RankPairs,
    decision_losses,
    hinge,
    kl_full,
    kl_taken,
    objective,
    path_terms,
    policy_value,
    potentials,
    preference,
    rank_pairs,
    state_losses,
    without_terminal,
)
from esckit.ledger import derive_seed
from esckit.records import JsonlAppender
from esckit.training.monitor import finite_or_none


class FlowPaths(NamedTuple):
    """What objectives see: log_pf (P, T), log_flow (P, T+1) and mask (P, T)."""

    log_pf: Tensor
    log_flow: Tensor
    mask: Tensor


def flow_loss(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> dict[str, Tensor]:
    """Return the terms of the loss and their weighted sum, each divided by the update's denominator.

    Returns:
        Scalars ``loss``, ``flow``, ``rank``, ``kl`` and ``resp``. With ``dpo`` or ``bc`` the term ``flow`` is theirs.
    """
    nothing = outputs.log_pi.new_zeros(())
    pairs = _pairs(batch, settings)
    terms = {
        "flow": main_term(outputs, batch, settings, pairs),
        "rank": _rank_term(outputs, batch, settings, pairs) if settings.rank_weight > 0 else nothing,
        "kl": _kl_term(outputs, batch, settings) if _has_kl(settings) else nothing,
        "resp": _response_term(outputs, batch) if settings.response_weight > 0 else nothing,
    }
    # Heads without any term still take part in the graph: data-parallel training waits for their gradients.
    touch = 0.0 * (outputs.log_pi.sum() + outputs.log_value.sum())
    loss = (
        terms["flow"]
        + settings.rank_weight * terms["rank"]
        + settings.kl_weight * terms["kl"]
        + settings.response_weight * terms["resp"]
        + touch
    )
    return {"loss": loss, **terms}


def gather_paths(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> FlowPaths:
    """Return the paths of a pass: head outputs, computed once per state, gathered along them.

    log F(s_t) = log max(ε, Q_hat(s_t)) + log V(s_t) before the leaf; at the leaf the search value alone.
    """
    log_pf = outputs.log_pi[batch.state, batch.action]
    if settings.state_value == "taken":
        log_value = outputs.log_value[batch.state, batch.action]
    else:
        log_value = policy_value(outputs.log_pi, outputs.log_value)[batch.state]
    log_value = F.pad(torch.where(batch.mask, log_value, 0.0), (0, 1))
    return FlowPaths(log_pf, batch.value.clamp(min=settings.flow_eps).log() + log_value, batch.mask)


def main_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings, pairs: RankPairs) -> Tensor:
    """Return the flow loss, or what stands in its place."""
    if settings.objective == "bc":
        return _cloning_sum(outputs, batch, settings) / batch.denominators.flow
    if settings.objective == "dpo":
        losses = preference(outputs.log_pi, log_reference(batch, settings))
        return _by_decision(losses, pairs, batch, settings) / batch.denominators.flow
    paths = gather_paths(outputs, batch, settings)
    if not settings.terminal_boundary:
        paths = FlowPaths(*without_terminal(*paths))
    if settings.weighting == "paths":
        per_path = objective(settings.objective, subtb_lambda=settings.subtb_lambda)
        return per_path(*paths).sum() / batch.denominators.flow
    first = batch.first_node if settings.state_value == "policy_mean" else batch.first_edge
    squares, _ = path_terms(settings.objective, subtb_lambda=settings.subtb_lambda)(potentials(*paths), paths.mask)
    return (squares * first[:, 1 : squares.shape[1] + 1]).sum() / batch.denominators.flow


def _cloning_sum(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return the summed −log π of the strategies taken, weighted by class if asked for."""
    losses = torch.where(batch.mask, -outputs.log_pi[batch.state, batch.action], 0.0)
    if settings.class_weights is not None:
        losses = losses * losses.new_tensor(settings.class_weights)[batch.action]
    return losses.sum()


def log_reference(batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return log π_ref of every state (S, A): the recorded prior (it made the data) or uniform."""
    if settings.kl_reference == "uniform":
        return torch.full_like(batch.prior, 1.0 / batch.prior.shape[1]).log()
    return batch.prior.log()


def _pairs(batch: FlowBatch, settings: FlowSettings) -> RankPairs:
    return rank_pairs(
        batch.child_value,
        batch.visited,
        batch.prior,
        batch.root_value,
        negatives=settings.rank_negatives,
        min_gap=settings.rank_min_gap,
    )


def _rank_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings, pairs: RankPairs) -> Tensor:
    losses = hinge(outputs.log_value.exp(), margin=settings.rank_margin)
    return _by_decision(losses, pairs, batch, settings) / batch.denominators.rank


def _by_decision(losses: Tensor, pairs: RankPairs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return the sum over paths of their mean decision, or over the update's distinct states."""
    if settings.weighting == "unique":
        return torch.where(batch.first_state, state_losses(losses, pairs, batch.visited), 0.0).sum()
    of_decisions = torch.where(batch.mask, decision_losses(losses, pairs, batch.state, batch.action), 0.0)
    return (of_decisions.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)).sum()


def _has_kl(settings: FlowSettings) -> bool:
    return settings.kl_weight > 0 and settings.kl_reference != "none"


def _kl_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    log_ref = log_reference(batch, settings)
    if settings.kl_form == "taken":
        taken = kl_taken(outputs.log_pi[batch.state, batch.action], log_ref[batch.state, batch.action], batch.mask)
        return taken.sum() / batch.denominators.kl
    of_states = kl_full(outputs.log_pi, log_ref)
    if settings.weighting == "unique":
        return torch.where(batch.first_state, of_states, 0.0).sum() / batch.denominators.kl
    of_decisions = torch.where(batch.mask, of_states[batch.state], 0.0)
    return (of_decisions.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)).sum() / batch.denominators.kl


def _response_term(outputs: FlowOutputs, batch: FlowBatch) -> Tensor:
    """Return the weighted negative log-likelihood of the supporter's words."""
    if outputs.target_log_p is None:
        raise ValueError("the rows hold no response targets")
    return -(outputs.target_log_p * batch.target_weight).sum() / batch.denominators.response


class _Monitored:
    """Sums over a pass, in order, and what they are divided by."""

    names = ("entropy", "states", "log_flow", "at_eps", "nodes", "tokens")

    def __len__(self) -> int:
        return len(self.names)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Return the values by name from summed up passes."""
        entropy, states, log_flow, at_eps, nodes, tokens = sums.tolist()
        return {
            "train/policy_entropy": entropy / max(states, 1.0),
            "train/log_flow_mean": log_flow / max(nodes, 1.0),
            "train/share_at_eps": at_eps / max(nodes, 1.0),
            "train/tokens": tokens,
        }


MONITORED = _Monitored()


@torch.no_grad()
def monitor(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return one pass's sums, see :data:`MONITORED`: entropy of π in nats, log F of all nodes of all paths, tokens."""
    log_pi = outputs.log_pi
    if not batch.n_paths:
        return log_pi.new_zeros(len(MONITORED))
    paths = gather_paths(outputs, batch, settings)
    nodes = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask], dim=1)
    return torch.stack(
        [
            -(log_pi.exp() * log_pi).sum(),
            log_pi.new_tensor(float(log_pi.shape[0])),
            torch.where(nodes, paths.log_flow, 0.0).sum(),
            (nodes & (batch.value <= settings.flow_eps)).sum().to(log_pi.dtype),
            nodes.sum().to(log_pi.dtype),
            log_pi.new_tensor(float(batch.rows.n_tokens)),
        ]
    )


Metrics = dict[str, float]


TERMS = ("loss", "flow", "rank", "kl", "resp")


class Updates(Dataset[list[FlowBatch]]):
    """Every optimiser step of a training, in order, as one process sees it.

    Args:
        chunks: Everything to learn from.
        encoding: How it becomes rows.
        settings: What is counted.
        epochs: How often everything is seen; each time in another order.
        paths_per_update: Chunks are taken until there are so many paths.
        seed: Fixes the orders.
        rank: This process.
        n_ranks: Number of processes.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        encoding: Encoding,
        settings: FlowSettings,
        *,
        epochs: int,
        paths_per_update: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._encoding, self._settings = encoding, settings
        self._rank, self._n_ranks = rank, n_ranks
        self._updates: list[list[Chunk]] = []
        self.epoch_ends: list[int] = []
        for epoch in range(epochs):
            order = list(chunks)
            random.Random(derive_seed(seed, "flow-updates", str(epoch))).shuffle(order)
            self._updates += _collect(order, paths_per_update)
            self.epoch_ends.append(len(self._updates))

    def __len__(self) -> int:
        """Return the number of optimiser steps."""
        return len(self._updates)

    def tree_ids(self, index: int) -> list[str]:
        """Return the ids of the trees in an optimiser step."""
        return [chunk.tree.id for chunk in self._updates[index]]

    def __getitem__(self, index: int) -> list[FlowBatch]:
        """Return the forward passes of an optimiser step."""
        # Rows of like length share a pass, so that little is padded.
        chunks = sorted(self._updates[index], key=lambda chunk: n_tokens([chunk], self._encoding))
        return make_update(chunks, self._encoding, self._settings, rank=self._rank, n_ranks=self._n_ranks)


def _collect(chunks: Sequence[Chunk], paths_per_update: int) -> list[list[Chunk]]:
    """Return the chunks in updates of at least so many paths; the last one takes what is left."""
    found: list[list[Chunk]] = []
    n_paths = paths_per_update
    for chunk in chunks:
        if n_paths >= paths_per_update:
            found.append([])
            n_paths = 0
        found[-1].append(chunk)
        n_paths += len(chunk.paths)
    return found


class FlowTrainer(Trainer):
    """The Trainer with our step.

    Args:
        model: The flow model.
        args: Its batch size and accumulation are 1: an item is an update.
        updates: The optimiser steps.
        settings: The loss.
        validate: Returns the values on valid, given the model as the Trainer wraps it; called on every process.
        head_lr: Learning rate of the two heads; None is that of the rest.
        callbacks: More of them.
    """

    def __init__(
        self,
        model: FlowModel,
        args: TrainingArguments,
        *,
        updates: Updates,
        settings: FlowSettings,
        validate: Callable[[nn.Module], Metrics],
        head_lr: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(model, args, train_dataset=updates, callbacks=list(callbacks))
        self._settings, self._validate, self._head_lr = settings, validate, head_lr
        self._sums: Tensor | None = None
        self._n_summed = 0

    def get_train_dataloader(self) -> DataLoader[list[FlowBatch]]:
        """Return the updates; they are shared out to the processes already."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)

    def training_step(
        self, model: nn.Module, inputs: Sequence[FlowBatch], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the forward and backward passes of one update and return its loss."""
        model.train()
        total = torch.zeros(len(TERMS) + len(MONITORED), device=self.args.device)
        for number, batch in enumerate(inputs):
            is_last = number == len(inputs) - 1
            # Gradients travel between processes once, after the last pass.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with nullcontext() if is_last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                here = batch.to(self.args.device)
                with self.compute_loss_context_manager():
                    outputs = model(here.rows)
                    terms = flow_loss(outputs, here, self._settings)
                # Data parallelism averages over processes; the denominators are those of all of them together.
                self.accelerator.backward(terms["loss"] * self.args.world_size)
            total += torch.cat([_stacked(terms), monitor(outputs, here, self._settings)]).detach()
        total = self.accelerator.reduce(total)
        self._sums = total if self._sums is None else self._sums + total
        self._n_summed += 1
        return total[0].detach()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "valid"
    ) -> Metrics:
        """Return and log the values on valid."""
        self.model_wrapped.eval()
        with torch.no_grad():
            metrics = self._validate(self.model_wrapped)
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms of the loss in place of the Trainer's own."""
        if "learning_rate" in logs and self._sums is not None:
            norm = {"train/grad_norm": logs["grad_norm"]} if "grad_norm" in logs else {}
            logs = {**_means(self._sums, self._n_summed), **norm, "train/lr": logs["learning_rate"]}
            self._sums, self._n_summed = None, 0
        super().log(logs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimiser, with a learning rate of its own for the heads if one is set."""
        if self._head_lr is None:
            return super().create_optimizer(model)
        trained = self.model if model is None else model
        named = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
        decaying = set(self.get_decay_parameter_names(trained))
        groups = [
            {
                "params": [p for name, p in named if (_is_head(name), name in decaying) == (head, decays)],
                "lr": self._head_lr if head else self.args.learning_rate,
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for head in (False, True)
            for decays in (False, True)
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        self.optimizer: torch.optim.Optimizer = kind(groups, **options)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write what is trained, not the frozen rest of the backbone; loading takes what it finds."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        kept = {name: tensor.contiguous() for name, tensor in state.items() if name in trained}
        save_file(kept, str(folder / "model.safetensors"), metadata={"format": "pt"})
        torch.save(self.args, str(folder / "training_args.bin"))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say nothing: the frozen rest of the backbone is missing on purpose."""


def _only(items: list[list[FlowBatch]]) -> list[FlowBatch]:
    (item,) = items
    return item


def _is_head(name: str) -> bool:
    return "strategy_head." in name or "flow_head." in name


def _stacked(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([terms[name].detach().float() for name in TERMS])


def _means(sums: Tensor, n_updates: int) -> Metrics:
    """Return the monitored values by name, averaged over updates."""
    terms, monitored = sums[: len(TERMS)] / n_updates, sums[len(TERMS) :]
    found = {f"train/{name}": value for name, value in zip(TERMS, terms.tolist(), strict=True)}
    return found | MONITORED.means(monitored)


@torch.no_grad()
def confusions(model: nn.Module, passes: Sequence[FlowBatch], offsets: Tensor, device: torch.device) -> Tensor:
    """Return how often each strategy was chosen (rows) where another one was taken (columns): (O, A, A).

    Args:
        model: The model in eval mode.
        passes: Forward passes over labelled decisions.
        offsets: What is added to log π before the argmax, one row for each way of choosing (O, A).
        device: Where to compute.
    """
    n_ways, n_strategies = offsets.shape
    counts = torch.zeros(n_ways, n_strategies, n_strategies, dtype=torch.long, device=device)
    for one in passes:
        batch = one.to(device)
        outputs: FlowOutputs = model(batch.rows)
        chosen = (outputs.log_pi.unsqueeze(0) + offsets.to(device).unsqueeze(1)).argmax(dim=2)
        taken = batch.action[batch.mask]
        for way in range(n_ways):
            cells = chosen[way][batch.state[batch.mask]] * n_strategies + taken
            counts[way] += torch.bincount(cells, minlength=n_strategies**2).view(n_strategies, n_strategies)
    return counts


log = logging.getLogger(__name__)


LOW_ENTROPY = 0.3
"""Nats of π below which training warns: eight equal strategies have 2.08, two have 0.69."""


class Keep(TrainerCallback):
    """Hands the model over after every evaluation that is better than all before; equals keep the earlier.

    Args:
        key: Name of the deciding value; None hands it over after every evaluation.
        greater_is_better: Its direction.
        keep: Called on every process with step and values.
    """

    def __init__(self, key: str | None, *, greater_is_better: bool, keep: Callable[[int, Metrics], None]) -> None:
        self._key, self._sign, self._keep = key, 1.0 if greater_is_better else -1.0, keep

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Metrics, **_: Any
    ) -> None:
        """Compare and keep."""
        value = metrics[self._key] if self._key is not None else float(state.global_step)
        if not math.isfinite(value):
            raise TrainingError(
                f"{self._key} is {value} after update {state.global_step}", hint="A lower optim.lr may help"
            )
        sign = self._sign if self._key is not None else 1.0
        if state.best_metric is None or sign * value > sign * state.best_metric:
            # In the Trainer's own state, so that a resumed training knows it.
            state.best_metric, state.best_global_step = value, state.global_step
            self._keep(state.global_step, metrics)


class Rows(TrainerCallback):
    """Writes what is logged to ``metrics.jsonl``; only in the process that writes.

    Args:
        metrics: The open file.
        epoch_ends: Number of updates at the end of each epoch.
        tokens: Token counts per epoch, written with its last update.
    """

    def __init__(self, metrics: JsonlAppender, epoch_ends: Sequence[int], tokens: Mapping[str, int]) -> None:
        self._metrics, self._ends, self._tokens = metrics, epoch_ends, tokens
        self._warned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Metrics, **_: Any) -> None:
        """Write a row."""
        values = {name: value for name, value in logs.items() if "/" in name}
        if not values:
            return
        epoch = 1 + sum(end < state.global_step for end in self._ends)
        if "train/loss" in values and state.global_step in self._ends:
            values |= {f"tokens/{name}": count for name, count in self._tokens.items()}
        self._metrics.append({"update": state.global_step, "epoch": epoch, **finite_or_none(values)})
        entropy = values.get("train/policy_entropy", math.inf)
        if entropy < LOW_ENTROPY and not self._warned:
            self._warned = True
            log.warning(
                "the policy's entropy is %.2f nats at update %d: it is close to always choosing the same",
                entropy,
                state.global_step,
            )


SELECTS = "valid/loss"


class FlowValidation:
    """The terms of the loss on all valid trees at once, and how often the policy takes the best known strategy.

    Args:
        passes: Forward passes of this process over all valid trees, as one update.
        settings: The loss; ``valid/loss`` is its flow and ranking terms, without the pull to the reference.
        device: Where to compute.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        passes: Sequence[FlowBatch],
        settings: FlowSettings,
        *,
        device: torch.device,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._passes, self._settings, self._device, self._reduce = passes, settings, device, reduce

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Metrics:
        """Return the values of a model in eval mode, given as the Trainer wraps it."""
        sums = torch.zeros(len(TERMS) + 4, device=self._device)
        for batch in self._passes:
            here = batch.to(self._device)
            outputs = model(here.rows)
            terms = flow_loss(outputs, here, self._settings)
            sums += torch.stack([*(terms[name].float() for name in TERMS), *best_actions(outputs, here)])
        *found, n_right, n_compared, entropy, n_states = self._reduce(sums).tolist()
        values = dict(zip(TERMS, found, strict=True))
        metrics = {f"valid/{name}": values[name] for name in ("flow", "rank", "kl")}
        metrics[SELECTS] = values["flow"] + self._settings.rank_weight * values["rank"]
        metrics["valid/policy_entropy"] = entropy / n_states
        if n_compared:
            metrics["valid/best_action"] = n_right / n_compared
        return metrics


def best_actions(outputs: FlowOutputs, batch: FlowBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how often the policy decides for a child of highest search value, out of how many states, and its entropy.

    The decision is argmax(log π + V) over all strategies; states with at least two visited children are compared. The
    last two values are the summed entropy of π in nats and the number of states. Every state of the update counts once.
    """
    first = batch.first_state
    compared = first & (batch.visited.sum(dim=1) >= 2)
    chosen = (outputs.log_pi + outputs.log_value.exp()).argmax(dim=1, keepdim=True)
    known = torch.where(batch.visited, batch.child_value, -torch.inf)
    right = known.gather(1, chosen).squeeze(1) == known.max(dim=1).values
    entropy = -(outputs.log_pi.exp() * outputs.log_pi).sum(dim=1)
    return (
        (right & compared).sum().float(),
        compared.sum().float(),
        torch.where(first, entropy, 0.0).sum(),
        first.sum().float(),
    )
