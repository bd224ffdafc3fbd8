"""The bundled models, as they are shipped: what they promise on fresh scenes, and what is said when one is absent."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megopt.analysis.contact_sheet import write_contact_sheet
from megopt.diffusion import bundled, metrics
from megopt.diffusion.evaluation import Sampling, Truth, generated, reconstructed, scores, truth
from megopt.diffusion.pipelines import latent_space, load
from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.diffusion.training_autoencoder import fidelity
from megopt.diffusion.training_request import PartRequest
from megopt.envs import scenarios
from megopt.errors import ConfigError, PipelineError
from megopt.schemes.step_split import StepSplit
from megopt.tables.profile import load_profile

SEED = 77


@cache
def unseen() -> Truth:
    return truth(48, seed=SEED, split="unseen")


@cache
def pipeline(name: str) -> Any:
    return load(f"bundled/{name}")


@pytest.mark.slow
def test_autoencoder_keeps_fresh_scenes() -> None:
    told = unseen()
    kept = fidelity(told.images, reconstructed(pipeline("edge"), told.images), told.masks)
    assert kept["psnr_db"] >= 38.0
    assert 0.95 <= kept["sharpness"] <= 1.05


@pytest.mark.slow
def test_edge_model_draws_what_it_is_told_and_the_device_model_less_so() -> None:
    told, judge = unseen(), bundled.load_judge()
    found = {
        name: scores(judge, generated(pipeline(name), told.captions, 8, Sampling(seed=SEED)), told)
        for name in ("edge", "device")
    }
    ceiling = scores(judge, reconstructed(pipeline("edge"), told.images), told)
    assert ceiling["alignment"]["mean"] > 0.98
    assert found["edge"]["alignment"]["mean"] > 0.95
    for measure in ("alignment", "all_right"):
        assert found["edge"][measure]["mean"] > found["device"][measure]["mean"] + 0.10


@pytest.mark.slow
def test_both_pipelines_share_a_latent_space_and_repeat_their_images() -> None:
    assert latent_space(pipeline("edge")).differences(latent_space(pipeline("device"))) == []
    captions = unseen().captions[:3]
    once = generated(pipeline("device"), captions, 2, Sampling(seed=5))
    assert np.array_equal(once, generated(pipeline("device"), captions, 2, Sampling(seed=5)))
    alone = generated(pipeline("device"), captions[1:2], 2, Sampling(seed=6))
    assert np.abs(once[1].astype(int) - alone[0]).max() <= 2  # an image's noise is its own


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 4])
def test_super_resolution_beats_bicubic(scale: int) -> None:
    told = unseen()
    small = (
        told.images.reshape(-1, 64 // scale, scale, 64 // scale, scale, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    )
    light = bundled.load_upscaler("light", scale).upscale(small)
    diffused = bundled.load_upscaler("diffusion", scale).upscale(small)
    bicubic = metrics.psnr_db(BicubicUpscaler(scale=scale).upscale(small), told.images)
    assert metrics.psnr_db(light, told.images).mean() > bicubic.mean() + 0.5
    assert metrics.psnr_db(diffused, told.images).mean() > bicubic.mean() + 0.5
    energies = [metrics.laplacian_energy(images).mean() for images in (light, diffused, told.images)]
    assert energies[0] < energies[1] < energies[2]  # diffusion is the sharper one


def test_unknown_names_are_refused() -> None:
    with pytest.raises(PipelineError, match="bundled/cloud: no bundled pipeline; expected one of bundled/edge"):
        load("bundled/cloud")
    with pytest.raises(PipelineError, match="sr_hybrid_x4: not there; train it"):
        bundled.load_upscaler("hybrid", 4)
    with pytest.raises(ConfigError, match="num_images is 1; expected 2 or more"):
        truth(1, seed=0, split="unseen")
    assert bundled.located("some/model") == "some/model"


def test_scenes_of_a_split_repeat_and_larger_sets_differ_in_length_alone() -> None:
    few = truth(4, seed=3, split="unseen", resolution_px=32)
    again = truth(4, seed=3, split="unseen", resolution_px=32)
    assert few.captions == again.captions
    assert np.array_equal(few.images, again.images)
    assert few.images.shape == (4, 32, 32, 3)


@pytest.mark.slow
def test_contact_sheet_is_written_whole(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    path = write_contact_sheet(tmp_path / "sheet.png", {"one": images, "two": images}, ["a", "b", "c"])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_the_measured_profile_carries_every_knob_and_meg_cvpo() -> None:
    profile = load_profile("bundled")
    table = StepSplit(num_steps=None, merge_ratios=None, codec_bits=None, sr_scales=None).compile(profile)
    assert {1.0, 2.0, 4.0} == set(table.settings[:, [knob.name for knob in table.knobs].index("sr_scale")])
    assert set(table.kind) == {"measured"}
    scenario = scenarios.meg_cvpo(profile=profile)
    assert len(scenario.table) == 90  # 4 to 12 steps, ten merge ratios
    assert np.isfinite(scenario.table.quality).all()


@pytest.mark.parametrize("kind", ["diffusion", "hybrid"])
def test_the_measured_profile_offers_every_kind_of_super_resolution(kind: str) -> None:
    profile = load_profile("bundled")
    light, other = (
        StepSplit(num_steps=(8,), codec_bits=(16,), sr_scales=(2,), sr_kind=name).compile(profile)
        for name in ("light", kind)
    )
    assert len(light) == len(other)
    assert np.all(other.work.device_s > light.work.device_s)


def test_measured_quality_falls_with_fewer_steps_bits_tokens_and_pixels() -> None:
    quality = load_profile("bundled").quality
    is_light = quality["scheme"] == "step_split"
    rows = quality[quality["snr_db"].isna() & (quality["metric"] == "psnr_db") & is_light]
    whole = rows[rows["split_step"] == rows["num_steps"]]
    plain = whole[(whole["codec_bits"] == 16) & (whole["sr_scale"] == 1)]
    by_steps = plain[plain["merge_ratio"] == 0].sort_values("num_steps")["value"]
    assert by_steps.is_monotonic_increasing
    by_ratio = plain[plain["num_steps"] == 12].sort_values("merge_ratio")["value"]
    assert by_ratio.is_monotonic_decreasing
    twelve = whole[(whole["num_steps"] == 12) & (whole["merge_ratio"] == 0)]
    assert twelve[twelve["sr_scale"] == 1].sort_values("codec_bits")["value"].is_monotonic_increasing
    assert twelve[twelve["codec_bits"] == 16].sort_values("sr_scale")["value"].is_monotonic_decreasing
    by_split = rows[(rows["num_steps"] == 25) & (rows["merge_ratio"] == 0) & (rows["codec_bits"] == 16)]
    assert by_split[by_split["sr_scale"] == 1].sort_values("split_step")["value"].is_monotonic_increasing


def test_a_scale_that_nothing_enlarges_to_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="sr_scale 3: expected one of 2, 4"):
        bundled.load_upscaler("light", 3)
    with pytest.raises(ConfigError, match="sr_scale=3: expected one of 2, 4"):
        PartRequest(part="sr_light", budget_min=1.0, folder=tmp_path, sr_scale=3)
    assert not list(tmp_path.iterdir())
