"""Flow training (AFlow, arXiv 2602.08826) on the Hugging Face Trainer: only the batches and the loss are ours.

L = L_flow + w_rank · L_rank + β · KL + w_resp · L_resp. Every term is a sum over a forward pass divided by the
denominators of the whole update, so the passes of an update add up to its loss (:func:`flow_loss`).

One item of the data loader is one optimiser step: all forward passes of one process, which carry what the losses divide
by (:mod:`esckit.flow.batch`). So the update is the same whatever the number of processes and the size of the passes,
and accelerate, DeepSpeed, FSDP, mixed precision, checkpoints and trackers come with the Trainer (:class:`FlowTrainer`).

Validation reads trees from seed dialogues that training never saw (:class:`TreeValidation`), or gold strategies of a
corpus (:class:`GoldValidation`). Not here: the objectives themselves (:mod:`esckit.flow.objectives`), and the run
(:mod:`esckit.flow.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from esckit.flow.batch import FlowBatch, LossTerms, Updates, first_ends
from esckit.flow.model import FlowModel, FlowOutputs, check_exact
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
from esckit.metrics.confusion import accuracy, f1_by_class, macro_f1, weighted_f1
from esckit.models.packing import FLEX_BLOCK
from esckit.training.averaging import WeightAverage
from esckit.training.harness import in_order

Metrics = dict[str, float]

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over processes."""

TERMS = ("loss", "flow", "rank", "kl", "resp")

MONITORED = ("entropy", "states", "log_flow", "at_eps", "nodes", "tokens")

# ---------------------------------------------------------------- the loss


def flow_loss(outputs: FlowOutputs, batch: FlowBatch, terms: LossTerms) -> dict[str, Tensor]:
    """Return the terms of the loss and their weighted sum, each divided by the update's denominator.

    Returns:
        Scalars ``loss``, ``flow``, ``rank``, ``kl`` and ``resp``. With ``dpo`` or ``bc`` the term ``flow`` is theirs.
    """
    nothing = outputs.log_pi.new_zeros(())
    has_kl = terms.kl.weight > 0 and terms.kl.reference != "none"
    found = {
        "flow": _flow_term(outputs, batch, terms),
        "rank": nothing,
        "kl": _kl_term(outputs, batch, terms) if has_kl else nothing,
        "resp": nothing,
    }
    if terms.response_weight > 0:  # the weighted negative log-likelihood of the supporter's words
        if outputs.target_log_p is None:
            raise ValueError("the rows hold no response targets")
        found["resp"] = -(outputs.target_log_p * batch.target_weight).sum() / batch.denominators.response
    if terms.rank.weight > 0:
        losses = hinge(outputs.log_value.exp(), margin=terms.rank.margin)
        found["rank"] = _sum_of_pairs(losses, batch, terms) / batch.denominators.rank
    loss = (
        found["flow"]
        + terms.rank.weight * found["rank"]
        + terms.kl.weight * found["kl"]
        + terms.response_weight * found["resp"]
        # Heads without any term still take part in the graph: data-parallel training waits for their gradients.
        + 0.0 * (outputs.log_pi.sum() + outputs.log_value.sum())
    )
    return {"loss": loss, **found}


def gather_paths(outputs: FlowOutputs, batch: FlowBatch, terms: LossTerms) -> tuple[Tensor, Tensor, Tensor]:
    """Return what objectives take: log_pf (P, T), log_flow (P, T+1) and mask (P, T).

    Head outputs are computed once per state and gathered along the paths.

    log F(s_t) = log max(ε, Q_hat(s_t)) + log V(s_t) before the leaf; at the leaf the search value alone. Under the
    measure ``prior`` log_pf is log π − log π_ref, with the recorded prior as π_ref (relative trajectory balance, arXiv
    2405.20971): F is then a mean over what the prior would do. A sum grows by a factor of |A| with every turn, while
    leaves lie at all depths of a search tree, so that under ``counting`` no V fits all paths.
    """
    log_pf = outputs.log_pi[batch.state, batch.action]
    if terms.objective.measure == "prior":
        log_pf = log_pf - batch.prior.log()[batch.state, batch.action]
    if terms.objective.state_value == "taken":
        log_value = outputs.log_value[batch.state, batch.action]
    else:
        log_value = policy_value(outputs.log_pi, outputs.log_value)[batch.state]
    log_value = F.pad(torch.where(batch.mask, log_value, 0.0), (0, 1))
    return log_pf, batch.value.clamp(min=terms.objective.flow_eps).log() + log_value, batch.mask


