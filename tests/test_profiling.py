"""`megopt profile`: cells that resume, rows that repeat, hand-overs that are really packed, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from megopt.diffusion import codec
from megopt.diffusion.evaluation import Sampling
from megopt.diffusion.sampling import advance, decode, start
from megopt.errors import ConfigError, PipelineError
from megopt.metering.profile_request import ProfileRequest, SideRequest
from megopt.metering.profiling import measure_profile
from megopt.metering.quality_generator import Generator, Models, handed_over
from megopt.metering.quality_grid import Cell, Grid, Handover
from megopt.tables.profile import load_profile

CAPTIONS = ("a red cube on grass", "a blue cat", "a red cat on a cube")
GRID = Grid(
    num_steps=(2, 4),
    num_splits=2,
    merge_ratios=(0.0, 0.5),
    codec_bits=(16, 4),
    sr_scales=(1,),
    snr_db=(10.0,),
    model_split_steps=(3,),
    model_split_ratios=(0.0, 0.9),
    num_images=3,
)
SAMPLING = Sampling(guidance_scale=2.0, seed=7)


def models(load_tiny: Any) -> Models:
    return Models(
        edge=load_tiny("sd"), device=load_tiny("sd_device"), upscalers={}, resolution_px=32, sampling=SAMPLING
    )


def request(folders: dict[str, Path], edge: str = "sd", device: str = "sd_device", **changes: Any) -> ProfileRequest:
    arguments: dict[str, Any] = {"grid": GRID, "sampling": SAMPLING, "budget_s": 0.001, "command": "megopt profile"}
    return ProfileRequest(
        edge=SideRequest(model=str(folders[edge]), power_w=65.0, batch_sizes=(1, 2)),
        device=SideRequest(model=str(folders[device])),
        **arguments | changes,
    )


def test_split_steps_hold_both_ends_and_cells_are_all_different() -> None:
    grid = Grid()
    for num_steps in grid.num_steps:
        steps = grid.split_steps(num_steps)
        assert steps[0] == 0
        assert steps[-1] == num_steps
        assert len(steps) <= grid.num_splits + 1
    assert grid.split_steps(2) == (0, 1, 2)
    extra = Cell(sr_scale=1, num_steps=7, split_step=7)
    assert extra in grid.cells()
    assert [handover.merge_ratio for handover in grid.handovers(extra)] == pytest.approx(np.arange(10) / 10)
    names = [cell.name for cell in grid.cells()]
    assert len(set(names)) == len(names)


def test_handover_keeps_what_the_codec_keeps(load_tiny: Any) -> None:
    begun = start(
        load_tiny("sd"), CAPTIONS, num_steps=2, seed=(1, 2, 3), sampler="ddim", guidance_scale=1.0, resolution_px=32
    )
    assert handed_over(begun, Handover(codec_bits=4), 0) is begun  # at step 0 only the seed is sent
    after = advance(load_tiny("sd"), begun, 1)
    errors = {}
    for bits in codec.BITS:
        received = handed_over(after, Handover(codec_bits=bits), 0).latent
        errors[bits] = float((received - after.latent).square().mean())
    assert 0.0 < errors[16] < errors[8] < errors[4]
    noisy = handed_over(after, Handover(codec_bits=None, snr_db=10.0), 0).latent
    snr = after.latent.square().mean() / (noisy - after.latent).square().mean()
    assert float(snr) == pytest.approx(10.0, rel=0.2)
    alone = advance(load_tiny("sd"), begun, 1)
    assert torch.equal(handed_over(alone, Handover(codec_bits=None, snr_db=10.0), 0).latent, noisy)


@pytest.mark.slow
def test_cells_in_any_order_give_the_same_images(load_tiny: Any) -> None:
    cells = [Cell(sr_scale=1, num_steps=4, split_step=k) for k in (0, 2, 4)]
    plain = Handover()
    forwards, backwards = Generator(models(load_tiny), CAPTIONS), Generator(models(load_tiny), CAPTIONS)
    one = [images for cell in cells for _, _, images in forwards.images(cell, [plain])]
    other = [images for cell in cells[::-1] for _, _, images in backwards.images(cell, [plain])][::-1]
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine, theirs)
    assert not np.array_equal(one[0], one[2])
    device = load_tiny("sd_device")
    begun = start(device, CAPTIONS, num_steps=4, seed=(7, 8, 9), sampler="ddim", guidance_scale=2.0, resolution_px=32)
    assert np.array_equal(one[0], decode(device, advance(device, begun, 4)))


@pytest.mark.slow
def test_stopped_measurement_goes_on_and_repeats(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_profile(request(tiny_pipelines), tmp_path / "whole", tmp_path / "one")
    original, calls = Generator.images, []

    def stopping(self: Generator, cell: Cell, handovers: list[Handover]) -> Any:
        calls.append(cell)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, cell, handovers)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "images", stopping)
        with pytest.raises(KeyboardInterrupt):
            measure_profile(request(tiny_pipelines), tmp_path / "parts", tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert len(list((tmp_path / "parts" / "cells").glob("*.json"))) == 2
    rest = measure_profile(request(tiny_pipelines), tmp_path / "parts", tmp_path / "two")
    assert (rest / "quality.csv").read_bytes() == (whole / "quality.csv").read_bytes()
    quality = pd.read_csv(whole / "quality.csv")
    packed = quality[quality["snr_db"].isna() & (quality["metric"] == "psnr_db")]
    reference = packed.query("num_steps == 4 and split_step == 4 and merge_ratio == 0 and codec_bits == 16")
    assert reference["value"].item() > 50.0  # the reference itself, through fp16
    assert packed["value"].max() == reference["value"].item()
    changed = request(tiny_pipelines, sampling=Sampling(guidance_scale=3.0, seed=7))
    with pytest.raises(ConfigError, match=r"holds another measurement: .*guidance_scale"):
        measure_profile(changed, tmp_path / "parts", tmp_path / "two")


@pytest.mark.slow
def test_profile_of_a_random_sdxl_loads_with_provenance(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    asked = request(tiny_pipelines, "sdxl", "sdxl", grid=None)
    folder = measure_profile(asked, tmp_path / "work", tmp_path / "sdxl")
    profile = load_profile(str(folder))
    compute = profile.compute
    assert {"text_encoder", "denoise_step", "vae_decode", "pipeline_overhead"} <= set(compute["component"])
    assert (compute["latency_s"] > 0).all()
    steps = compute[(compute["component"] == "denoise_step") & (compute["side"] == "edge")].sort_values("batch_size")
    assert steps["flops"].iloc[1] == pytest.approx(2 * steps["flops"].iloc[0])
    assert set(compute.loc[compute["side"] == "edge", "energy_source"]) == {"power_model"}
    assert compute.loc[compute["side"] == "device", "energy_j"].isna().all()  # not measured is never 0 J
    stated = json.loads((folder / "provenance.json").read_text())
    assert stated["resolution_px"] == 32
    assert stated["latent_shape"] == [4, 8, 8]
    assert stated["parameters"]["edge_power_w"]["value"] == 65.0
    assert len(profile.quality) == 0


def test_bad_input_is_refused(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="expected models of one latent space"):
        measure_profile(request(tiny_pipelines, "sd", "sd3"), tmp_path / "work", tmp_path / "out")
    with pytest.raises(ConfigError, match="sr_scales 3 is not offered"):
        Grid(sr_scales=(1, 3))
    with pytest.raises(ConfigError, match="codec_bits 5 is not offered"):
        Grid(codec_bits=(5,))
    assert not (tmp_path / "out").exists()
