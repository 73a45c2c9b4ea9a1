"""Flow training on the Hugging Face Trainer: only the batches and the loss are ours.

One item of the data loader is one optimiser step: all forward passes of one process, which carry what the losses divide
by (:mod:`esckit.train.flow_batch`). So the update is the same whatever the number of processes and the size of the
passes, and accelerate, DeepSpeed, FSDP, mixed precision, checkpoints and trackers come with the Trainer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from esckit.ledger import derive_seed
from esckit.models.flow_model import FlowModel, FlowOutputs
from esckit.train.flow_batch import FlowBatch, FlowSettings, make_update
from esckit.train.flow_loss import flow_loss
from esckit.train.flow_monitor import MONITORED, monitor
from esckit.train.packing import Chunk, Encoding, n_tokens

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