def _flow_term(outputs: FlowOutputs, batch: FlowBatch, terms: LossTerms) -> Tensor:
    """Return the flow loss, or what stands in its place."""
    wanted = terms.objective
    if wanted.name == "bc":
        losses = torch.where(batch.mask, -outputs.log_pi[batch.state, batch.action], 0.0)
        if terms.class_weights is not None:
            losses = losses * losses.new_tensor(terms.class_weights)[batch.action]
        return losses.sum() / batch.denominators.flow
    if wanted.name == "dpo":
        losses = preference(outputs.log_pi, _log_reference(batch, terms))
        return _sum_of_pairs(losses, batch, terms) / batch.denominators.flow
    paths = gather_paths(outputs, batch, terms)
    if not wanted.terminal_boundary:
        paths = without_terminal(*paths)
    if wanted.weighting == "paths":
        losses = objective(wanted.name, subtb_lambda=wanted.subtb_lambda)(*paths)
    else:
        squares, _ = path_terms(wanted.name, subtb_lambda=wanted.subtb_lambda)(potentials(*paths), paths[2])
        first = {"first_node": batch.first_node, "first_edge": batch.first_edge}[first_ends(wanted)]
        losses = squares * first[:, 1 : squares.shape[1] + 1]
    return losses.sum() / batch.denominators.flow


def _kl_term(outputs: FlowOutputs, batch: FlowBatch, terms: LossTerms) -> Tensor:
    log_ref = _log_reference(batch, terms)
    if terms.kl.form == "taken":
        taken = kl_taken(outputs.log_pi[batch.state, batch.action], log_ref[batch.state, batch.action], batch.mask)
        return taken.sum() / batch.denominators.kl
    of_states = kl_full(outputs.log_pi, log_ref)
    return _sum_over(of_states, of_states[batch.state], batch, terms) / batch.denominators.kl


def _log_reference(batch: FlowBatch, terms: LossTerms) -> Tensor:
    """Return log π_ref of every state (S, A): the recorded prior (it made the data) or uniform."""
    if terms.kl.reference == "uniform":
        return torch.full_like(batch.prior, 1.0 / batch.prior.shape[1]).log()
    return batch.prior.log()


def _sum_of_pairs(losses: Tensor, batch: FlowBatch, terms: LossTerms) -> Tensor:
    """Return the sum of pair losses (S, A, A), see :func:`_sum_over`."""
    pairs: RankPairs = rank_pairs(
        batch.child_value,
        batch.visited,
        batch.prior,
        batch.root_value,
        negatives=terms.rank.negatives,
        min_gap=terms.rank.min_gap,
    )
    of_states = state_losses(losses, pairs, batch.visited)
    return _sum_over(of_states, decision_losses(losses, pairs, batch.state, batch.action), batch, terms)


def _sum_over(of_states: Tensor, of_decisions: Tensor, batch: FlowBatch, terms: LossTerms) -> Tensor:
    """Return the sum over the update's distinct states (S,), or over paths of their mean decision (P, T)."""
    if terms.objective.weighting == "unique":
        return torch.where(batch.first_state, of_states, 0.0).sum()
    return (torch.where(batch.mask, of_decisions, 0.0).sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)).sum()


@torch.no_grad()
def monitor(outputs: FlowOutputs, batch: FlowBatch, terms: LossTerms) -> Tensor:
    """Return one pass's sums, see :data:`MONITORED`: entropy of π in nats, log F of all nodes of all paths, tokens."""
    log_pi = outputs.log_pi
    if not batch.mask.shape[0]:
        return log_pi.new_zeros(len(MONITORED))
    _, log_flow, _ = gather_paths(outputs, batch, terms)
    nodes = F.pad(batch.mask, (1, 0), value=True)
    return torch.stack(
        [
            -(log_pi.exp() * log_pi).sum(),
            log_pi.new_tensor(float(log_pi.shape[0])),
            torch.where(nodes, log_flow, 0.0).sum(),
            (nodes & (batch.value <= terms.objective.flow_eps)).sum().to(log_pi.dtype),
            nodes.sum().to(log_pi.dtype),
            log_pi.new_tensor(float(batch.rows.n_tokens)),
        ]
    )


# ---------------------------------------------------------------- validation


