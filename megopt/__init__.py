"""megopt: optimisation and simulation for Mobile Edge Generation (MEG).

An edge server and a phone make an image together with a diffusion model; megopt decides how they share the work.
Importing this package loads nothing heavy: the names below are looked up in their rooms when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from megopt.policies.average_optimal import AverageOptimal
    from megopt.policies.drift_plus_penalty import DriftPlusPenalty
    from megopt.policies.pipelined_optimal import PipelinedOptimal
    from megopt.problem import Limit, Problem, evaluate
    from megopt.schemes.action_table import ActionTable
    from megopt.schemes.conventional import Conventional
    from megopt.schemes.region_split import RegionSplit
    from megopt.schemes.scheme import compile_all
    from megopt.schemes.shared_steps import SharedSteps
    from megopt.schemes.step_split import StepSplit
    from megopt.solvers import allocation as allocation
    from megopt.solvers import average_limits as average_limits
    from megopt.solvers.exhaustive import solve
    from megopt.solvers.solution import Solution, Status
    from megopt.system.channel import GaussMarkov, LogDistance, Rayleigh, Rician, Static, Trace, UrbanMacro, UrbanMicro
    from megopt.system.link import Link
    from megopt.system.outcome import Outcome
    from megopt.tables.profile import Profile, load_profile

_ROOMS = {
    "megopt.policies.average_optimal": ("AverageOptimal",),
    "megopt.policies.drift_plus_penalty": ("DriftPlusPenalty",),
    "megopt.policies.pipelined_optimal": ("PipelinedOptimal",),
    "megopt.problem": ("Limit", "Problem", "evaluate"),
    "megopt.schemes.action_table": ("ActionTable",),
    "megopt.schemes.conventional": ("Conventional",),
    "megopt.schemes.region_split": ("RegionSplit",),
    "megopt.schemes.scheme": ("compile_all",),
    "megopt.schemes.shared_steps": ("SharedSteps",),
    "megopt.schemes.step_split": ("StepSplit",),
    "megopt.solvers.exhaustive": ("solve",),
    "megopt.solvers.solution": ("Solution", "Status"),
    "megopt.system.channel": (
        "GaussMarkov",
        "LogDistance",
        "Rayleigh",
        "Rician",
        "Static",
        "Trace",
        "UrbanMacro",
        "UrbanMicro",
    ),
    "megopt.system.link": ("Link",),
    "megopt.system.outcome": ("Outcome",),
    "megopt.tables.profile": ("Profile", "load_profile"),
}
_MODULES = ("allocation", "average_limits")
"""Solvers that are called by their module: `megopt.average_limits.solve`, `megopt.allocation.solve`."""
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "ActionTable",
    "AverageOptimal",
    "Conventional",
    "DriftPlusPenalty",
    "GaussMarkov",
    "Limit",
    "Link",
    "LogDistance",
    "Outcome",
    "PipelinedOptimal",
    "Problem",
    "Profile",
    "Rayleigh",
    "RegionSplit",
    "Rician",
    "SharedSteps",
    "Solution",
    "Static",
    "Status",
    "StepSplit",
    "Trace",
    "UrbanMacro",
    "UrbanMicro",
    "compile_all",
    "evaluate",
    "load_profile",
    "solve",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"megopt.solvers.{name}")
    if name not in _ROOM_OF:
        message = f"module 'megopt' has no attribute {name!r}; it offers {', '.join((*__all__, *_MODULES))}"
        raise AttributeError(message)
    return getattr(import_module(_ROOM_OF[name]), name)
