"""Counted FLOPs against the analytic count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megopt.metering.flops import count_flops

torch.set_num_threads(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_flops_of_attention_and_products(device: str, context: Any) -> None:
    batch, heads, num_queries, num_keys, width, value_width = 2, 3, 8, 5, 4, 4
    query = torch.ones(batch, heads, num_queries, width, device=device)
    key = torch.ones(batch, heads, num_keys, width, device=device)
    value = torch.ones(batch, heads, num_keys, value_width, device=device)

    def attend() -> object:
        with context():
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    expected = 2 * batch * heads * num_queries * num_keys * (width + value_width)
    assert count_flops(attend).total == expected
    if device == "cpu":
        assert count_flops(attend).attention == expected


def test_flops_of_grouped_queries() -> None:
    query, key = torch.ones(1, 4, 8, 4), torch.ones(1, 2, 8, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, key, key, enable_gqa=True)).total == 2 * 4 * 8 * 8 * (4 + 4)


def test_flops_of_a_module() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
    found = count_flops(lambda: layers(torch.ones(2, 3, 8, 8)))
    assert found.total == 2 * 2 * (8 * 8 * 8 * 3 * 9 + 512 * 10)
    assert found.attention == 0


@pytest.mark.slow
def test_flops_do_not_depend_on_the_attention_kernel(load_tiny: Callable[[str], Any]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    unet = load_tiny("sd").unet
    latent, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 16, 16)
    fused = count_flops(lambda: unet(latent, 10, text))
    with sdpa_kernel(SDPBackend.MATH):
        plain = count_flops(lambda: unet(latent, 10, text))
    assert fused.total == plain.total
    assert 0 == plain.attention < fused.attention
