"""`megopt benchmark what=rl`: rates and ratios that belong together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megopt.benchmarks import rl
from megopt.errors import ConfigError

TINY: dict[str, Any] = {"num_envs": 2, "num_steps": 4, "num_updates": 2, "batch_size": 8, "net_arch": [8], "repeats": 1}


@pytest.mark.slow
def test_ratios_are_those_of_the_rates() -> None:
    before = torch.get_num_threads()
    try:
        found = rl.run(**TINY)
    finally:
        torch.set_num_threads(before)
    assert all(value > 0.0 for value in found.values())
    for kind in ("box", "discrete"):
        updates = found["sac.updates_per_s"] / found[f"cvpo.{kind}.updates_per_s"]
        assert found[f"update_ratio.{kind}"] == pytest.approx(updates)
        steps = found[f"cvpo.{kind}.steps_per_s"] / found["sac.steps_per_s"]
        assert found[f"step_ratio.{kind}"] == pytest.approx(steps)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"net_arch": [8, 0]}, "benchmark rl: net_arch is 0; expected a whole number from 1"),
        ({"batch_size": 0}, "benchmark rl: batch_size is 0"),
        ({"num_threads": 1.5}, "benchmark rl: num_threads is 1.5"),
        ({"seed": -1}, "benchmark rl: seed is -1"),
    ],
)
def test_bad_input_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rl.run(**TINY | settings)
