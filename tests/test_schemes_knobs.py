"""Every measured knob in every scheme, on a made-up profile with all of them: rows are exactly what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megopt.diffusion import codec, merging
from megopt.errors import ConfigError, NotOfferedError, OutOfTableError, SchemeError
from megopt.policies.fixed import Fixed
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.row_costs import generation_px
from megopt.schemes.step_split import KNOBS, StepSplit
from megopt.system.payload import meg_cvpo_bits
from megopt.tables.profile import PROFILES_DIR, Profile, load_profile
from megopt.tables.schema import COMPUTE, QUALITY

STEPS, MERGES, BITS, SCALES = (2, 4, 8), (0.0, 0.5), (16, 8, 4), (1, 2, 4)
FULL_PX, CHANNELS, LATENT = 64, 4, 16
ALL: dict[str, Any] = {"num_steps": None, "merge_ratios": None, "codec_bits": None, "sr_scales": None}
HOLE = (8, 8, 0.5, 4, 4)
"""A combination that was not measured."""
GENERATION = {  # seconds at the full side, edge and device
    "text_encoder": (0.003, 0.007),
    "denoise_step": (0.010, 0.050),
    "vae_decode": (0.020, 0.090),
    "merge": (0.001, None),
    "unmerge": (None, 0.002),
    "codec_encode": (0.004, None),
    "codec_decode": (None, 0.005),
}
UPSCALING = {"super_resolution_x2": 0.03, "super_resolution_x4": 0.025, "diffusion_super_resolution_x2": 0.3}


def seconds(side: str, component: str, scale: int = 1) -> float:
    """Return the time of a component when generating at 1/scale of the side: what the profile's rows say."""
    pair = GENERATION[component]
    full = pair[0] if side == "edge" else pair[1]
    assert full is not None
    return full / (1.0 if component == "text_encoder" else scale**1.5)


