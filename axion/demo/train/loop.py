"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from axion.demo.train.card import Training
from axion.demo.train.checkpoint import save_checkpoint
from axion.demo.train.data import TOKENS_PER_STEP, Batches, Rows, train_tokenizer
from axion.demo.train.network import Network, NetworkConfig

CORES = 2

_WARMUP_STEPS = 60
_STEPS_BEFORE_TIMING, _TIMED_STEPS = 3, 20
_MUON_RATE = 4e-3
_ADAMW_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_LARGEST_GRADIENT = 1.0
_LOSS_SMOOTHING = 0.98
_STEPS_PER_LINE = 50  # where the output is a file and shows no progress bar


def train(folder: Path, steps: int, minutes: float | None, seed: int) -> Training:
    """Trains a model and writes it to a folder.

    Args:
        folder: Where the model goes.
        steps: How many steps to train for.
        minutes: If given, the number of steps is chosen to take about this long instead.
        seed: The same seed gives the same data, the same initial weights and the same schedule.
    """
    torch.manual_seed(seed)
    config = NetworkConfig()
    tokenizer = train_tokenizer(seed, config.vocab_size)
    batches = Batches(tokenizer, seed)
    network = Network(config)
    trainer = Trainer(network)

    started = time.perf_counter()
    timed_from = started
    smoothed = math.nan
    with _progress() as progress:
        task = progress.add_task("training", total=steps, loss=math.nan, speed=0.0)
        step = 0
        while step < steps:
            loss = trainer.step(batches[step], learning_rate_share(step, steps))
            step += 1

            smoothed = smoothed if smoothed == smoothed else loss
            smoothed += (loss - smoothed) * (1 - _LOSS_SMOOTHING)
            now = time.perf_counter()
            if step == _STEPS_BEFORE_TIMING:
                timed_from = now
            if minutes is not None and step == _STEPS_BEFORE_TIMING + _TIMED_STEPS:
                steps = max(step + 1, round(minutes * 60 * _TIMED_STEPS / (now - timed_from)))
            speed = step * TOKENS_PER_STEP / (now - started)
            progress.update(task, completed=step, total=steps, loss=smoothed, speed=speed)
            if step % _STEPS_PER_LINE == 0 and not progress.console.is_terminal:
                line = f"step {step}/{steps}  loss {smoothed:.4f}  {speed:,.0f} tokens/s"
                progress.console.print(line, highlight=False)
    save_checkpoint(network, tokenizer, folder)
    return Training(
        steps=steps,
        tokens=steps * TOKENS_PER_STEP,
        minutes=(time.perf_counter() - started) / 60,
        loss=smoothed,
        seed=seed,
        parameters=sum(p.numel() for p in network.parameters()),
    )


def learning_rate_share(step: int, steps: int) -> float:
    """The share of the full learning rate: a short warm-up, then straight down to zero."""
    return min((step + 1) / _WARMUP_STEPS, 1.0) * (1 - step / steps)


class Trainer:
    """Trains a network, its work cut in parts that each keep one core busy.

    A core that another program slows down takes fewer parts, where threads that share every
    operation would all wait for it. Gradients are added up in order, so that the result does not
    depend on which core was faster.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parameters = list(network.parameters())
        self._optimizers = _optimizers(network)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self._pool = ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,))

    def step(self, rows: Sequence[Rows], rate_share: float) -> float:
        """Learns from the rows at a share of the full learning rates and returns their loss."""
        loss = self.add_gradients(rows)
        torch.nn.utils.clip_grad_norm_(self._parameters, _LARGEST_GRADIENT)
        list(self._pool.map(partial(self._update, rate_share), self._optimizers, self._rates))
        return loss

    def add_gradients(self, rows: Sequence[Rows]) -> float:
        """Adds the gradients of the rows and returns their mean loss over the labelled tokens."""
        labelled = sum(part.labelled for part in rows)
        shares = [part.labelled / labelled for part in rows]
        mean = 0.0
        for loss, gradients in self._pool.map(self._part, rows, shares):
            mean += loss
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return mean

    def _part(self, rows: Rows, share: float) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = share * self._network(rows.tokens, rows.documents, rows.labels)
        return loss.item(), torch.autograd.grad(loss, self._parameters)

    @staticmethod
    def _update(share: float, optimizer: torch.optim.Optimizer, rate: float) -> None:
        optimizer.param_groups[0]["lr"] = rate * share
        optimizer.step()
        optimizer.zero_grad()


def _optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of each layer, AdamW for the embedding and the norms."""
    others = [p for name, p in network.named_parameters() if "proj" not in name]
    adamw = torch.optim.AdamW(others, lr=_ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    muons = [
        torch.optim.Muon(
            [p for p in layer.parameters() if p.ndim == 2],
            lr=_MUON_RATE,
            weight_decay=_WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        for layer in network.layers
    ]
    return [*muons, adamw]


def _progress() -> Progress:
    return Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=1,
    )
