"""Training: exact resume, learning, export, and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import megopt.diffusion
from megopt.diffusion import training_data, training_parts
from megopt.diffusion.attribute_network import AttributeObjective, accuracy, load_attribute_network, read_attributes
from megopt.diffusion.autoencoder import ShuffleAutoencoder
from megopt.diffusion.captions import MAX_TOKENS, NUM_ATTRIBUTES, VOCABULARY, attributes, caption
from megopt.diffusion.latent_attributes import PerceptualSettings
from megopt.diffusion.model_export import ModelCard, read_card, save_network, save_pipeline
from megopt.diffusion.orthogonal_momentum import orthogonalised
from megopt.diffusion.pipelines import load
from megopt.diffusion.rendering import render
from megopt.diffusion.sampling import advance, decode, start
from megopt.diffusion.scenes import sample_scenes
from megopt.diffusion.super_resolution import DiffusionUpscaler, NetworkUpscaler
from megopt.diffusion.super_resolution_network import (
    RESIDUAL_SCALE,
    DiffusionObjective,
    DiffusionSuperResolution,
    LightObjective,
    LightSuperResolution,
    residual_schedule,
)
from megopt.diffusion.trained_parts import export_models
from megopt.diffusion.training import train
from megopt.diffusion.training_autoencoder import (
    AutoencoderObjective,
    AutoencoderShape,
    DecoderObjective,
    encode_all,
    fidelity,
    normalise_latents,
    reconstruct,
)
from megopt.diffusion.training_data import SceneSet, joined, scene_set
from megopt.diffusion.training_denoiser import DenoiserObjective, DenoiserShape, LatentSet, mixed
from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.diffusion.training_parts import PARTS, train_part
from megopt.diffusion.training_request import PartRequest
from megopt.diffusion.training_run import CHECKPOINT_FILE, LOG_FILE
from megopt.diffusion.training_text import NUM_TOKENS, CaptionReader, TextObjective, token_numbers, word_tokenizer
from megopt.errors import ConfigError, PipelineError

# diffusers' schedulers hand torch tensors to numpy.array; torch has no copy keyword yet
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BUNDLED = Path(megopt.diffusion.__file__).parent / "models"
SHAPE = AutoencoderShape(widths=(16, 16, 32), encoder_blocks=(0, 1, 1), decoder_blocks=(0, 1, 1), latent_channels=4)
NUM_STEPS = 6
KINDS = ("autoencoder", "decoder", "attributes", "text_encoder", "denoiser", "sr_light", "sr_diffusion")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "SHARD_SCENES", 16)
        yield tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def scenes(data_folder: Path) -> SceneSet:
    return scene_set(data_folder, "train", 24, resolution_px=64, seed=1, shows_progress=False)


@cache
def large_scenes() -> SceneSet:
    """Return renders at four times the side."""
    large = sample_scenes(4, 4, "train")
    images, masks = render(large, 256)
    return SceneSet(
        images=images,
        masks=masks,
        attributes=np.stack([attributes(scene) for scene in large]),
        captions=tuple(caption(scene) for scene in large),
    )


def objective(kind: str, scenes: SceneSet) -> Objective:
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    if kind == "autoencoder":
        return AutoencoderObjective(SHAPE, scenes, scenes)
    if kind == "decoder":
        autoencoder = SHAPE.build()
        latents = encode_all(autoencoder, scenes.images), encode_all(autoencoder, scenes.reduced(2).images)
        return DecoderObjective(SHAPE, autoencoder, latents, scenes, scenes)
    if kind == "attributes":
        return AttributeObjective(scenes, {"seen": scenes}, width=16)
    if kind == "text_encoder":
        return TextObjective(scenes, scenes, width=32, num_layers=1)
    if kind == "denoiser":
        numbers = token_numbers(tokenizer, scenes.captions)
        latents = LatentSet(
            latents=tuple(torch.randn(1, 4, side, side).repeat(24, 1, 1, 1) for side in (16, 8, 4)),
            numbers=numbers,
            empty=token_numbers(tokenizer, ("",))[0],
        )
        shape = DenoiserShape(widths=(16, 32), text_width=32)
        return DenoiserObjective(shape, CaptionReader(tokenizer, 32, 1).encoder, latents, latents)
    sr_kind = LightObjective if kind == "sr_light" else DiffusionObjective
    return sr_kind((scenes, large_scenes()), (scenes, large_scenes()), scale=2)


def settings(num_steps: int = NUM_STEPS, **changes: Any) -> TrainingSettings:
    return TrainingSettings(
        **{"seed": 3, "num_steps": num_steps, "batch_size": 8, "inner_rate": 0.02, "warmup_steps": 2, "log_every": 2}
        | changes
    )


class StoppedAt(Objective):
    """Another objective whose process is told to stop in the midst of a step."""

    def __init__(self, inner: Objective, step: int) -> None:
        self.inner, self.num_samples, self.calls_left = inner, inner.num_samples, step

    def build(self) -> nn.Module:
        return self.inner.build()

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.inner.loss(network, rows, rng, progress)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_equals_unbroken(kind: str, scenes: SceneSet, tmp_path: Path) -> None:
    whole = train(objective(kind, scenes), settings(), tmp_path / "whole", shows_progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(StoppedAt(objective(kind, scenes), 4), settings(), tmp_path / "parts", shows_progress=False)
    assert (tmp_path / "parts" / CHECKPOINT_FILE).is_file()
    rest = train(objective(kind, scenes), settings(), tmp_path / "parts", shows_progress=False)
    assert rest.num_steps == whole.num_steps == NUM_STEPS
    assert rest.metrics == whole.metrics
    assert all(np.isfinite(list(whole.metrics.values())))
    for (name, one), other in zip(whole.network.state_dict().items(), rest.network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [line["step"] for line in lines(tmp_path / "parts")] == [line["step"] for line in lines(tmp_path / "whole")]


@pytest.mark.parametrize("kind", ["autoencoder", "attributes", "text_encoder", "denoiser"])
def test_loss_falls_on_few_scenes(kind: str, scenes: SceneSet, tmp_path: Path) -> None:
    train(objective(kind, scenes), settings(40, log_every=10, learning_rate=3e-3), tmp_path, shows_progress=False)
    losses = [line["loss"] for line in lines(tmp_path) if "learning_rate" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert lines(tmp_path)[-2]["learning_rate"] < 1e-5


def test_shorter_set_is_a_prefix_and_lost_shards_come_back(data_folder: Path, scenes: SceneSet) -> None:
    shorter = scene_set(data_folder, "train", 5, seed=1, shows_progress=False)
    assert np.array_equal(shorter.images, scenes.images[:5])
    assert shorter.captions == scenes.captions[:5]
    path = data_folder / "train_64px_seed1" / "shard_00000.npz"
    path.unlink()
    again = scene_set(data_folder, "train", 24, seed=1, shows_progress=False)
    assert np.array_equal(again.images, scenes.images)
    assert np.array_equal(again.masks, scenes.masks)
    assert len(joined([shorter, again])) == 29


def test_every_caption_word_is_one_token() -> None:
    tokenizer = word_tokenizer()
    longest = "a small red matte cube in front of a large blue glass cone , both right of a small cyan metal torus"
    text = f"{longest} , plain floor"
    assert len(text.split()) == MAX_TOKENS
    told = tokenizer(" ".join(VOCABULARY)).input_ids
    assert len(told) == len(VOCABULARY) + 2
    assert len(set(told)) == len(VOCABULARY) + 2
    assert tokenizer.decode(token_numbers(tokenizer, (text,))[0], skip_special_tokens=True) == text
    assert token_numbers(tokenizer, ("", text)).shape == (2, NUM_TOKENS)


def test_orthogonalised_keeps_directions_and_evens_their_sizes() -> None:
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.allclose(orthogonalised(matrices.mT), orthogonalised(matrices).mT, atol=1e-4)


def test_velocity_and_noisy_latent_give_the_latent_back() -> None:
    latent, noise, share = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    noisy, velocity = mixed(latent, noise, share)
    assert torch.allclose(share.sqrt() * noisy - (1 - share).sqrt() * velocity, latent, atol=1e-6)


def test_normalised_latents_have_unit_moments(scenes: SceneSet) -> None:
    autoencoder = SHAPE.build()
    normalise_latents(autoencoder, scenes.images)
    latents = encode_all(autoencoder, scenes.images).float()
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert (latents.std((0, 2, 3)) - 1.0).abs().max() < 0.02


def test_fidelity_of_known_errors(scenes: SceneSet) -> None:
    grey = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    masks = np.ones((2, 8, 8), dtype=np.bool_)
    assert fidelity(scenes.images, scenes.images, scenes.masks)["sharpness"] == 1.0
    with np.errstate(invalid="ignore"):
        assert fidelity(grey, grey + np.uint8(1), masks)["psnr_db"] == pytest.approx(20 * np.log10(255))


def test_accuracy_counts_attributes_of_present_objects_only() -> None:
    expected = np.zeros((2, NUM_ATTRIBUTES), dtype=np.int64)
    expected[:, :5] = (1, 2, 3, 4, 1)
    came = expected.copy()
    came[0, 2] = 0
    shares = accuracy(came, expected)
    assert shares == {
        "present": 1.0, "shape": 1.0, "colour": 0.5, "material": 1.0, "size": 1.0, "floor": 1.0, "all": 0.5
    }  # fmt: skip


def test_parts_train_in_order_and_export_as_pipelines_that_sample(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, smaller = (DenoiserShape(widths=widths) for widths in ((16, 32), (16, 16)))
    monkeypatch.setattr(training_parts, "DENOISERS", {"edge": (small, 0.02), "device": (smaller, 0.02)})
    monkeypatch.setattr(training_parts, "AutoencoderShape", lambda **changes: replace(SHAPE, **changes))
    (tmp_path / "data").symlink_to(data_folder)
    with_term = {"edge": {"perceptual": PerceptualSettings(weight=0.2)}}
    for part in ("autoencoder", "decoder", "attributes", "latent_attributes", "text_encoder", "edge", "device"):
        folder, card = train_part(request(part, tmp_path, **with_term.get(part, {})))
        assert read_card(folder) == card
        assert card.num_steps == 2
    names = {path.name for path in export_models(tmp_path, tmp_path / "models")}
    assert names == {"edge", "device", "attributes"}
    assert (tmp_path / "models" / "device" / "vae").is_symlink()
    images = {}
    for name in ("edge", "device"):
        pipeline = load(tmp_path / "models" / name)
        begun = start(
            pipeline, "a small red metal cone at the left , plain floor",
            num_steps=2, seed=1, sampler="ddim", guidance_scale=2.0,
        )  # fmt: skip
        images[name] = decode(pipeline, advance(pipeline, begun, 2))
        assert images[name].shape == (1, 64, 64, 3)
    assert not np.array_equal(images["edge"], images["device"])
    network = load_attribute_network(tmp_path / "models" / "attributes")
    vectors, features = read_attributes(network, images["edge"])
    assert vectors.shape == (1, NUM_ATTRIBUTES)
    assert features.shape == (1, 128)


def request(part: str, folder: Path, **changes: Any) -> PartRequest:
    arguments: dict[str, Any] = {"num_steps": 2, "budget_min": None, "num_scenes": 128, "num_test_scenes": 8}
    return PartRequest(part=part, folder=folder, shows_progress=False, **arguments | changes)


def test_a_run_from_trained_weights_draws_other_noise(tmp_path: Path) -> None:
    card = ModelCard(
        part="edge", data="", seed=1, num_steps=20, training_s=0.0, hardware="", num_parameters=0, metrics={}
    )
    card.write(tmp_path / "first")
    replace(card, num_steps=30).write(tmp_path / "second")
    starts = (None, tmp_path / "first", tmp_path / "second")
    seeds = [request("edge", tmp_path, start=start).settings().seed for start in starts]
    assert seeds[0] == 1
    assert len(set(seeds)) == len(seeds)


@pytest.mark.skipif(not (BUNDLED / "attributes").is_dir(), reason="no bundled attribute network")
def test_bundled_attribute_network_reads_real_scenes() -> None:
    scenes = sample_scenes(12345, 96, "unseen")
    network = load_attribute_network(BUNDLED / "attributes")
    vectors, features = read_attributes(network, render(scenes, 64)[0])
    shares = accuracy(vectors, np.stack([attributes(scene) for scene in scenes]))
    assert min(shares[name] for name in ("present", "shape", "colour", "size", "floor")) > 0.95
    assert shares["material"] > 0.92  # 0.975 on 1024 scenes
    assert features.shape == (96, 128)
    card = read_card(BUNDLED / "attributes")
    assert min(share for name, share in card.metrics.items() if not name.endswith("_all")) >= 0.97


def test_half_precision_export_reconstructs_alike(scenes: SceneSet, tmp_path: Path) -> None:
    autoencoder = SHAPE.build().eval()
    card = ModelCard(
        part="autoencoder", data="", seed=0, num_steps=0, training_s=0.0, hardware="", num_parameters=0, metrics={}
    )
    folder = save_network(autoencoder, tmp_path / "vae", card)
    again = ShuffleAutoencoder.from_pretrained(folder, local_files_only=True).eval()
    assert autoencoder.dtype == torch.float32
    difference = reconstruct(again, scenes.images).astype(int) - reconstruct(autoencoder, scenes.images)
    assert np.abs(difference).max() <= 2


def test_super_resolution_networks_fit_their_upscalers() -> None:
    small = np.full((1, 16, 16, 3), 120, dtype=np.uint8)
    light = NetworkUpscaler(network=LightSuperResolution(scale=4).eval(), scale=4)
    assert np.abs(light.upscale(small).astype(int) - 120).max() <= 1  # an untrained one adds nothing
    network = DiffusionSuperResolution(scale=2, widths=(8, 8, 8)).eval()
    diffusion = DiffusionUpscaler(
        network=network, scheduler=residual_schedule(), scale=2, num_steps=2, residual_scale=RESIDUAL_SCALE
    )
    assert diffusion.upscale(small).shape == (1, 32, 32, 3)


def test_a_damaged_checkpoint_is_named(scenes: SceneSet, tmp_path: Path) -> None:
    train(objective("text_encoder", scenes), settings(2), tmp_path, shows_progress=False)
    path = tmp_path / CHECKPOINT_FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PipelineError, match=r"checkpoint\.pt: .*resume=false to begin anew"):
        train(objective("text_encoder", scenes), settings(2), tmp_path, shows_progress=False)
    fresh = train(objective("text_encoder", scenes), settings(2), tmp_path, is_resumed=False, shows_progress=False)
    assert fresh.num_steps == 2


def test_a_checkpoint_of_another_run_is_refused(scenes: SceneSet, tmp_path: Path) -> None:
    train(objective("text_encoder", scenes), settings(2), tmp_path, shows_progress=False)
    with pytest.raises(ConfigError, match="of another run: seed 3 against 4"):
        train(objective("text_encoder", scenes), settings(2, seed=4), tmp_path, shows_progress=False)


def test_a_damaged_shard_is_named(data_folder: Path) -> None:
    scene_set(data_folder, "any", 2, seed=7, shows_progress=False)
    path = data_folder / "any_64px_seed7" / "shard_00000.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"shard_00000\.npz: .*delete it, and it is rendered again"):
        scene_set(data_folder, "any", 2, seed=7, shows_progress=False)


def test_impossible_requests_are_refused(scenes: SceneSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"part=unet: expected one of {', '.join(PARTS)}"):
        train_part(request("unet", tmp_path))
    for minutes in (0, -1.0):
        with pytest.raises(ConfigError, match=f"budget_min={minutes}: expected minutes > 0"):
            request("edge", tmp_path, budget_min=minutes, num_steps=None)
    with pytest.raises(ConfigError, match=r"budget_s is -1\.0; expected a number > 0"):
        settings(num_steps=None, budget_s=-1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_steps None, budget_s None; expected one of the two"):
        settings(num_steps=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="24 samples for batches of 25"):
        train(objective("text_encoder", scenes), settings(batch_size=25), tmp_path, shows_progress=False)
    with pytest.raises(ConfigError, match=r"autoencoder: not trained yet; run `megopt train-models part=autoencoder`"):
        train_part(request("edge", tmp_path))
    with pytest.raises(ConfigError, match="no trained parts to export"):
        export_models(tmp_path, tmp_path / "models")
    with pytest.raises(ConfigError, match="scale is 3; expected one of"):
        LightObjective((scenes, scenes), (scenes, scenes), scale=3)
    with pytest.raises(ConfigError, match="num is 0; expected an integer >= 1"):
        scene_set(tmp_path, "train", 0, seed=1)


def test_shared_parts_must_be_there(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    parts: Any = (
        DenoiserShape(widths=(16, 32), text_width=32).build(),
        SHAPE.build(),
        CaptionReader(tokenizer, 32, 1).encoder,
        tokenizer,
    )
    with pytest.raises(PipelineError, match="no vae beside"):
        save_pipeline(*parts, tmp_path / "device", {}, shared_with=tmp_path / "edge")
    assert not (tmp_path / "device").exists()
