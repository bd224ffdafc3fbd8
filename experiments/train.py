"""`megopt train`: train one agent on a scenario; a stopped run goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from megopt.analysis.report import Report
from megopt.analysis.training import train
from megopt.analysis.training_plan import TrainingPlan
from megopt.analysis.training_report import report_of
from megopt.envs.parameters import EnvParams
from megopt.errors import ConfigError
from megopt.torch_devices import set_threads


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of one run; its files are in the folder that it names."""
    plans = plans_of(config)
    if len(plans) != 1:
        message = f"train: {len(plans)} algorithms; expected one, such as algorithm=cvpo; compare takes several"
        raise ConfigError(message)
    set_threads("train", config.num_threads)
    plan = next(iter(plans.values()))
    default = Path("outputs/train") / place_of(config, plan) / plan.algorithm / f"seed_{plan.seed}"
    folder = default if config.folder is None else Path(config.folder)
    return report_of(plan, train(plan, folder, is_resumed=config.resume))


def plans_of(config: DictConfig) -> dict[str, TrainingPlan]:
    """Return the plan of each algorithm of a configuration, by name."""
    params = params_of(config)
    names = ("num_steps", "eval_every", "eval_episodes", "checkpoint_every", "seed", "bad_actions")
    shared = {name: config[name] for name in names}
    entries = OmegaConf.to_container(config.algorithm, resolve=True)
    assert isinstance(entries, dict)
    scenario = _name_of(config)
    return {
        str(name): TrainingPlan(scenario=scenario, params=params, device=config.device, **shared, **entry)
        for name, entry in entries.items()
    }


def _name_of(config: DictConfig) -> str:
    """Return the name of the scenario as it was chosen; without a command line that of its function."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return str(HydraConfig.get().runtime.choices["scenario"])
    return str(config.scenario._target_).rsplit(".", 1)[-1]


def params_of(config: DictConfig) -> EnvParams:
    """Return the environment of a configuration, with its limits in place of the scenario's.

    Raises:
        ConfigError: for a scenario that is no environment.
    """
    params = instantiate(config.scenario, _convert_="all")
    if not isinstance(params, EnvParams):
        message = f"scenario {config.scenario._target_}: expected an environment: request, meg_cvpo or cell; choose one"
        raise ConfigError(message)
    problem = params.problem
    for quantity, bound in config.limits.items():
        problem = problem if bound is None else problem.with_limit(str(quantity), bound)
    return replace(params, problem=problem)


def place_of(config: DictConfig, plan: TrainingPlan) -> str:
    """Return the name of the scenario, with the limits that were set beside its own, or that there are none."""
    given = [f"{quantity}_{bound:g}" for quantity, bound in config.limits.items() if bound is not None]
    return "_".join([plan.scenario, *(given if plan.params.problem.limits else ["no_limits"])])
