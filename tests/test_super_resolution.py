"""Upscalers and their region-aware hybrid: partition of unity, tiled equals untiled, no seams, failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from megopt.diffusion.hybrid_super_resolution import HybridUpscaler, Tiling, saliency_masks
from megopt.diffusion.rendering import Images, render
from megopt.diffusion.scenes import sample_scenes
from megopt.diffusion.super_resolution import BicubicUpscaler, DiffusionUpscaler, NetworkUpscaler
from megopt.errors import ConfigError, PipelineError

# diffusers' schedulers hand torch tensors to numpy.array; torch has no copy keyword yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

torch.set_num_threads(1)
tilings = st.builds(
    lambda overlap, context, inside: Tiling(
        patch_px=2 * (overlap + context) + inside, overlap_px=overlap, context_px=context
    ),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 12),
)


def noise(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Brighter:
    """Pixels repeated, and made brighter: a local operator that tells whose patch it was."""

    scale: int
    levels: int

    def upscale(self, images: Images) -> Images:
        large = images.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        return np.clip(large.astype(np.int64) + self.levels, 0, 255).astype(np.uint8)


# --- windows --------------------------------------------------------------------------------------------------------


@given(tiling=tilings, side=st.integers(1, 120), scale=st.sampled_from([1, 2, 4]))
def test_windows_sum_to_one_and_stay_inside(tiling: Tiling, side: int, scale: int) -> None:
    windows, starts = tiling.windows(side, scale), tiling.starts(side)
    np.testing.assert_allclose(windows.sum(axis=0), 1.0)
    assert windows.shape == (len(starts), scale * side)
    assert (windows >= 0.0).all()
    for start, window in zip(starts, windows, strict=True):
        used = np.flatnonzero(window)
        first = start + (tiling.context_px if start > 0 else 0)
        last = min(start + tiling.patch_px, side)
        last -= tiling.context_px if last < side else 0
        assert scale * first <= used[0]
        assert used[-1] < scale * last


@given(tiling=tilings, side=st.integers(1, 120))
def test_patches_cover_evenly_with_the_stated_overlap(tiling: Tiling, side: int) -> None:
    starts = tiling.starts(side)
    assert starts[0] == 0
    assert starts[-1] == max(0, side - tiling.patch_px)
    strides = np.diff(starts)
    assert (strides >= 1).all()
    assert (tiling.patch_px - strides >= 2 * tiling.context_px + tiling.overlap_px).all()


def test_blend_is_a_raised_cosine() -> None:
    tiling = Tiling(patch_px=10, overlap_px=4, context_px=0)
    windows = tiling.windows(16, 1)  # patches at 0 and 6: they share pixels 6 to 9
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    np.testing.assert_allclose(windows[1], [*np.zeros(6), *ramp, *np.ones(6)], atol=1e-12)


@pytest.mark.parametrize("change", [{"overlap_px": 0}, {"context_px": -1}, {"patch_px": 6}])
def test_impossible_tilings_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="patch_px above twice their sum"):
        Tiling(**change)


# --- the hybrid -----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(tiling=tilings, height=st.integers(2, 60), width=st.integers(2, 60), scale=st.sampled_from([2, 4]))
def test_equal_pointwise_upscalers_make_the_whole_image(tiling: Tiling, height: int, width: int, scale: int) -> None:
    images, local = noise(2, height, width), Brighter(scale, 0)
    hybrid = HybridUpscaler(foreground=local, background=local, tiling=tiling)
    assert np.array_equal(hybrid.upscale(images), local.upscale(images))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 33, 50), (1, 10, 70)])
def test_tiled_bicubic_is_bicubic(shape: tuple[int, int, int], scale: int) -> None:
    images, bicubic = noise(*shape), BicubicUpscaler(scale=scale)
    hybrid = HybridUpscaler(foreground=bicubic, background=bicubic, tiling=Tiling(context_px=2))
    assert np.array_equal(hybrid.upscale(images), bicubic.upscale(images))
    blind = HybridUpscaler(foreground=bicubic, background=bicubic, tiling=Tiling(context_px=0))
    assert not np.array_equal(blind.upscale(noise(1, 64, 64)), bicubic.upscale(noise(1, 64, 64)))


def test_foreground_goes_to_its_own_upscaler() -> None:
    images = np.full((2, 64, 64, 3), 100, dtype=np.uint8)
    masks = np.zeros((2, 64, 64), dtype=np.bool_)
    masks[0, :24, :24] = True
    hybrid = HybridUpscaler(foreground=Brighter(2, 100), background=Brighter(2, 0))
    large, chosen = hybrid.upscale(images, masks), hybrid.foreground_patches(images, masks)
    assert (large[0, :30, :30] == 200).all()
    assert (large[0, 80:, 80:] == 100).all()
    assert (large[1] == 100).all()
    assert chosen.shape == (2, 3, 3)
    assert chosen[0].sum() == 3  # the mask reaches 4 px into the second patches, and a corner is too small a share
    assert hybrid.foreground_patches(images, np.ones_like(masks)).all()
    assert hybrid.overhead(64, 64) == pytest.approx(9 * 24 * 24 / 64**2)


@pytest.mark.parametrize("scale", [2, 4])
def test_no_seam_shows(scale: int) -> None:
    # upscalers that differ by 40 levels: a hard cut jumps by 40 at once, the blend by little anywhere
    images = np.full((1, 96, 96, 3), 100, dtype=np.uint8)
    masks = np.zeros((1, 96, 96), dtype=np.bool_)
    masks[0, 40:56, 40:56] = True
    tiling = Tiling(patch_px=24, overlap_px=8, context_px=0)
    hybrid = HybridUpscaler(foreground=Brighter(scale, 40), background=Brighter(scale, 0), tiling=tiling)
    large = hybrid.upscale(images, masks).astype(np.float64)
    steepest = 40 * np.pi / (2 * 8 * scale)  # slope of the raised cosine in its middle
    for axis in (1, 2):
        assert np.abs(np.diff(large, axis=axis)).max() <= steepest + 1.0  # and rounding
    assert large.max() == 140
    assert large.min() == 100


def test_seams_of_a_scene_are_no_steeper_than_elsewhere() -> None:
    images, masks = render(sample_scenes(1, 4), 64)
    hybrid = HybridUpscaler(foreground=Brighter(2, 6), background=Brighter(2, 0))
    large = hybrid.upscale(images, masks).astype(np.float64).mean(axis=3)
    slope = np.abs(np.diff(large, axis=2)).mean(axis=(0, 1))
    edges = np.unique(
        [2 * start for start in hybrid.tiling.starts(64)[1:]]
        + [2 * (start + 24) for start in hybrid.tiling.starts(64)[:-1]]
    )
    at_edges = slope[np.concatenate([edges - 1, edges])]
    assert at_edges.mean() <= 1.2 * slope.mean()


def test_saliency_stands_in_for_a_mask() -> None:
    images = np.full((1, 64, 64, 3), 90, dtype=np.uint8)
    images[0, 40:60, 40:60] = noise(20, 20)
    saliency = saliency_masks(images)
    assert saliency[0, 42:58, 42:58].all()
    assert not saliency[0, :36, :36].any()
    hybrid = HybridUpscaler(foreground=Brighter(2, 10), background=Brighter(2, 0))
    assert np.array_equal(hybrid.upscale(images), hybrid.upscale(images, saliency))
    assert 0.0 < hybrid.foreground_patches(images).mean() < 0.5


def test_saliency_finds_rendered_objects() -> None:
    images, masks = render(sample_scenes(2, 24), 64)
    found = saliency_masks(images)
    assert found[masks].mean() > 0.7
    assert masks[found].mean() > 0.6


def test_impossible_hybrids_are_refused() -> None:
    two, four = BicubicUpscaler(scale=2), BicubicUpscaler(scale=4)
    with pytest.raises(ConfigError, match="scales 2 and 4"):
        HybridUpscaler(foreground=two, background=four)
    with pytest.raises(ConfigError, match="least_share 0"):
        HybridUpscaler(foreground=two, background=two, least_share=0.0)
    hybrid = HybridUpscaler(foreground=two, background=two)
    with pytest.raises(ConfigError, match=r"bool of shape \(1, 8, 8\); expected bool of shape \(1, 16, 16\)"):
        hybrid.upscale(noise(1, 16, 16), np.zeros((1, 8, 8), dtype=np.bool_))
    with pytest.raises(ConfigError, match="float64"):
        hybrid.upscale(noise(1, 16, 16) / 255.0)


# --- networks -------------------------------------------------------------------------------------------------------


class Light(nn.Module):
    """Pixel shuffle with random weights."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.min() >= -1.0
        assert pixels.max() <= 1.0
        output: torch.Tensor = self.layers(pixels)
        return output