def compute_rows() -> Iterator[dict[str, Any]]:
    for component, (side, at) in product(GENERATION, (("edge", 0), ("device", 1))):
        scales = (1,) if component == "text_encoder" else SCALES
        for scale in scales if GENERATION[component][at] is not None else ():
            latency_s = seconds(side, component, scale)
            yield {"side": side, "component": component, "resolution_px": FULL_PX // scale, "latency_s": latency_s}
    for component, latency_s in UPSCALING.items():
        yield {"side": "device", "component": component, "resolution_px": FULL_PX, "latency_s": latency_s}


def psnr_db(n: float, k: float, merge: float, bits: float, scale: float) -> float:
    return 30.0 + n + 0.5 * k / n - 6.0 * merge - 8.0 / bits - 2.0 * scale


def points() -> Iterator[dict[str, Any]]:
    """Yield every measured combination; device only leaves the knobs of a hand-over empty."""
    for n, scale in product(STEPS, SCALES):
        yield {"num_steps": n, "split_step": 0, "sr_scale": scale, "value": psnr_db(n, 0, 0.0, 16, scale)}
        for k, merge, bits in product(range(1, n + 1), MERGES, BITS):
            if (n, k, merge, bits, scale) != HOLE:
                knobs = {"num_steps": n, "split_step": k, "merge_ratio": merge, "codec_bits": bits, "sr_scale": scale}
                yield knobs | {"value": psnr_db(n, k, merge, bits, scale)}


def quality_rows() -> Iterator[dict[str, Any]]:
    for point in points():
        yield {"scheme": "step_split", "metric": "psnr_db"} | point
        yield {"scheme": "step_split", "metric": "ssim"} | point | {"value": point["value"] / 60.0}
        if point["split_step"] and point["merge_ratio"] == 0.0:
            yield {"scheme": "step_split", "metric": "psnr_db", "snr_db": 5.0} | point | {"value": 99.0}
        if point["sr_scale"] == 2:
            yield {"scheme": "step_split_diffusion_sr", "metric": "psnr_db"} | point | {"value": point["value"] + 1.0}


def write_profile(folder: Path, *, without: tuple[str, ...] = ()) -> Profile:
    """Write and load the profile, without the components named."""
    folder.mkdir()
    every = {
        "model": "made_up",
        "batch_size": 1,
        "energy_source": "power_model",
        "kind": "modelled",
        "source": "made_up",
    }
    rows = [every | row | {"energy_j": 5.0 * row["latency_s"]} for row in compute_rows()]
    compute = pd.DataFrame([row for row in rows if row["component"] not in without])
    quality = pd.DataFrame([{"kind": "modelled", "source": "made_up"} | row for row in quality_rows()])
    compute.reindex(columns=[column.name for column in COMPUTE]).to_csv(folder / "compute.csv", index=False)
    quality.reindex(columns=[column.name for column in QUALITY]).to_csv(folder / "quality.csv", index=False)
    provenance = json.loads((PROFILES_DIR / "a100__snapdragon8gen3__sdxl" / "provenance.json").read_text())
    made_up = {"title": "made up", "where": "this test", "method": "formulas"}
    provenance |= {"latent_shape": [CHANNELS, LATENT, LATENT], "resolution_px": FULL_PX, "parameters": {}}
    (folder / "provenance.json").write_text(json.dumps(provenance | {"sources": {"made_up": made_up}}))
    return load_profile(folder)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return write_profile(tmp_path_factory.mktemp("profiles") / "made_up")


@pytest.fixture(scope="module")
def split(profile: Profile) -> ActionTable:
    return StepSplit(**ALL).compile(profile)


@pytest.fixture(scope="module")
def whole(profile: Profile) -> ActionTable:
    return Conventional(**ALL, image_codecs=("raw", "png", "jpeg_90")).compile(profile)


def beginning(table: ActionTable, text: str) -> ActionTable:
    return table.take(np.flatnonzero(np.char.startswith(table.label, text)))


def knobs_of(table: ActionTable) -> dict[str, np.ndarray]:
    return {knob.name: table.settings[:, i] for i, knob in enumerate(table.knobs)}


def encoded_bits(merge: float, bits: float, scale: float) -> int:
    latent = np.random.default_rng(1).normal(size=(CHANNELS, LATENT // int(scale), LATENT // int(scale)))
    if merge == 0.0:
        return 8 * len(codec.encode(latent, int(bits)))
    return 8 * len(merging.encode(merging.merge(latent, merge), int(bits)))


# --- step split -----------------------------------------------------------------------------------------------------


def test_null_offers_exactly_what_was_measured(split: ActionTable) -> None:
    measured = {
        (p["num_steps"], p["split_step"], p["merge_ratio"], p["codec_bits"], p["sr_scale"])
        for p in points()
        if 0 < p["split_step"] < p["num_steps"]
    }
    assert [knob.name for knob in KNOBS] == ["num_steps", "split_step", "merge_ratio", "codec_bits", "sr_scale"]
    assert set(map(tuple, split.settings.tolist())) == measured
    assert len(split) == len(measured) == (1 + 3 + 7) * len(MERGES) * len(BITS) * len(SCALES)


def test_quality_is_that_of_the_row_and_never_an_analog_one(split: ActionTable) -> None:
    np.testing.assert_allclose(split.metric("psnr_db"), [psnr_db(*row) for row in split.settings])
    np.testing.assert_allclose(split.metric("ssim"), split.metric("psnr_db") / 60.0)


def test_payloads_are_those_of_real_encodes_for_every_row(split: ActionTable, whole: ActionTable) -> None:
    for table in (split, beginning(whole, "model split")):
        knobs = knobs_of(table)
        columns = zip(knobs["merge_ratio"], knobs["codec_bits"], knobs["sr_scale"], strict=True)
        assert table.work.downlink_bits.tolist() == [encoded_bits(*row) for row in columns]


def test_a_row_by_hand(split: ActionTable) -> None:
    """3 of 8 steps, half the tokens merged, 8 bit, half the side."""
    row = int(np.flatnonzero((split.settings == [8, 3, 0.5, 8, 2]).all(axis=1))[0])
    half = 2**1.5
    edge_s = 0.003 + (3 * 0.010 + 0.001 + 0.004) / half
    device_s = 0.007 + (0.005 + 0.002 + 5 * 0.050 + 0.090) / half + 0.03
    assert split.label[row] == "3 of 8 steps at the edge, merge 0.5, 8 bit, x2"
    assert split.work.edge_s[row] == pytest.approx(edge_s)
    assert split.work.device_s[row] == pytest.approx(device_s)
    assert split.work.edge_energy_j[row] == pytest.approx(5.0 * edge_s)
    assert split.work.device_energy_j[row] == pytest.approx(5.0 * device_s)


def test_labels_tell_rows_apart(split: ActionTable, whole: ActionTable) -> None:
    for table in (split, whole):
        assert len(set(table.label)) == len(table)


def test_stated_values_narrow_the_offer(profile: Profile, split: ActionTable) -> None:
    narrow = StepSplit(**ALL | {"num_steps": (4,), "codec_bits": (8, 4), "split_steps": (1, 3)}).compile(profile)
    assert len(narrow) == 2 * len(MERGES) * 2 * len(SCALES)
    assert set(map(tuple, narrow.settings.tolist())) < set(map(tuple, split.settings.tolist()))


def test_defaults_are_the_neutral_knobs(profile: Profile) -> None:
    table = StepSplit(num_steps=(8,)).compile(profile)
    np.testing.assert_array_equal(table.settings[:, 2:], np.broadcast_to([0.0, 16.0, 1.0], (7, 3)))


def test_the_limits_of_step_split_are_in_conventional(split: ActionTable, whole: ActionTable) -> None:
    """k = N - 1 and one step more is model split, up to the device's prompt; k = 1 and one step less is device only."""
    model_split, device_only = beginning(whole, "model split"), beginning(whole, "device only")
    for table, k_of in ((model_split, lambda n: n - 1), (device_only, lambda n: 1)):
        for setting, edge_s, device_s in zip(table.settings, table.work.edge_s, table.work.device_s, strict=True):
            n, merge, bits, scale = setting
            neighbour = (split.settings == [n, k_of(n), merge, bits, scale]).all(axis=1)
            row, scale = int(np.flatnonzero(neighbour)[0]), int(scale)
            if table is model_split:
                assert edge_s == pytest.approx(split.work.edge_s[row] + seconds("edge", "denoise_step", scale))
                less = seconds("device", "denoise_step", scale) + seconds("device", "text_encoder")
                assert device_s == pytest.approx(split.work.device_s[row] - less)
            else:
                unpack = seconds("device", "codec_decode", scale)
                assert device_s == pytest.approx(
                    split.work.device_s[row] + seconds("device", "denoise_step", scale) - unpack
                )


# --- conventional ---------------------------------------------------------------------------------------------------


def test_conventional_offers_what_was_measured(whole: ActionTable) -> None:
    for text in ("edge only, raw", "edge only, png", "device only"):
        assert len(beginning(whole, text)) == len(STEPS) * len(SCALES)
    jpeg = beginning(whole, "edge only, jpeg")
    assert jpeg.settings[:, 3].tolist() == [1.0] * len(STEPS)  # nobody measured an upscaled JPEG
    model_split = beginning(whole, "model split")
    assert len(model_split) == len(STEPS) * len(MERGES) * len(BITS) * len(SCALES) - 1  # the hole
    n, merge, bits, scale = model_split.settings.T
    np.testing.assert_allclose(model_split.metric("psnr_db"), psnr_db(n, n, merge, bits, scale))


def test_device_only_has_the_quality_of_the_device(whole: ActionTable) -> None:
    device_only, edge_only = beginning(whole, "device only"), beginning(whole, "edge only, png")
    n, _, _, scale = device_only.settings.T
    np.testing.assert_allclose(device_only.metric("psnr_db"), psnr_db(n, 0, 0.0, 16, scale))
    np.testing.assert_array_equal(device_only.settings, edge_only.settings)
    np.testing.assert_allclose(edge_only.metric("psnr_db") - device_only.metric("psnr_db"), 0.5)
    assert np.all(device_only.work.downlink_bits == 0.0)


def test_edge_only_sends_the_small_image_and_the_device_upscales(whole: ActionTable) -> None:
    table = beginning(whole, "edge only, raw")
    scale = table.settings[:, 3]
    np.testing.assert_allclose(table.work.downlink_bits, 24.0 * np.square(FULL_PX / scale))
    np.testing.assert_allclose(table.work.device_s, np.select([scale == 2, scale == 4], [0.03, 0.025], 0.0))
    n = table.settings[:, 0]
    generation = 0.003 + (0.020 + n * 0.010) / scale**1.5
    np.testing.assert_allclose(table.work.edge_s, generation)


def test_errors_of_generation_and_image_codec_add_up(whole: ActionTable, profile: Profile) -> None:
    raw, jpeg = beginning(whole, "edge only, raw"), beginning(whole, "edge only, jpeg")
    own_db = profile.payload.query("codec == 'jpeg' and codec_quality == 90")["psnr_db"].item()
    raw_db = raw.metric("psnr_db")[raw.settings[:, 3] == 1]
    errors = 10.0 ** (-raw_db / 10.0) + 10.0 ** (-own_db / 10.0)
    np.testing.assert_allclose(jpeg.metric("psnr_db"), -10.0 * np.log10(errors))
    assert np.isnan(jpeg.metric("ssim")).all()
    assert set(jpeg.kind) == {"measured+modelled"}


def test_the_first_row_of_each_way_is_the_longest_and_least_altered(whole: ActionTable) -> None:
    for text in ("model split", "device only", "edge only, raw", "edge only, jpeg"):
        policy = Fixed(table=whole, problem=Problem(objective="latency_s"), scheme="conventional", label=text)
        row = int(np.argmax(policy._matches()))
        assert whole.settings[row].tolist() == [8.0, 0.0, 16.0, 1.0]


# --- super-resolution, accountings ----------------------------------------------------------------------------------


def test_diffusion_super_resolution_has_its_own_cost_and_quality(profile: Profile) -> None:
    light, diffusion = (
        StepSplit(**ALL | {"num_steps": (8,), "sr_scales": (2,)}, sr_kind=kind).compile(profile)
        for kind in ("light", "diffusion")
    )
    np.testing.assert_array_equal(light.settings, diffusion.settings)
    np.testing.assert_allclose(diffusion.work.device_s - light.work.device_s, 0.3 - 0.03)
    np.testing.assert_allclose(diffusion.metric("psnr_db") - light.metric("psnr_db"), 1.0)
    everything = StepSplit(**ALL, sr_kind="diffusion").compile(profile)
    assert set(knobs_of(everything)["sr_scale"]) == {1.0, 2.0}
    with pytest.raises(OutOfTableError, match="nothing at sr_scale = 4 with sr_kind=diffusion; expected some of 1, 2"):
        StepSplit(num_steps=(8,), sr_scales=(4,), sr_kind="diffusion").compile(profile)


def test_the_formula_of_meg_cvpo_counts_in_its_place(profile: Profile, split: ActionTable) -> None:
    table = StepSplit(**ALL, payload="meg_cvpo").compile(profile)
    np.testing.assert_array_equal(table.settings, split.settings)
    _, _, merge, bits, scale = table.settings.T
    num_values = CHANNELS * (LATENT / scale) ** 2
    np.testing.assert_allclose(table.work.downlink_bits, meg_cvpo_bits(num_values, bits, merge))
    assert np.all(table.work.downlink_bits < split.work.downlink_bits)


def test_hand_overs_without_timed_codec(tmp_path: Path) -> None:
    bare = write_profile(tmp_path / "bare", without=("codec_encode", "codec_decode", "merge"))
    table = StepSplit(num_steps=(8,)).compile(bare)
    np.testing.assert_allclose(table.work.edge_s, 0.003 + 0.010 * np.arange(1, 8))
    with pytest.raises(NotOfferedError, match="bare has no row for edge codec_encode at 64 px"):
        StepSplit(num_steps=(8,), codec_bits=(8,)).compile(bare)
    with pytest.raises(NotOfferedError, match="bare has no row for edge merge at 16 px"):
        Conventional(num_steps=(8,), merge_ratios=(0.5,), sr_scales=(4,)).compile(bare)


def test_missing_upscaling_is_named(tmp_path: Path) -> None:
    bare = write_profile(tmp_path / "bare", without=("super_resolution_x4",))
    with pytest.raises(NotOfferedError, match="bare has no row for device super_resolution_x4 at 64 px"):
        StepSplit(**ALL).compile(bare)


def test_an_edge_that_times_no_decode_has_no_image_to_send(tmp_path: Path) -> None:
    bare = write_profile(tmp_path / "bare", without=("vae_decode",))
    with pytest.raises(NotOfferedError, match="no row for edge vae_decode at 64 px"):
        Conventional(num_steps=(8,)).compile(bare)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StepSplit, Conventional])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sr_scales": (3,)}, "sr_scales holds 3; expected 1, 2, 4; change sr_scales"),
        ({"sr_kind": "cubic"}, "sr_kind holds 'cubic'; expected light, diffusion"),
        ({"payload": "bytes"}, "payload holds 'bytes'; expected frame, meg_cvpo"),
        ({"codec_bits": (12,)}, "with payload=frame: codec_bits holds 12; expected 4, 8, 16"),
        ({"merge_ratios": ()}, r"merge_ratios is \(\); expected a list of shares"),
        ({"merge_ratios": 0.5}, "merge_ratios is 0.5; expected a list of shares"),
        ({"merge_ratios": (1.5,)}, "merge_ratios is 1.5 at index 0"),
    ],
)
def test_impossible_knobs_are_refused(kind: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(num_steps=(8,), **change)


@pytest.mark.parametrize("kind", [StepSplit, Conventional])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": (8, 5)}, "measured nothing at num_steps = 5; expected some of 2, 4, 8, or null for all"),
        ({"merge_ratios": (0.25,)}, "measured nothing at merge_ratio = 0.25; expected some of 0, 0.5"),
        (
            {"codec_bits": (12,), "payload": "meg_cvpo"},
            "measured nothing at codec_bits = 12; expected some of 4, 8, 16",
        ),
    ],
)
def test_values_that_were_not_measured_are_named(
    profile: Profile, kind: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OutOfTableError, match=message):
        kind(**{"num_steps": (8,)} | change).compile(profile)


