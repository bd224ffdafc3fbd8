"""Train one agent on `megopt/Request-v0` or `megopt/Cell-v0`: curve with limits, checkpoints, stops to go on from.

A run is a sequence of chunks of `eval_every` requests; after each the agent is judged on held-out episodes. It stops
between chunks only, so that a run that was stopped and gone on with equals the unbroken one. Its folder holds

    run.json  curve.csv  curve.parquet  agent/  tensorboard/  state.megrun (only while there is more to learn)
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from megopt.analysis.episodes import learning_env
from megopt.analysis.evaluation import evaluate_agent, limits_of
from megopt.analysis.training_plan import TrainingPlan
from megopt.envs.cell_parameters import CellParams
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.policies.agent_card import AGENT_FILE, AgentCard
from megopt.rl import agents
from megopt.rl.schedules import FadingRate
from megopt.rl.settings import checked_settings

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE, CURVE_FILE, STATE_FILE, AGENT_FOLDER = "run.json", "curve.csv", "state.megrun", "agent"
VALIDATION_SEED = 1_000_003
"""Seed of the episodes behind the learning curve; the same for all runs, and not that of any comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What a run came to.

    Attributes:
        folder: where its files are.
        curve: one row per point: num_steps, num_updates, training_s, and for the sampled and the mean policy reward,
            costs, excess and violation rate.
        is_finished: whether it has had all its requests.
        training_s: wall time of learning, without the judging [s].
    """

    folder: Path
    curve: pd.DataFrame
    is_finished: bool
    training_s: float


@dataclass(slots=True)
class _Stop:
    """Whether the user has asked for a stop."""

    is_asked: bool = False


def train(plan: TrainingPlan, folder: Path, *, is_resumed: bool = True, shows_progress: bool = True) -> TrainedRun:
    """Return a finished or stopped run; goes on with what `folder` holds.

    Args:
        plan: the run.
        folder: its files.
        is_resumed: whether to go on with a run in `folder`; else it begins anew.
        shows_progress: whether to draw a bar with the time left, where there is a terminal.

    Raises:
        ConfigError: if `folder` holds a run of another plan.
    """
    is_old = is_resumed and _is_begun(plan, folder)
    rows = _kept_rows(folder) if is_old else []
    if is_old and not (folder / STATE_FILE).is_file():
        return _result(folder, rows, is_finished=True)
    agent = agents.load_state(plan.algorithm, folder / STATE_FILE, plan.device) if rows else _new_agent(plan)
    rows = [row for row in rows if row["num_steps"] <= agent.num_timesteps]
    _write_json(folder / RUN_FILE, plan.fingerprint())
    agent.set_logger(_logger(folder))
    with _stop_on_interrupt() as stop, _bar(plan, agent.num_timesteps, shows_progress) as bar:
        while agent.num_timesteps < plan.num_steps and not stop.is_asked:
            rows.append(_chunk(plan, agent, rows, bar))
            is_last = stop.is_asked or agent.num_timesteps >= plan.num_steps
            _write_curve(folder, rows)
            if is_last or len(rows) % plan.checkpoint_every == 0:
                _write_checkpoint(plan, agent, folder)
    is_finished = agent.num_timesteps >= plan.num_steps
    if is_finished:
        (folder / STATE_FILE).unlink(missing_ok=True)
    agent.logger.close()
    return _result(folder, rows, is_finished=is_finished)


def _is_begun(plan: TrainingPlan, folder: Path) -> bool:
    """Return whether `folder` holds a run of this plan that can be gone on with, or is finished."""
    path = folder / RUN_FILE
    if not path.is_file():
        return False
    kept, wanted = json.loads(path.read_text(encoding="utf-8")), plan.fingerprint()
    changed = [name for name in wanted if kept.get(name) != wanted[name]]
    if changed:
        came = ", ".join(f"{name} = {kept.get(name)} there and {wanted[name]} now" for name in changed[:3])
        message = f"{folder}: holds another run ({came}); choose another folder, or resume=false to begin anew"
        raise ConfigError(message)
    return (folder / STATE_FILE).is_file() or (folder / AGENT_FOLDER / AGENT_FILE).is_file()


def _new_agent(plan: TrainingPlan) -> Any:
    env, limits = learning_env(plan.params, plan.num_envs, plan.actions, plan.bad_actions)
    settings = checked_settings(f"algorithm {plan.algorithm}", plan.settings)
    if plan.fade_to < 1.0 and "learning_rate" in settings:
        settings["learning_rate"] = FadingRate(float(settings["learning_rate"]), plan.num_steps, plan.fade_to)
    return agents.new_agent(plan.algorithm, env, limits, plan.seed, settings, plan.device)


def _chunk(plan: TrainingPlan, agent: Any, rows: list[dict[str, Any]], bar: Any) -> dict[str, Any]:
    """Learn up to the next point of the curve and return that point."""
    start, before = time.perf_counter(), agent.num_timesteps
    goal = min((before // plan.eval_every + 1) * plan.eval_every, plan.num_steps)

    def advance(scope: dict[str, Any], _: dict[str, Any]) -> bool:
        bar.update(plan.num_envs)
        if isinstance(agent.learning_rate, FadingRate):
            agent.learning_rate.num_done = agent.num_timesteps
        return True

    agent.learn(goal - before, callback=advance, reset_num_timesteps=False)
    training_s = time.perf_counter() - start + (rows[-1]["training_s"] if rows else 0.0)
    row = {"num_steps": agent.num_timesteps, "num_updates": agent._n_updates, "training_s": training_s}
    row |= _judged(plan, agent)
    for name, value in row.items():
        if name.startswith(("sampled", "mean")):
            agent.logger.record(f"eval/{name}", value)
    agent.logger.dump(agent.num_timesteps)
    bar.set_postfix_str(f"reward {row['sampled_reward']:.4g}, worst excess {row['sampled_excess']:+.1%}")
    return row


def _judged(plan: TrainingPlan, agent: Any) -> dict[str, float]:
    """Return reward, costs, excess and violation rate of the sampled and of the mean policy on held-out episodes."""
    row: dict[str, float] = {}
    for name, is_sampled in (("sampled", True), ("mean", False)):
        found = evaluate_agent(
            agent,
            plan.params,
            plan.actions,
            num_episodes=plan.eval_episodes,
            seed=VALIDATION_SEED,
            is_sampled=is_sampled,
            bad_actions=plan.bad_actions,
        ).summary(limits_of(plan.params))
        row |= {f"{name}_{key}": found[key] for key in ("reward", "excess", "violation_rate")}
        limits = plan.params.problem.limits
        row |= {f"{name}_{limit.quantity}": cost for limit, cost in zip(limits, found["costs"], strict=True)}
    return row


def _logger(folder: Path) -> Any:
    from stable_baselines3.common.logger import configure

    return configure(str(folder / "tensorboard"), ["tensorboard"])


@contextmanager
def _bar(plan: TrainingPlan, done: int, shows_progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    name = f"{plan.algorithm} seed {plan.seed}"
    with tqdm(
        total=plan.num_steps,
        initial=done,
        desc=name,
        unit="request",
        unit_scale=True,
        disable=None if shows_progress else True,
    ) as bar:
        yield bar


@contextmanager
def _stop_on_interrupt() -> Iterator[_Stop]:
    """Turn the first interrupt (Ctrl-C) into a wish to stop; the second one is an interrupt again."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        stop.is_asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _write_checkpoint(plan: TrainingPlan, agent: Any, folder: Path) -> None:
    """Write the agent to act with, and the state to go on from."""
    agents.save_agent(agent, folder / AGENT_FOLDER / AGENT_FILE)
    if not isinstance(plan.params, CellParams):  # outside its cell an agent of all devices means nothing
        card = AgentCard.of(plan.params, plan.algorithm, plan.actions, plan.seed, agent.num_timesteps)
        card.write(folder / AGENT_FOLDER)
    agents.save_state(agent, folder / STATE_FILE)


def _write_curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    curve = pd.DataFrame(rows)
    write_atomically(folder / CURVE_FILE, lambda path: curve.to_csv(path, index=False))
    write_atomically((folder / CURVE_FILE).with_suffix(".parquet"), lambda path: curve.to_parquet(path, index=False))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, lambda target: target.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8"))


def _kept_rows(folder: Path) -> list[dict[str, Any]]:
    import pandas as pd

    path = (folder / CURVE_FILE).with_suffix(".parquet")
    return cast("list[dict[str, Any]]", pd.read_parquet(path).to_dict("records")) if path.is_file() else []


def _result(folder: Path, rows: list[dict[str, Any]], *, is_finished: bool) -> TrainedRun:
    import pandas as pd

    curve = pd.DataFrame(rows)
    training_s = float(curve["training_s"].iloc[-1]) if len(curve) else np.nan
    return TrainedRun(folder=folder, curve=curve, is_finished=is_finished, training_s=training_s)
