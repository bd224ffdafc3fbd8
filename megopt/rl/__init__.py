"""Constrained reinforcement learning on stable-baselines3: algorithms that learn under limits on costs.

    from megopt.rl import CVPO
    model = CVPO("MlpPolicy", env, limits=[0.5, 20.0]).learn(100_000)

Importing this package loads no torch: names are looked up in their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megopt.rl.cvpo import CVPO
    from megopt.rl.lagrangian import DDPGLag, PidGains, PPOLag, SACLag, TD3Lag
    from megopt.rl.resume import load_run, save_run

_MODULE_OF = {
    "CVPO": "megopt.rl.cvpo",
    **dict.fromkeys(("DDPGLag", "PPOLag", "PidGains", "SACLag", "TD3Lag"), "megopt.rl.lagrangian"),
    **dict.fromkeys(("load_run", "save_run"), "megopt.rl.resume"),
}

__all__ = ["CVPO", "DDPGLag", "PPOLag", "PidGains", "SACLag", "TD3Lag", "load_run", "save_run"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