def test_nothing_measured_at_the_offered_knobs(tmp_path: Path) -> None:
    every = write_profile(tmp_path / "only")
    only = replace(every, quality=every.quality[every.quality["split_step"] == 0])
    with pytest.raises(NotOfferedError, match="measured no combination of the offered knobs"):
        StepSplit(**ALL).compile(only)
    labels = Conventional(**ALL).compile(only).label
    assert np.char.startswith(labels, "device only").all()


def test_null_steps_need_a_profile_that_measured_them() -> None:
    a100 = load_profile("a100__snapdragon8gen3__sdxl")
    for scheme in (StepSplit(**ALL), Conventional(**ALL)):
        with pytest.raises(
            SchemeError, match=r"num_steps is null, and profile a100.* measured no quality over num_steps"
        ):
            scheme.compile(a100)
    with pytest.raises(SchemeError, match="holds no quality over sr_scale, which would look free"):
        StepSplit(num_steps=(25,), sr_scales=(1, 2)).compile(a100)


def test_null_knobs_of_a_profile_without_quality_are_the_neutral_ones() -> None:
    a100 = load_profile("a100__snapdragon8gen3__sdxl")
    every, neutral = StepSplit(**ALL | {"num_steps": (25,)}).compile(a100), StepSplit(num_steps=(25,)).compile(a100)
    np.testing.assert_array_equal(every.settings, neutral.settings)
    table = Conventional(**ALL).compile(load_profile("megsplitting_sdxl"))
    assert np.isnan(table.settings[:, 0]).all()


def test_a_side_that_cannot_be_divided_is_refused(profile: Profile) -> None:
    assert generation_px(profile, 4.0) == 16
    with pytest.raises(SchemeError, match="sr_scale 32 does not divide the image of 64 px and the latent of 16x16"):
        generation_px(profile, 32.0)


def test_step_order_is_the_stated_one(profile: Profile) -> None:
    table = Conventional(num_steps=(4, 8, 2), image_codecs=("raw",)).compile(profile)
    assert beginning(table, "model split").settings[:, 0].tolist() == [4.0, 8.0, 2.0]
