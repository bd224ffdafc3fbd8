"""Region split on tiny pipelines: x = 1 is the edge-only run, the known region stays, payloads are shares; failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megopt.diffusion import codec, region_completion, sampling
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import encode, encode_run
from megopt.diffusion.region_completion import complete, make_region
from megopt.diffusion.regions import Region, primary_region, region_payload_bits
from megopt.diffusion.sampling import advance, decode, start
from megopt.diffusion.schedulers import SAMPLERS
from megopt.errors import ConfigError, PipelineError

# diffusers' schedulers hand torch tensors to numpy.array; torch has no copy keyword yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_STEPS = 4
SIZE = (8, 8)
WHOLE = Region(top=0, left=0, height=8, width=8, latent_size=SIZE)
PART = Region(top=2, left=0, height=4, width=6, latent_size=SIZE)
FEW = {("sd", "ddim"), ("sdxl", "euler"), ("sd", "dpmpp_2m")}
"""What is tried where slow tests are left out, beside all of sd3: every sampler and every family once."""
CASES = [
    pytest.param(name, sampler, marks=[] if name == "sd3" or (name, sampler) in FEW else pytest.mark.slow)
    for sampler, entry in SAMPLERS.items()
    for name in entry.families
]


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> dict[str, Any]:
    return {name: load_tiny(name) for name in ("sd", "sd_device", "sdxl", "sd3")}


def begun(pipeline: Any, sampler: str = "ddim", **changes: Any) -> Checkpoint:
    arguments: dict[str, Any] = {"num_steps": NUM_STEPS, "seed": 3, "guidance_scale": 3.0} | changes
    return start(pipeline, ("a red cube", "a blue cat"), sampler=sampler, **arguments)


# --- rectangles -----------------------------------------------------------------------------------------------------


@given(ratio=st.floats(0.05, 1.0), rows=st.integers(8, 40), columns=st.integers(8, 40), grain=st.sampled_from([1, 2]))
def test_regions_have_about_the_area_asked_for(ratio: float, rows: int, columns: int, grain: int) -> None:
    region = primary_region(ratio, (grain * rows, grain * columns), grain=grain)
    assert region.ratio == pytest.approx(ratio, abs=0.06)
    assert not any(side % grain for side in (region.top, region.left, region.height, region.width))
    aspect = (region.height / rows) / (region.width / columns)
    assert 0.5 <= aspect <= 2.0


def test_known_regions() -> None:
    assert primary_region(1.0, SIZE) == WHOLE
    assert WHOLE.is_whole
    assert primary_region(0.25, SIZE) == Region(top=2, left=2, height=4, width=4, latent_size=SIZE)
    assert PART.ratio == 24 / 64


@given(st.integers(1, 4), st.integers(0, 2**16), st.floats(0.1, 0.9))
def test_regions_around_a_mask(factor: int, seed: int, ratio: float) -> None:
    mask = np.random.default_rng(seed).random((8 * factor, 8 * factor)) < 0.1
    mask[0, -1] = True
    box = primary_region(mask, SIZE)
    cells = np.zeros(SIZE, dtype=np.bool_)
    cells[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert not mask[~cells.repeat(factor, axis=0).repeat(factor, axis=1)].any()
    assert (box.top, box.left + box.width) == (0, 8)

    def covered(region: Region) -> int:
        rows = slice(factor * region.top, factor * (region.top + region.height))
        return int(mask[rows, factor * region.left : factor * (region.left + region.width)].sum())

    assert covered(primary_region(ratio, SIZE, around=mask)) >= covered(primary_region(ratio, SIZE))


def test_region_around_an_object_is_centred_on_it() -> None:
    mask = np.zeros((32, 32), dtype=np.bool_)
    mask[20:24, 8:12] = True  # cell (5, 2)
    assert primary_region(9 / 64, SIZE, around=mask) == Region(top=4, left=1, height=3, width=3, latent_size=SIZE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, SIZE), r"region ratio 0\.0: expected a share in \(0, 1\]"),
        ((float("nan"), SIZE), "region ratio nan"),
        ((1.01, SIZE), r"region ratio 1\.01"),
        ((np.ones((8, 12), dtype=np.bool_), SIZE), r"shape \(8, 12\), 96 set; .* one multiple of \(8, 8\)"),
        ((np.ones((4, 4), dtype=np.bool_), SIZE), r"shape \(4, 4\)"),
        ((np.zeros(SIZE, dtype=np.bool_), SIZE), "0 set"),
        ((np.ones(SIZE), SIZE), "float64"),
    ],
)
def test_impossible_regions_are_refused(arguments: tuple[Any, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        primary_region(*arguments)


def test_regions_outside_the_latent_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"region of 4x4 at \(6, 0\): expected a rectangle inside the latent of 8x8"):
        Region(top=6, left=0, height=4, width=4, latent_size=SIZE)
    with pytest.raises(ConfigError, match="grain 3"):
        primary_region(0.5, SIZE, grain=3)


@pytest.mark.parametrize("bits", codec.BITS)
def test_payload_is_the_share_of_the_latent(bits: int) -> None:
    whole, quarter = (region_payload_bits(primary_region(ratio, (64, 64)), 4, bits) for ratio in (1.0, 0.25))
    frame = region_payload_bits(Region(top=0, left=0, height=1, width=2, latent_size=SIZE), 4, bits) - 4 * 2 * bits
    assert whole - frame == 4 * 64 * 64 * bits
    assert quarter - frame == (whole - frame) / 4
    latent = np.random.default_rng(0).standard_normal((4, 32, 32))
    assert 8 * len(codec.encode(latent, bits)) == quarter


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_the_whole_region_is_the_edge_only_run(pipelines: dict[str, Any], name: str, sampler: str) -> None:
    begin = begun(pipelines[name], sampler)
    whole = advance(pipelines[name], begin, NUM_STEPS)
    known = make_region(pipelines[name], begin, WHOLE)
    finished = complete(pipelines["sd_device" if name == "sd" else name], begin, WHOLE, known)
    assert torch.equal(finished.latent, whole.latent)
    assert np.array_equal(decode(pipelines[name], finished), decode(pipelines[name], whole))


@pytest.mark.slow
@pytest.mark.parametrize("coarse_scale", [1, 2])
@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_the_known_region_stays_and_the_rest_is_made(
    pipelines: dict[str, Any], name: str, sampler: str, coarse_scale: int
) -> None:
    begin = begun(pipelines[name], sampler)
    known = make_region(pipelines[name], begin, PART)
    finished = complete(pipelines[name], begin, PART, known, coarse_scale=coarse_scale)
    assert torch.equal(PART.of(finished.latent), known)
    assert finished.step == NUM_STEPS
    assert finished.latent.isfinite().all()
    rest = torch.ones(SIZE, dtype=torch.bool)
    PART.of(rest).fill_(False)
    plain = advance(pipelines[name], begin, NUM_STEPS).latent
    assert not torch.equal(finished.latent[..., rest], plain[..., rest])  # it grew around another region
    assert decode(pipelines[name], finished).shape == (2, 32, 32, 3)


def test_the_rest_depends_on_the_known_region(pipelines: dict[str, Any]) -> None:
    begin = begun(pipelines["sd"])
    known = make_region(pipelines["sd"], begin, PART)
    corner = (slice(None), slice(None), 7, 7)
    one, other = (complete(pipelines["sd"], begin, PART, each).latent[corner] for each in (known, known + 2.0))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_a_region_that_sees_the_whole_is_cut_from_the_edge_only_run(
    pipelines: dict[str, Any], name: str, sampler: str
) -> None:
    begin = begun(pipelines[name], sampler)
    seen = make_region(pipelines[name], begin, PART, sees_whole=True)
    assert torch.equal(seen, PART.of(advance(pipelines[name], begin, NUM_STEPS).latent))
    alone = make_region(pipelines[name], begin, PART)
    assert alone.shape == seen.shape
    assert not torch.equal(alone, seen)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_noised_latents_have_the_level_of_their_step(pipelines: dict[str, Any], name: str, sampler: str) -> None:
    begin = begun(pipelines[name], sampler)
    noise = region_completion._unit_noise(pipelines[name], begin)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    clean = torch.full_like(noise, 0.5)
    levels = []
    for step in range(NUM_STEPS + 1):
        noised = region_completion._noised(pipelines[name], replace(begin, step=step), clean, noise)
        # two unknowns, signal and noise level, from two moments
        level = float(((noised - noised.mean()) * (noise - noise.mean())).mean() / noise.var(correction=0))
        signal = float((noised - level * noise).mean() / 0.5)
        levels.append(level / max(signal, 1e-6))
        torch.testing.assert_close(noised, signal * clean + level * noise, atol=1e-4, rtol=1e-4)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0.0
    if len(begin.noise_levels) and name != "sd3":
        np.testing.assert_allclose(levels, begin.noise_levels, rtol=2e-2)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_noised_latents_lie_on_the_path_of_a_perfect_denoiser(
    pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, sampler: str
) -> None:
    pipeline = pipelines[name]
    begin = begun(pipeline, sampler)
    noise = region_completion._unit_noise(pipeline, begin)
    one, zero = torch.ones_like(noise), torch.zeros_like(noise)
    if name == "sd3":  # velocity; the path begins at pure noise
        clean = torch.full_like(noise, 0.7)
        output = noise - clean
    else:  # noise; the clean latent is the one whose path begins at `begin.latent`
        signal, level = (
            region_completion._noised(pipeline, begin, one, zero),
            region_completion._noised(pipeline, begin, zero, one),
        )
        clean = (begin.latent - level * noise) / signal
        output = noise
    monkeypatch.setattr(sampling, "_guided_output", lambda *_: output)
    for step in range(NUM_STEPS):
        run = advance(pipeline, begin, step)
        torch.testing.assert_close(
            region_completion._noised(pipeline, run, clean, noise), run.latent, atol=1e-3, rtol=1e-4
        )


def test_conditioning_may_be_given(pipelines: dict[str, Any]) -> None:
    begin = begun(pipelines["sdxl"], "euler")
    assert begin.prompt is not None
    told = encode(pipelines["sdxl"], begin.prompt, guidance_scale=3.0, resolution_px=(32, 32))
    known = make_region(pipelines["sdxl"], begin, PART, conditioning=told)
    assert torch.equal(known, make_region(pipelines["sdxl"], begin, PART))
    finished = complete(pipelines["sdxl"], begin, PART, known, conditioning=told)
    assert torch.equal(finished.latent, complete(pipelines["sdxl"], begin, PART, known).latent)


def test_sdxl_is_told_where_the_region_was_cut_out(pipelines: dict[str, Any]) -> None:
    begin = begun(pipelines["sdxl"], "euler")
    cropped = region_completion.cropped(encode_run(pipelines["sdxl"], begin), PART, begin)
    assert cropped.sizes_px is not None
    assert cropped.sizes_px[0].tolist() == [32, 32, 8, 0, 16, 24]


def test_refinement_is_as_long_as_asked(pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begun(pipelines["sd"])
    known = make_region(pipelines["sd"], begin, PART)
    sizes: list[int] = []

    def counted(pipeline: Any, run: Checkpoint, to_step: int, told: Any = None) -> Checkpoint:
        sizes.extend([run.latent.shape[-1]] * (to_step - run.step))
        return advance(pipeline, run, to_step, told)

    monkeypatch.setattr(region_completion, "advance", counted)
    for refine_steps, fine in ((None, 2), (1, 1), (0, 0), (4, 4)):
        sizes.clear()
        finished = complete(pipelines["sd"], begin, PART, known, coarse_scale=2, refine_steps=refine_steps)
        assert sizes == [4] * (NUM_STEPS if fine < NUM_STEPS else 0) + [8] * fine
        assert torch.equal(PART.of(finished.latent), known)


# --- failures -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(pipelines: dict[str, Any]) -> None:
    begin = begun(pipelines["sd"])
    known = torch.zeros(2, 4, 4, 6)
    cases: list[tuple[Checkpoint, Region, torch.Tensor, dict[str, Any], str]] = [
        (replace(begin, step=1), PART, known, {}, "a run at step 1 on a latent of"),
        (begin, replace(PART, latent_size=(8, 16)), known, {}, r"expected step 0 and \(8, 16\)"),
        (begin, PART, known[:1], {}, r"known latent of shape \(1, 4, 4, 6\); expected \(2, 4, 4, 6\)"),
        (begin, PART, known, {"coarse_scale": 3}, "coarse_scale 3 .*grain=3"),
        (begin, PART, known, {"coarse_scale": 0}, "coarse_scale 0"),
        (begin, PART, known, {"refine_steps": 2}, "refine_steps 2 with coarse_scale 1; expected 0 to 4, and all"),
        (begin, PART, known, {"coarse_scale": 2, "refine_steps": 5}, "refine_steps 5"),
    ]
    for run, region, latent, options, words in cases:
        with pytest.raises(ConfigError, match=words):
            complete(pipelines["sd"], run, region, latent, **options)
    with pytest.raises(PipelineError, match="came without its prompt"):
        make_region(pipelines["sd"], begin.without_prompt(), PART)
    with pytest.raises(PipelineError, match="cannot go on"):
        complete(pipelines["sd3"], begin, PART, known)
