"""The denoisers of the bundled models: small text-conditioned UNets on normalised latents.

    x_t = a_t x + s_t n        v_t = a_t n - s_t x        loss = min(snr_t + 1, g) / (snr_t + 1) |v' - v_t|^2

with a_t^2 + s_t^2 = 1, snr_t = a_t^2 / s_t^2. A share of the captions is replaced by the empty one for classifier-free
guidance; times are drawn one per equal slice of the schedule. The weight stays 1 where noise prevails, so that the
first of a few steps, from pure noise, is learnt too.
Source: T. Salimans, J. Ho, Progressive distillation for fast sampling of diffusion models, ICLR 2022 (v);
T. Hang et al., Efficient diffusion training via min-SNR weighting strategy, ICCV 2023 (weight);
J. Ho, T. Salimans, Classifier-free diffusion guidance, 2022.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from megopt.diffusion.diffusers_classes import AttnProcessor, DDIMScheduler, UNet2DConditionModel
from megopt.diffusion.latent_attributes import PerceptualLoss
from megopt.diffusion.training_objective import Objective
from megopt.diffusion.training_text import embed

NUM_TIMES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserShape:
    """Size of a denoiser, and how it learns.

    Attributes:
        widths: channels at 16 and 8 px; multiples of 16.
        layers_per_block: residual blocks per resolution.
        transformer_layers: cross-attention blocks per residual block.
        reads_text_at_16_px: whether the way up has cross-attention at 16 px too, not only at 8 px. It has no
            self-attention there, and costs a tenth of a step.
        latent_channels: channels of the latent.
        text_width: width of the text encoder.
        caption_dropout: share of captions that are dropped [1].
        snr_limit: g of the min-SNR weight.
        small_shares: shares of the steps on scenes of a half and of a quarter of the side, for generation at a lower
            resolution ahead of super-resolution [1].
        time_power: times are NUM_TIMES u^time_power with u even on [0, 1]: below 1, more of them are noisy. What a
            caption asks for is lost there: from a real scene's latent at signal-to-noise 1.65, nearly all is kept.
    """

    widths: tuple[int, int] = (64, 128)
    layers_per_block: int = 1
    transformer_layers: int = 1
    reads_text_at_16_px: bool = False
    latent_channels: int = 4
    text_width: int = 128
    caption_dropout: float = 0.1
    snr_limit: float = 5.0
    small_shares: tuple[float, float] = (0.15, 0.05)
    time_power: float = 0.7

    def build(self) -> nn.Module:
        """Return the UNet2DConditionModel with random weights."""
        last = "CrossAttnUpBlock2D" if self.reads_text_at_16_px else "UpBlock2D"
        network: nn.Module = UNet2DConditionModel(
            sample_size=16,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            block_out_channels=self.widths,
            layers_per_block=self.layers_per_block,
            transformer_layers_per_block=self.transformer_layers,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", last),
            only_cross_attention=[self.reads_text_at_16_px, False],
            cross_attention_dim=self.text_width,
            attention_head_dim=4,  # that many heads
            norm_num_groups=8 if min(self.widths) < 32 else 16,
        )
        return network


def noise_schedule() -> Any:
    """Return the schedule that denoisers are trained on, set up for sampling."""
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # stock pipelines warn of any other; "trailing" does not use it
        timestep_spacing="trailing",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSet:
    """What a denoiser learns from, all in memory.

    Attributes:
        latents: normalised, of the scenes at full, half and quarter side, shapes (n, latent_channels, 16, 16), (n,
            latent_channels, 8, 8) and (n, latent_channels, 4, 4).
        numbers: token numbers of the captions, shape (n, num_tokens).
        empty: those of the empty caption, shape (num_tokens,).
        attributes: what the captions tell, shape (n, NUM_ATTRIBUTES); only a perceptual loss asks for them.
    """

    latents: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    numbers: torch.Tensor
    empty: torch.Tensor
    attributes: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Guess:
    """What a denoiser made of a batch.

    Attributes:
        errors: squared velocity errors, shape (n,).
        snr: signal-to-noise ratios, shape (n,).
        clean: the predicted clean latents, of the shape of the latents.
    """

    errors: torch.Tensor
    snr: torch.Tensor
    clean: torch.Tensor


class DenoiserObjective(Objective):
    """The velocity loss on cached latents with a frozen text encoder, and a perceptual one where asked for."""

    def __init__(
        self,
        shape: DenoiserShape,
        encoder: nn.Module,
        train: LatentSet,
        test: LatentSet,
        device: str = "cpu",
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        self.shape, self.num_samples, self._train, self._test = shape, len(train.numbers), train, test
        self._perceptual = perceptual if perceptual is not None and perceptual.settings.weight else None
        self._encoder, self._device = encoder.to(device).eval().requires_grad_(False), device
        self._signal = noise_schedule().alphas_cumprod.to(torch.float32)

    def build(self) -> nn.Module:
        """Return the denoiser; it attends by plain products, whose gradient is faster on a CPU at few tokens."""
        network: Any = self.shape.build()
        network.set_attn_processor(AttnProcessor())
        if self.shape.reads_text_at_16_px:
            for attention in network.up_blocks[-1].attentions:  # no change at first, so that a network can grow by it
                nn.init.zeros_(attention.proj_out.weight)
                nn.init.zeros_(attention.proj_out.bias)
        return network  # type: ignore[no-any-return]

    def may_be_new(self, name: str) -> bool:
        """Return whether `name` is of the cross-attention at 16 px, which begins as no change."""
        return name.startswith("up_blocks.1.attentions.")

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the weighted velocity loss, and the perceptual one of full-size latents whose caption was told."""
        numbers = self._train.numbers[rows].clone()
        is_dropped = torch.rand(len(rows), generator=rng) < self.shape.caption_dropout
        numbers[is_dropped] = self._train.empty
        half, quarter = self.shape.small_shares
        draw = float(torch.rand((), generator=rng))
        level = 2 if draw < quarter else int(draw < quarter + half)
        latents = self._train.latents[level][rows].float()
        guess = self._guess(network, latents, numbers, rng, self.shape.time_power)
        total = (guess.errors * (guess.snr + 1.0).clamp(max=self.shape.snr_limit) / (guess.snr + 1.0)).mean()
        if self._perceptual is None or level:
            return total
        return total + self._perceptual.settings.weight * self._seen(guess, latents, rows, ~is_dropped)

    def _seen(self, guess: _Guess, latents: torch.Tensor, rows: torch.Tensor, is_told: torch.Tensor) -> torch.Tensor:
        """Return the perceptual loss, a mean over the whole batch, to which some add nothing.

        Args:
            guess: of the batch.
            latents: the true ones, shape (n, latent_channels, 16, 16).
            rows: of the data set, shape (n,).
            is_told: whose caption was not dropped, shape (n,).
        """
        assert self._perceptual is not None
        assert self._train.attributes is not None
        is_seen = is_told & self._perceptual.is_looked_at(guess.snr).cpu()
        if not is_seen.any():
            return guess.errors.new_zeros(())
        true, told = (part.to(self._device) for part in (latents[is_seen], self._train.attributes[rows[is_seen]]))
        return self._perceptual(guess.clean[is_seen.to(self._device)], true, told) * is_seen.float().mean().item()

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the unweighted velocity loss on held-out latents, the same noise every time."""
        rng, errors = torch.Generator().manual_seed(0), []
        for first in range(0, len(self._test.numbers), 64):
            part = slice(first, first + 64)
            latents = self._test.latents[0][part].float()
            errors.append(self._guess(network, latents, self._test.numbers[part], rng).errors)
        return {"velocity_mse": float(torch.cat(errors).mean())}

    def describe(self) -> dict[str, Any]:
        """Return the shape, and the perceptual loss if there is one."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.shape).items()}
        extra = {} if self._perceptual is None else {"perceptual": self._perceptual.describe()}
        return {"part": "denoiser", "num_samples": self.num_samples, **plain, **extra}

    def _guess(
        self,
        network: nn.Module,
        latents: torch.Tensor,
        numbers: torch.Tensor,
        rng: torch.Generator,
        time_power: float = 1.0,
    ) -> _Guess:
        """Return what the network makes of `latents`, shape (n, latent_channels, side, side), under noise.

        Args:
            network: the denoiser.
            latents: the clean ones.
            numbers: token numbers of what it is told, shape (n, num_tokens).
            rng: of times and noise.
            time_power: of `DenoiserShape`.
        """
        num = len(latents)
        slices = (torch.randperm(num, generator=rng) + torch.rand(num, generator=rng)) / num
        times = (slices**time_power * NUM_TIMES).long().clamp(max=NUM_TIMES - 1)
        share = self._signal[times][:, None, None, None]
        noise = torch.randn(latents.shape, generator=rng)
        noisy, velocity = mixed(latents, noise, share)
        told = embed(self._encoder, numbers.to(self._device))
        noisy, share = noisy.to(self._device), share.to(self._device)
        output = network(noisy, times.to(self._device), encoder_hidden_states=told).sample.float()
        errors = (output - velocity.to(self._device)).square().mean((1, 2, 3))
        snr = share.flatten() / (1.0 - share.flatten()).clamp(min=1e-8)
        return _Guess(errors=errors, snr=snr, clean=share.sqrt() * noisy - (1.0 - share).sqrt() * output)


def mixed(latents: torch.Tensor, noise: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy latents and velocities for the given signal powers."""
    signal, spread = share.sqrt(), (1.0 - share).sqrt()
    return signal * latents + spread * noise, signal * noise - spread * latents