class TreeValidation:
    """The terms of the loss on all valid trees at once, and how often the policy takes the best known strategy.

    Args:
        passes: Forward passes of this process over all valid trees, as one update; none measures nothing.
        terms: The loss; ``valid/loss`` is its flow and ranking terms, without the pull to the reference.
    """

    key: ClassVar[str] = "valid/loss"
    greater_is_better: ClassVar[bool] = False

    def __init__(self, passes: Sequence[FlowBatch], terms: LossTerms) -> None:
        self._passes, self._terms = passes, terms

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device, reduce: Reduce) -> Metrics:
        """Return the values of a model in eval mode, given as the Trainer wraps it."""
        if not self._passes:
            return {}
        sums = torch.zeros(len(TERMS) + 4, device=device)
        for batch in self._passes:
            here = batch.to(device)
            outputs = model(here.rows)
            terms = flow_loss(outputs, here, self._terms)
            sums += torch.stack([*(terms[name].float() for name in TERMS), *best_actions(outputs, here)])
        *found, n_right, n_compared, entropy, n_states = reduce(sums).tolist()
        values = dict(zip(TERMS, found, strict=True))
        metrics = {f"valid/{name}": values[name] for name in ("flow", "rank", "kl")}
        metrics[self.key] = values["flow"] + self._terms.rank.weight * values["rank"]
        metrics["valid/policy_entropy"] = entropy / n_states
        if n_compared:
            metrics["valid/best_action"] = n_right / n_compared
        return metrics

    def offset(self, metrics: Mapping[str, Any]) -> None:
        """Nothing is added to the strategy head's bias."""


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


class GoldValidation:
    """How well the policy predicts the gold strategies of a corpus, and how far its logits move towards rare ones.

    Args:
        passes: Forward passes of this process over the valid part.
        taus: Values of τ to try; −τ·log(share in training) is added to the logits.
        train_counts: How often each strategy occurs in training (A,); one imaginary decision is added to each.
    """

    key: ClassVar[str] = "valid/macro_f1"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, passes: Sequence[FlowBatch], *, taus: Sequence[float], train_counts: Sequence[int]) -> None:
        self._passes, self._taus = passes, tuple(taus)
        smoothed = torch.tensor(train_counts, dtype=torch.float32) + 1.0
        self._offsets = -torch.tensor(self._taus).unsqueeze(1) * (smoothed / smoothed.sum()).log()

    def __call__(self, model: nn.Module, device: torch.device, reduce: Reduce) -> Metrics:
        """Return the scores at the τ of the best macro-F1, the smallest of equals, and macro-F1 and accuracy of all."""
        counts = reduce(confusions(model, self._passes, self._offsets, device)).cpu().numpy()
        found = [_scores(matrix) for matrix in counts]
        best = max(range(len(found)), key=lambda way: (found[way]["macro_f1"], -abs(self._taus[way])))
        metrics = {f"valid/{name}": value for name, value in found[best].items()}
        metrics["valid/tau"] = self._taus[best]
        for tau, values in zip(self._taus, found, strict=True):
            metrics |= {f"valid/{name}@{tau:g}": value for name, value in values.items()}
        return metrics

    def offset(self, metrics: Mapping[str, Any]) -> Tensor:
        """Return what to add to the strategy head's bias (A,), for the τ that was chosen."""
        return self._offsets[self._taus.index(metrics["valid/tau"])]


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


def test_report(confusion: Tensor, strategies: Sequence[str], train_counts: Sequence[int]) -> dict[str, Any]:
    """Return the scores on test, by class, and beside guessing.

    Args:
        confusion: Predicted rows, gold columns (A, A).
        strategies: The taxonomy in order.
        train_counts: How often each strategy occurs in training, from which guesses are made.
    """
    matrix = confusion.double().cpu().numpy()
    gold = matrix.sum(axis=0)
    majority = np.zeros_like(matrix)
    majority[int(np.argmax(train_counts))] = gold
    shares = np.asarray(train_counts, dtype=np.float64) / sum(train_counts)
    by_class = f1_by_class(matrix[None])[0]
    return {
        "n": int(gold.sum()),
        **_scores(matrix),
        "by_class": {
            name: {
                "f1": None if np.isnan(by_class[index]) else float(by_class[index]),
                "gold": int(gold[index]),
                "predicted": int(matrix[index].sum()),
                "right": int(matrix[index, index]),
            }
            for index, name in enumerate(strategies)
        },
        "majority": _scores(majority),
        # In expectation over guesses drawn with the frequencies of training.
        "frequency_guessing": _scores(shares[:, None] * gold[None, :]),
        "confusion": {"predicted_rows_gold_columns": matrix.astype(int).tolist()},
    }


