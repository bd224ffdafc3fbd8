"""A trained denoiser can grow by cross-attention at 16 px, and times lean to the noisy end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from megopt.diffusion.training_denoiser import NUM_TIMES, DenoiserObjective, DenoiserShape, LatentSet
from megopt.diffusion.training_objective import TrainingSettings
from megopt.diffusion.training_run import begin
from megopt.diffusion.training_text import CaptionReader, token_numbers, word_tokenizer
from megopt.errors import ConfigError

SHAPE = DenoiserShape(widths=(16, 32), text_width=32)
SETTINGS = TrainingSettings(seed=3, num_steps=1, inner_rate=0.02)


def objective(shape: DenoiserShape) -> DenoiserObjective:
    tokenizer = word_tokenizer()
    latents = LatentSet(
        latents=tuple(torch.randn(8, 4, side, side) for side in (16, 8, 4)),
        numbers=token_numbers(tokenizer, ("a small red metal cube at the back , plain floor",) * 8),
        empty=token_numbers(tokenizer, ("",))[0],
    )
    return DenoiserObjective(shape, CaptionReader(tokenizer, 32, 1).encoder, latents, latents)


def output(network: nn.Module) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    noisy, told = torch.randn(2, 4, 16, 16, generator=rng), torch.randn(2, 33, 32, generator=rng)
    called: Any = network.eval()
    with torch.no_grad():
        sample: torch.Tensor = called(noisy, torch.tensor([10, 900]), encoder_hidden_states=told).sample
    return sample


def test_a_grown_denoiser_begins_where_the_small_one_ended() -> None:
    small = begin(objective(SHAPE), SETTINGS, None).network
    grown = begin(objective(replace(SHAPE, reads_text_at_16_px=True)), SETTINGS, small.state_dict()).network
    assert sum(weight.numel() for weight in grown.parameters()) > sum(weight.numel() for weight in small.parameters())
    assert torch.equal(output(grown), output(small))


def test_other_weights_may_not_be_missing() -> None:
    weights = begin(objective(SHAPE), SETTINGS, None).network.state_dict()
    del weights["conv_in.bias"]
    with pytest.raises(ConfigError, match=r"initial weights: (.|\n)*conv_in\.bias"):
        begin(objective(SHAPE), SETTINGS, weights)


def test_new_cross_attention_learns_from_the_first_step() -> None:
    run = begin(objective(replace(SHAPE, reads_text_at_16_px=True)), SETTINGS, None)
    task = objective(replace(SHAPE, reads_text_at_16_px=True))
    task.loss(run.network, torch.arange(8), torch.Generator().manual_seed(0), 0.0).backward()
    named: Any = run.network
    assert named.up_blocks[-1].attentions[0].proj_out.weight.grad.abs().max() > 0.0


def test_times_lean_to_noise_by_the_power() -> None:
    seen: list[torch.Tensor] = []

    class Watched(nn.Module):
        def forward(self, noisy: torch.Tensor, times: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            seen.append(times)
            return type("Output", (), {"sample": noisy})

    rng = torch.Generator().manual_seed(1)
    for power in (1.0, 0.5):
        task = objective(replace(SHAPE, time_power=power, small_shares=(0.0, 0.0)))
        for _ in range(200):
            task.loss(Watched(), torch.arange(8), rng, 0.0)
    even, leaning = (torch.cat(part).float() / NUM_TIMES for part in (seen[:200], seen[200:]))
    assert float(even.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(leaning.mean()) == pytest.approx(2 / 3, abs=0.01)  # mean of u^(1/2)
