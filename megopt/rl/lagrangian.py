"""Lagrangian baselines on stable-baselines3: PPO-Lag, SAC-Lag, TD3-Lag and DDPG-Lag with any number of limits.

    from megopt.rl.lagrangian import SACLag
    model = SACLag("MlpPolicy", env, limits=[0.25, 2.0], limit_per="step").learn(100_000)

    maximise E[rewards]   subject to   mean cost_i <= limit_i,      L = rewards - sum_i lambda_i (cost_i - limit_i)

The environment reports one cost per limit in `info["costs"]`, or a single one in `info["cost"]`. Limits are on plain
means over steps or on undiscounted sums per episode (`megopt.rl.costs`); lambda comes from PID controllers
on the measured costs (`megopt.rl.pid`); policies ascend L. Everything else (policies, callbacks, logging, save, load)
is stable-baselines3's; a saved model carries its multipliers, their controllers' memory and the critics of the costs.
"""

from __future__ import annotations

from megopt.rl.costs import CostLimits, LimitPer
from megopt.rl.lagrangian_ppo import PPOLag
from megopt.rl.lagrangian_sac_td3 import DDPGLag, SACLag, TD3Lag
from megopt.rl.pid import PidGains

__all__ = ["CostLimits", "DDPGLag", "LimitPer", "PPOLag", "PidGains", "SACLag", "TD3Lag"]