class Denoiser(nn.Module):
    """Predicts a fixed share of what it sees."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, seen: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.share * seen[:, :3]


def diffusion(share: float, **changes: Any) -> DiffusionUpscaler:
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    settings: dict[str, Any] = {"scale": 2, "num_steps": 4} | changes
    return DiffusionUpscaler(network=Denoiser(share), scheduler=scheduler, **settings)


@pytest.mark.parametrize("scale", [2, 4])
def test_light_network(scale: int) -> None:
    images, upscaler = noise(5, 8, 12), NetworkUpscaler(network=Light(scale), scale=scale, batch_size=2)
    large = upscaler.upscale(images)
    assert large.shape == (5, scale * 8, scale * 12, 3)
    assert large.dtype == np.uint8
    assert np.array_equal(upscaler.upscale(images[-1:]), large[-1:])


def test_a_residual_of_zero_is_bicubic() -> None:
    images = noise(2, 8, 8)
    assert np.array_equal(diffusion(0.0).upscale(images), BicubicUpscaler(scale=2).upscale(images))


def test_diffusion_is_seeded_and_independent_of_the_batch() -> None:
    images = noise(3, 8, 8)
    large = diffusion(0.5, batch_size=2).upscale(images)
    assert np.array_equal(large, diffusion(0.5, batch_size=1).upscale(images))
    assert np.array_equal(large[2:], diffusion(0.5).upscale(images[2:]))
    assert not np.array_equal(large, diffusion(0.5, seed=1).upscale(images))
    bicubic = BicubicUpscaler(scale=2).upscale(images)
    far, near = (
        np.abs(diffusion(0.5, residual_scale=r).upscale(images) - bicubic.astype(float)).mean() for r in (1, 0.1)
    )
    assert near < far


def test_diffusion_through_a_diffusers_network() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    upscaler = DiffusionUpscaler(
        network=network, scheduler=DDIMScheduler(prediction_type="v_prediction"), scale=4, num_steps=2
    )
    assert upscaler.upscale(noise(1, 4, 4)).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("scale", [1, 3, 8])
def test_scales_not_offered_are_refused(scale: int) -> None:
    for make in (
        lambda: BicubicUpscaler(scale=scale),
        lambda: NetworkUpscaler(network=Light(2), scale=scale),
        lambda: diffusion(0.0, scale=scale),
    ):
        with pytest.raises(ConfigError, match=f"sr_scale {scale}: not offered; expected one of 2, 4"):
            make()


def test_networks_of_another_scale_are_refused() -> None:
    with pytest.raises(
        PipelineError, match=r"upscaler x4: output of shape \(1, 3, 16, 16\); expected \(1, 3, 32, 32\)"
    ):
        NetworkUpscaler(network=Light(2), scale=4).upscale(noise(1, 8, 8))
    with pytest.raises(ConfigError, match="num_steps 0"):
        diffusion(0.0, num_steps=0)
