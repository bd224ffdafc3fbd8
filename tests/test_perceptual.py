"""The perceptual loss: nothing where it is off or nothing is wrong, gradients for the denoiser alone, exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from megopt.diffusion.attribute_network import AttributeNetwork, attribute_loss
from megopt.diffusion.captions import parse_caption
from megopt.diffusion.latent_attributes import LatentAttributeObjective, PerceptualLoss, PerceptualSettings
from megopt.diffusion.training import train
from megopt.diffusion.training_data import SceneSet
from megopt.diffusion.training_denoiser import DenoiserObjective, DenoiserShape, LatentSet
from megopt.diffusion.training_objective import TrainingSettings
from megopt.diffusion.training_parts import perceptual_loss
from megopt.diffusion.training_request import PartRequest
from megopt.diffusion.training_run import begin
from megopt.diffusion.training_text import CaptionReader, token_numbers, word_tokenizer
from megopt.errors import ConfigError

SHAPE = DenoiserShape(widths=(16, 32), text_width=32, small_shares=(0.0, 0.0))
SETTINGS = TrainingSettings(seed=3, num_steps=4, batch_size=8, inner_rate=0.02, warmup_steps=2, log_every=2)
CAPTION = "a small red metal cube at the back , plain floor"
NUM = 8
ON = PerceptualSettings(weight=0.5, lowest_snr=0.0, highest_snr=1e9)


def attributes() -> torch.Tensor:
    return torch.from_numpy(parse_caption(CAPTION)).repeat(NUM, 1)


def reader(seed: int = 0) -> AttributeNetwork:
    torch.manual_seed(seed)
    return AttributeNetwork(width=16, num_features=8, num_blocks=1, in_channels=4, strides=(1, 1))


def latents() -> torch.Tensor:
    return torch.randn(NUM, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def objective(perceptual: PerceptualLoss | None, shape: DenoiserShape = SHAPE) -> DenoiserObjective:
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    data = LatentSet(
        latents=(latents(), torch.randn(NUM, 4, 8, 8), torch.randn(NUM, 4, 4, 4)),
        numbers=token_numbers(tokenizer, (CAPTION,) * NUM),
        empty=token_numbers(tokenizer, ("",))[0],
        attributes=attributes(),
    )
    return DenoiserObjective(shape, CaptionReader(tokenizer, 32, 1).encoder, data, data, perceptual=perceptual)


def loss(task: DenoiserObjective, network: nn.Module, seed: int = 5) -> torch.Tensor:
    return task.loss(network, torch.arange(NUM), torch.Generator().manual_seed(seed), 0.0)


def test_weight_zero_is_the_velocity_loss_bit_for_bit() -> None:
    plain = objective(None)
    off = objective(PerceptualLoss(reader(), PerceptualSettings()))
    network = begin(plain, SETTINGS, None).network
    assert torch.equal(loss(off, network), loss(plain, network))
    assert off.describe() == plain.describe()


def test_the_velocity_loss_is_the_formula_of_the_module() -> None:
    task, clean = objective(None, replace(SHAPE, caption_dropout=0.0)), latents()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Silent(nn.Module):
        """Predicts no velocity."""

        def forward(self, noisy: torch.Tensor, times: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            seen.append((noisy, task._signal[times][:, None, None, None]))
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    came = loss(task, Silent()).item()
    noisy, share = seen[0]
    velocity = (share.sqrt() * noisy - clean) / (1.0 - share).sqrt()
    snr = (share / (1.0 - share)).flatten()
    expected = (torch.clamp(snr + 1.0, max=SHAPE.snr_limit) / (snr + 1.0) * velocity.square().mean((1, 2, 3))).mean()
    assert came == pytest.approx(expected.item(), rel=1e-3)


def test_a_weight_adds_in_proportion_and_leaves_the_draws_alone() -> None:
    network = begin(objective(None), SETTINGS, None).network
    plain, one, two = (
        loss(objective(None if not weight else PerceptualLoss(reader(), replace(ON, weight=weight))), network).item()
        for weight in (0.0, 1.0, 2.0)
    )
    assert one > plain
    assert two - plain == pytest.approx(2.0 * (one - plain), rel=1e-4)


def test_gradients_reach_the_denoiser_alone() -> None:
    judge = reader()
    task = objective(PerceptualLoss(judge, ON))
    network = begin(task, SETTINGS, None).network
    with_term, without = (torch.autograd.grad(loss(t, network), list(network.parameters()), allow_unused=True)
                          for t in (task, objective(None)))  # fmt: skip
    changed = [
        not torch.equal(a, b) for a, b in zip(with_term, without, strict=True) if a is not None and b is not None
    ]
    assert any(changed)
    loss(task, network).backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in judge.parameters())


def test_the_true_latent_costs_nothing_but_its_reading() -> None:
    clean, told, judge = latents(), attributes(), reader()
    assert PerceptualLoss(judge, replace(ON, reading_share=0.0))(clean, clean, told).item() == 0.0
    fields, floor, _ = judge(clean)
    expected = 0.3 * attribute_loss(fields, floor, told).item()
    assert PerceptualLoss(judge, replace(ON, reading_share=0.3))(clean, clean, told).item() == pytest.approx(expected)
    assert PerceptualLoss(judge, replace(ON, reading_share=0.0))(clean + 0.5, clean, told).item() > 0.0


def test_a_perfect_denoiser_pays_no_features() -> None:
    clean = latents()

    class Perfect(nn.Module):
        """Knows the clean latent, and hence the velocity."""

        def forward(self, noisy: torch.Tensor, times: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            share = task._signal[times][:, None, None, None]
            signal, spread = share.sqrt(), (1.0 - share).sqrt()
            return type("Output", (), {"sample": (signal * noisy - clean) / spread.clamp(min=1e-4)})

    task = objective(PerceptualLoss(reader(), replace(ON, weight=1e3, reading_share=0.0)))
    assert loss(task, Perfect()).item() < 1e-3


@pytest.mark.parametrize(
    ("shape", "limits"),
    [
        (replace(SHAPE, caption_dropout=1.0), {}),  # no caption was told
        (replace(SHAPE, small_shares=(1.0, 0.0)), {}),  # not at full size
        (SHAPE, {"lowest_snr": 1e7, "highest_snr": 1e8}),  # too noisy, all of them
    ],
)
def test_who_is_not_looked_at_adds_nothing(shape: DenoiserShape, limits: dict[str, float]) -> None:
    network = begin(objective(None), SETTINGS, None).network
    task = objective(PerceptualLoss(reader(), replace(ON, **limits)), shape)
    assert torch.equal(loss(task, network), loss(objective(None, shape), network))


@pytest.mark.slow
def test_resume_knows_the_term(tmp_path: Path) -> None:
    train(objective(PerceptualLoss(reader(), ON)), SETTINGS, tmp_path, shows_progress=False)
    again = train(objective(PerceptualLoss(reader(), ON)), SETTINGS, tmp_path, shows_progress=False)
    assert again.num_steps == SETTINGS.num_steps
    others = (None, PerceptualLoss(reader(), replace(ON, weight=0.7)), PerceptualLoss(reader(seed=1), ON))
    for other in others:
        with pytest.raises(ConfigError, match="of another run: perceptual"):
            train(objective(other), SETTINGS, tmp_path, shows_progress=False)


@pytest.mark.slow
def test_reading_of_latents_is_learnt(tmp_path: Path) -> None:
    told = torch.stack([torch.from_numpy(parse_caption(CAPTION.replace("red", c))) for c in ("red", "blue") * 4])
    scenes = SceneSet(
        images=np.zeros((NUM, 64, 64, 3), dtype=np.uint8),
        masks=np.zeros((NUM, 64, 64), dtype=np.bool_),
        attributes=told.numpy(),
        captions=(CAPTION,) * NUM,
    )
    shown = latents() + 2.0 * told[:, -4, None, None, None]
    task = LatentAttributeObjective((scenes, shown), {"seen": (scenes, shown)}, width=16)
    settings = replace(SETTINGS, num_steps=40, learning_rate=3e-3)
    trained = train(task, settings, tmp_path, shows_progress=False)
    assert trained.metrics["seen_colour"] == 1.0
    assert trained.network(shown)[0].shape == (NUM, 5, 23)
    assert task.describe()["part"] == "latent_attributes"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    request = PartRequest(part="edge", budget_min=None, num_steps=1, folder=tmp_path, perceptual=ON)
    with pytest.raises(ConfigError, match="latent_attributes: not trained yet; run `megopt train-models part=latent_a"):
        perceptual_loss(request)
    assert perceptual_loss(replace(request, perceptual=PerceptualSettings())) is None
    with pytest.raises(ConfigError, match=r"weight -1\.0, reading_share 0\.1; expected numbers >= 0"):
        PerceptualSettings(weight=-1.0)
    with pytest.raises(ConfigError, match="expected 0 <= lowest_snr < highest_snr"):
        PerceptualSettings(lowest_snr=2.0, highest_snr=1.0)
    with pytest.raises(ConfigError, match=r"rate_factor=0\.0: expected a number > 0"):
        replace(request, rate_factor=0.0)


def test_rates_are_scaled_and_only_those(tmp_path: Path) -> None:
    request = PartRequest(part="edge", budget_min=None, num_steps=1, folder=tmp_path, rate_factor=0.5)
    settings = request.settings(learning_rate=1e-3, inner_rate=0.02, ema_decay=0.99)
    assert (settings.learning_rate, settings.inner_rate, settings.ema_decay) == (5e-4, 0.01, 0.99)


def test_a_weight_for_a_part_without_denoiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perceptual.weight=0.5 with part=autoencoder: expected one of edge, device"):
        PartRequest(part="autoencoder", budget_min=None, num_steps=1, folder=tmp_path, perceptual=ON)