def _scores(confusion: Any) -> Metrics:
    """Return accuracy, macro-F1 and weighted F1, in [0, 1], of a matrix of predicted rows and gold columns."""
    matrix = np.asarray(confusion, dtype=np.float64)[None]
    kinds = {"accuracy": accuracy, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
    return {name: float(score(matrix)[0]) for name, score in kinds.items()}


# ---------------------------------------------------------------- the Trainer


class FlexCheck(TrainerCallback):
    """Checks FlexAttention on its device before the first update (:func:`check_exact`), over several of its blocks.

    Args:
        trainer: Returns the trainer; every process takes part with the model as it is wrapped.
    """

    def __init__(self, trainer: Callable[[], Trainer]) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Compare a tree with its paths.

        Raises:
            ConfigError: If their hidden states differ.
        """
        check_exact(self._trainer().model_wrapped, node_tokens=FLEX_BLOCK - 28)


class FlowTrainer(Trainer):
    """The Trainer with our step.

    Args:
        model: The flow model.
        args: Its batch size and accumulation are 1: an item is an update.
        updates: The optimiser steps.
        terms: The loss.
        validation: Measures the model as the Trainer wraps it, on every process.
        head_lr: Learning rate of the two heads; None is that of the rest.
        average_from: What is measured and kept is the mean of the weights after this share of the updates; None keeps
            the last weights.
        callbacks: More of them.
    """

    def __init__(
        self,
        model: FlowModel,
        args: TrainingArguments,
        *,
        updates: Updates,
        terms: LossTerms,
        validation: TreeValidation | GoldValidation,
        head_lr: float | None = None,
        average_from: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(model, args, train_dataset=updates, callbacks=list(callbacks))
        self._terms, self._validation, self._head_lr = terms, validation, head_lr
        self.average = WeightAverage(lambda: self.model, average_from)
        self.add_callback(self.average)
        if model.attention == "flex":
            self.add_callback(FlexCheck(lambda: self))
        self._sums: Tensor | None = None
        self._n_summed = 0

    def get_train_dataloader(self) -> DataLoader[list[FlowBatch]]:
        """Return the updates; they are shared out to the processes already."""
        return in_order(self.train_dataset)

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
                    found = flow_loss(outputs, here, self._terms)
                # Data parallelism averages over processes; the denominators are those of all of them together.
                self.accelerator.backward(found["loss"] * self.args.world_size)
            losses = torch.stack([found[name].detach().float() for name in TERMS])
            total += torch.cat([losses, monitor(outputs, here, self._terms)]).detach()
        total = self.accelerator.reduce(total)
        self._sums = total if self._sums is None else self._sums + total
        self._n_summed += 1
        return total[0].detach()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "valid"
    ) -> Metrics:
        """Return and log the values on valid; callbacks find the weights that were measured."""
        self.model_wrapped.eval()
        with self.average.in_place():
            with torch.no_grad():
                metrics = self._validation(self.model_wrapped, self.args.device, self.accelerator.reduce)
            self.log(dict(metrics))
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms of the loss, averaged over the updates since the last log, in place of the Trainer's own."""
        if "learning_rate" in logs and self._sums is not None:
            sums = dict(zip((*TERMS, *MONITORED), self._sums.tolist(), strict=True))
            n_nodes = max(sums["nodes"], 1.0)
            found = {f"train/{name}": sums[name] / self._n_summed for name in TERMS} | {
                "train/policy_entropy": sums["entropy"] / max(sums["states"], 1.0),
                "train/log_flow_mean": sums["log_flow"] / n_nodes,
                "train/share_at_eps": sums["at_eps"] / n_nodes,
                "train/tokens": sums["tokens"],
            }
            if "grad_norm" in logs:
                found["train/grad_norm"] = logs["grad_norm"]
            logs = {**found, "train/lr": logs["learning_rate"]}
            self._sums, self._n_summed = None, 0
        super().log(logs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimiser, with a learning rate of its own for the heads if one is set."""
        if self._head_lr is None:
            return super().create_optimizer(model)
        trained = self.model if model is None else model
        named = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
        decaying = set(self.get_decay_parameter_names(trained))
        heads = {name for name, _ in named if "strategy_head." in name or "flow_head." in name}
        groups = [
            {
                "params": [p for name, p in named if (name in heads, name in decaying) == (head, decays)],
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

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the mean of the weights, too; what a state is made of is there before the Trainer's own file."""
        super()._save_optimizer_and_scheduler(output_dir)
        self.average.save(Path(output_dir), writes=self.accelerator.is_main_process)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.average.load(Path(checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say nothing: the frozen rest of the backbone is missing on purpose."""
