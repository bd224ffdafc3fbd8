"""Devices and threads of PyTorch: what is there is taken, what is not is refused in words."""

from __future__ import annotations

import pytest
import torch

from megopt.diffusion.pipelines import load
from megopt.errors import ConfigError
from megopt.torch_devices import require_device, set_threads


@pytest.mark.parametrize("device", ["moon", "cuda:77", ""])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str) -> None:
    require_device("here", "cpu")  # always there
    with pytest.raises(ConfigError, match=rf"^here: PyTorch cannot use device '{device}' \(.+\); expected one of cpu"):
        require_device("here", device)


def test_what_is_no_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="here: device is None; expected a word such as cpu"):
        require_device("here", None)
    with pytest.raises(ConfigError, match="here: PyTorch cannot use device 'meta'"):
        require_device("here", "meta")


def test_models_are_not_read_for_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="models: PyTorch cannot use device 'cuda:77'"):
        load("no/such/model", device="cuda:77")


def test_threads_are_set_or_refused() -> None:
    before = torch.get_num_threads()
    try:
        set_threads("here", 2)
        assert torch.get_num_threads() == 2
        with pytest.raises(ConfigError, match="here: num_threads is 0; expected a whole number from 1"):
            set_threads("here", 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
