"""The parts of the bundled models by name: what each is trained on, and how.

autoencoder -> decoder
autoencoder, text_encoder -> edge, device
autoencoder -> latent_attributes -> edge, device with a perceptual loss
attributes, sr_light, sr_diffusion
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megopt.diffusion.attribute_network import AttributeObjective, load_attribute_network
from megopt.diffusion.autoencoder import ShuffleAutoencoder
from megopt.diffusion.latent_attributes import LatentAttributeObjective, PerceptualLoss
from megopt.diffusion.model_export import ModelCard, save_network
from megopt.diffusion.super_resolution_network import (
    DiffusionObjective,
    LightObjective,
)
from megopt.diffusion.trained_parts import DENOISERS, MODEL, require_trained, trained_shared
from megopt.diffusion.training_autoencoder import (
    AutoencoderObjective,
    AutoencoderShape,
    DecoderObjective,
    encode_all,
    normalise_latents,
)
from megopt.diffusion.training_data import SceneSet, joined
from megopt.diffusion.training_denoiser import DenoiserObjective, LatentSet
from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.diffusion.training_request import PartRequest
from megopt.diffusion.training_text import TextObjective, token_numbers
from megopt.errors import ConfigError
from megopt.files import write_atomically

_LARGE_PX = 256
_LARGE_PER_SMALL = 15
_NORMALISED_OVER = 8192
_READING: Mapping[str, Any] = {
    "batch_size": 48,
    "learning_rate": 1.5e-3,
    "inner_rate": 0.02,
    "warmup_steps": 50,
    "ema_decay": 0.998,
}
"""How networks that read attributes are trained."""


def train_part(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train one part, or what is left of it, and save it.

    Returns:
        The part's folder and card.

    Raises:
        ConfigError: if there is no such part, one that it needs is not trained yet, or a checkpoint is of other
            settings.
        PipelineError: if a checkpoint cannot be read.
    """
    if request.part not in PARTS:
        message = f"part={request.part}: expected one of {', '.join(PARTS)}"
        raise ConfigError(message)
    return PARTS[request.part](request)


def _autoencoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train encoder and decoder, then normalise the latents; the encoder is final."""
    shape = AutoencoderShape(latent_channels=request.latent_channels, latent_noise=request.latent_noise)
    scenes, test = request.scenes("train", request.num_scenes), joined(list(request.test_scenes().values()))
    objective = AutoencoderObjective(shape, scenes, test, request.device)
    settings = request.settings(batch_size=8, learning_rate=1.5e-3, inner_rate=0.02, warmup_steps=50)
    trained = request.run(objective, settings)
    network: Any = trained.network.to(request.device)
    normalise_latents(network, scenes.images[:_NORMALISED_OVER], request.device)
    card = request.card(trained, network, objective.evaluate(network))
    return save_network(network, request.folder / request.name / MODEL, card, torch.float32), card


def _decoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train the decoder of a trained autoencoder further; latents, and with them the denoisers, stay valid."""
    autoencoder = _trained_autoencoder(request)
    scenes, test = request.scenes("train", request.num_scenes), joined(list(request.test_scenes().values()))
    latents = (
        cached_latents(request.folder, autoencoder, scenes, request.device),
        cached_latents(request.folder, autoencoder, scenes.reduced(2), request.device),
    )
    channels = autoencoder.config["latent_channels"]
    shape = AutoencoderShape(latent_channels=channels, latent_noise=request.latent_noise)
    objective = DecoderObjective(shape, autoencoder, latents, scenes, test, request.device)
    settings = request.settings(batch_size=8, learning_rate=1e-3, inner_rate=0.01, warmup_steps=50)
    return _one_run(request, objective, settings)


def _attributes(request: PartRequest) -> tuple[Path, ModelCard]:
    objective = AttributeObjective(request.scenes("train", request.num_scenes), request.test_scenes(), request.device)
    return _one_run(request, objective, request.settings(**_READING))


