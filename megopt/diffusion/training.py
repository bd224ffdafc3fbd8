"""One training loop for every bundled model: seeded, annealed to zero, and exact across a stop and a resume.

    learning rate(p) = base * min(1, (step + 1) / warmup_steps) * (1 + cos(pi p)) / 2
    average <- d average + (1 - d) weights,  d = min(ema_decay, (1 + step) / (10 + step))

p is the share of the run that is done: steps over `num_steps`, or seconds over `budget_s`. Batches and noise are
functions of the seed and the step alone, so a checkpoint needs no generator state: step s of a resumed run draws what
step s of an unbroken run draws.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.diffusion.training_run import (
    CHECKPOINT_FILE,
    LOG_FILE,
    Run,
    begin,
    forget_later_lines,
    log,
    restore,
    save,
)
from megopt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A finished run.

    Attributes:
        network: with averaged weights, in evaluation mode, on the CPU.
        num_steps: steps done.
        seconds: wall-clock time of all steps.
        metrics: of the last evaluation.
        settings: what it was trained with.
    """

    network: nn.Module
    num_steps: int
    seconds: float
    metrics: dict[str, float]
    settings: TrainingSettings


def train(
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
    is_resumed: bool = True,
    shows_progress: bool = True,
) -> Trained:
    """Train to the end of the run, from the checkpoint in `folder` if there is one, on one thread.

    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint.

    Args:
        objective: what to train.
        settings: how.
        folder: for the checkpoint and the log.
        initial: weights to begin with instead of random ones, by name.
        is_resumed: whether to go on from a checkpoint; False begins anew.
        shows_progress: whether to show a bar.

    Raises:
        ConfigError: if the checkpoint is of other settings, or `initial` of another network.
        PipelineError: if the checkpoint cannot be read.
        KeyboardInterrupt: after a signal.
    """
    torch.set_num_threads(1)  # with two threads, barriers collapse as soon as another process is busy
    run = begin(objective, settings, initial)
    if is_resumed and (folder / CHECKPOINT_FILE).is_file():
        restore(run, objective, settings, folder / CHECKPOINT_FILE)
        forget_later_lines(folder / LOG_FILE, run.step)
    else:
        (folder / LOG_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.is_compiled:
        run.network.compile(dynamic=False)  # one kernel per latent size is faster than one for all of them
    _steps(run, objective, settings, folder, shows_progress=shows_progress)
    metrics = objective.evaluate(run.averaged())
    log(folder, run, {"evaluation": metrics})
    network = run.averaged().to("cpu")
    return Trained(network=network, num_steps=run.step, seconds=run.elapsed_s, metrics=metrics, settings=settings)


def _steps(run: Run, objective: Objective, settings: TrainingSettings, folder: Path, *, shows_progress: bool) -> None:
    """Do the steps that are left; leave a checkpoint at the end."""
    order = _Order(settings, objective.num_samples)
    saved_s = evaluated_s = run.elapsed_s
    with _stop_requests() as stops, _bar(run, settings, folder, shows_progress=shows_progress) as bar:
        while (progress := _progress(run, settings)) < 1.0 and not stops:
            begun = time.perf_counter()
            _step(run, objective, settings, order.rows(run.step), progress)
            run.elapsed_s += time.perf_counter() - begun
            _advance_bar(bar, run, settings)
            if run.step % settings.log_every == 0:
                log(folder, run, {"learning_rate": run.optimizers[-1].param_groups[0]["lr"]})
            if run.elapsed_s - evaluated_s >= settings.evaluate_every_s:
                evaluated_s = run.elapsed_s
                log(folder, run, {"evaluation": objective.evaluate(run.averaged())})
            if run.elapsed_s - saved_s >= settings.checkpoint_every_s:
                saved_s = run.elapsed_s
                save(run, objective, settings, folder / CHECKPOINT_FILE)
    save(run, objective, settings, folder / CHECKPOINT_FILE)
    if stops:
        raise KeyboardInterrupt


def _progress(run: Run, settings: TrainingSettings) -> float:
    if settings.num_steps is not None:
        return run.step / settings.num_steps
    assert settings.budget_s is not None
    return run.elapsed_s / settings.budget_s


def _step(run: Run, objective: Objective, settings: TrainingSettings, rows: torch.Tensor, progress: float) -> None:
    """Do one step."""
    warmup = min(1.0, (run.step + 1) / settings.warmup_steps)
    factor = warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["initial_lr"]
    rng = torch.Generator().manual_seed(_seed_of(settings.seed, run.step))
    with torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16, enabled=settings.uses_bf16):
        loss = objective.loss(run.network, rows, rng, progress)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.parameters(), settings.clip_norm)
    for optimizer in run.optimizers:
        optimizer.step()
    decay = min(settings.ema_decay, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        for mean, weight in zip(run.average, run.parameters(), strict=True):
            mean.lerp_(weight, 1.0 - decay)
    run.step += 1
    run.losses.append(float(loss.detach()))


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Order:
    """The order of the data: a new permutation in every pass, a function of seed and step."""

    def __init__(self, settings: TrainingSettings, num_samples: int) -> None:
        if num_samples < settings.batch_size:
            message = f"training: {num_samples} samples for batches of {settings.batch_size}; expected at least a batch"
            raise ConfigError(message)
        self._seed, self._batch_size = settings.seed, settings.batch_size
        self._num_samples, self._num_batches = num_samples, num_samples // settings.batch_size
        self._epoch, self._permutation = -1, np.arange(0)

    def rows(self, step: int) -> torch.Tensor:
        epoch, batch = divmod(step, self._num_batches)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(self._num_samples)
        return torch.from_numpy(self._permutation[batch * self._batch_size : (batch + 1) * self._batch_size])


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, lambda caught, _: received.append(caught))
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bar(run: Run, settings: TrainingSettings, folder: Path, *, shows_progress: bool) -> tqdm[Any]:
    is_timed = settings.num_steps is None
    return tqdm(
        total=round(settings.budget_s or 0) if is_timed else settings.num_steps,
        initial=int(run.elapsed_s) if is_timed else run.step,
        desc=f"train {folder.name}",
        unit="s" if is_timed else "step",
        disable=not shows_progress,
        mininterval=2.0,
    )


def _advance_bar(bar: tqdm[Any], run: Run, settings: TrainingSettings) -> None:
    done = int(run.elapsed_s) if settings.num_steps is None else run.step
    if run.step % 10 == 0:
        bar.set_postfix(step=run.step, loss=f"{np.mean(run.losses[-50:]):.4f}", refresh=False)
    bar.update(min(done, bar.total or done) - bar.n)