def _latent_attributes(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train the network of the perceptual loss; it reads the latents of the encoder, which a decoder's run keeps."""
    autoencoder = _trained_autoencoder(request)
    pairs = {
        name: (scenes, cached_latents(request.folder, autoencoder, scenes, request.device))
        for name, scenes in {"train": request.scenes("train", request.num_scenes), **request.test_scenes()}.items()
    }
    objective = LatentAttributeObjective(pairs.pop("train"), pairs, request.device)
    return _one_run(request, objective, request.settings(**_READING))


def _trained_autoencoder(request: PartRequest) -> Any:
    folder = require_trained(request.folder, "autoencoder")
    return ShuffleAutoencoder.from_pretrained(folder, local_files_only=True).to(request.device)


def _text_encoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train the text encoder; what is saved is the encoder without its queries, and the tokenizer."""
    objective = TextObjective(
        request.scenes("train", request.num_scenes), request.test_scenes()["unseen"], request.device
    )
    trained = request.run(objective, request.settings(batch_size=128, learning_rate=1e-3, uses_bf16=False))
    encoder: Any = trained.network.encoder
    card = request.card(trained, encoder, trained.metrics)
    folder = save_network(encoder, request.folder / request.name / MODEL, card, torch.float32)
    objective.tokenizer.save_pretrained(folder)
    return folder, card


def _denoiser(request: PartRequest) -> tuple[Path, ModelCard]:
    autoencoder, encoder, tokenizer = trained_shared(request.folder)
    autoencoder = autoencoder.to(request.device)
    shape, rate = DENOISERS[request.part]
    shape = replace(shape, latent_channels=autoencoder.config["latent_channels"], text_width=encoder.config.hidden_size)
    empty = token_numbers(tokenizer, ("",))[0]
    learnt, held_out = (
        LatentSet(
            latents=(
                cached_latents(request.folder, autoencoder, scenes, request.device),
                cached_latents(request.folder, autoencoder, scenes.reduced(2), request.device),
                cached_latents(request.folder, autoencoder, scenes.reduced(4), request.device),
            ),
            numbers=token_numbers(tokenizer, scenes.captions),
            empty=empty,
            attributes=torch.from_numpy(scenes.attributes),
        )
        for scenes in (request.scenes("train", request.num_scenes), request.test_scenes()["unseen"])
    )
    objective = DenoiserObjective(shape, encoder, learnt, held_out, request.device, perceptual_loss(request))
    settings = request.settings(batch_size=32, learning_rate=1e-3, inner_rate=rate, ema_decay=0.999)
    return _one_run(request, objective, settings)


def _super_resolution(request: PartRequest) -> tuple[Path, ModelCard]:
    num, num_test = (max(1, n // _LARGE_PER_SMALL) for n in (request.num_scenes, request.num_test_scenes))
    train_scenes = request.scenes("train", request.num_scenes), request.scenes("train", num, _LARGE_PX)
    test_scenes = (
        request.scenes("unseen", request.num_test_scenes, is_test=True),
        request.scenes("unseen", num_test, _LARGE_PX, is_test=True),
    )
    kind = LightObjective if request.part == "sr_light" else DiffusionObjective
    objective = kind(train_scenes, test_scenes, scale=request.sr_scale, device=request.device)
    return _one_run(request, objective, request.settings(batch_size=16, learning_rate=2e-3, inner_rate=0.02))


def _one_run(request: PartRequest, objective: Objective, settings: TrainingSettings) -> tuple[Path, ModelCard]:
    trained = request.run(objective, settings)
    perceptual = {name: value for name, value in objective.describe().items() if name == "perceptual"}
    card = request.card(trained, trained.network, trained.metrics, perceptual)
    return save_network(trained.network, request.folder / request.name / MODEL, card, torch.float32), card


def perceptual_loss(request: PartRequest) -> PerceptualLoss | None:
    """Return the perceptual loss that is asked for, if it is.

    Raises:
        ConfigError: if its network is not trained yet.
    """
    if not request.perceptual.weight:
        return None
    network = load_attribute_network(require_trained(request.folder, "latent_attributes"))
    return PerceptualLoss(network, request.perceptual, request.device)


def cached_latents(folder: Path, autoencoder: Any, scenes: SceneSet, device: str) -> torch.Tensor:
    """Return the latents of `scenes`, from a file of the same encoder and images if there is one."""
    digest = hashlib.sha256(scenes.images[:: max(1, len(scenes) // 64)].tobytes())
    for weight in autoencoder.encoder.state_dict().values():
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    path = folder / "data" / f"latents_{len(scenes)}_{scenes.images.shape[1]}px_{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        latents = encode_all(autoencoder, scenes.images, device).numpy()
        write_atomically(path, lambda target: np.save(target, latents))
    return torch.from_numpy(np.load(path))


PARTS: Mapping[str, Callable[[PartRequest], tuple[Path, ModelCard]]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "attributes": _attributes,
    "latent_attributes": _latent_attributes,
    "text_encoder": _text_encoder,
    "edge": _denoiser,
    "device": _denoiser,
    "sr_light": _super_resolution,
    "sr_diffusion": _super_resolution,
}
"""How each part is trained."""
