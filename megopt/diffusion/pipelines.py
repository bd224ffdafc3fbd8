"""Stable Diffusion pipelines, loaded from the hub or from a folder, and the latent space that each one speaks.

Supported are the text-to-image classes of three families; anything of the same class works, whatever its size:

| family | class of `diffusers` | denoiser | text encoders |
|---|---|---|---|
| sd | StableDiffusionPipeline | unet | 1 |
| sdxl | StableDiffusionXLPipeline | unet | 2 |
| sd3 | StableDiffusion3Pipeline | transformer | 2, and a third that may be left out |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from megopt.diffusion.bundled import located
from megopt.errors import ConfigError, PipelineError
from megopt.torch_devices import require_device

Pipeline: TypeAlias = Any
"""A pipeline of one of the classes above; `diffusers` gives them no common type that knows its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the pipelines of one class have in common.

    Attributes:
        name: short name.
        pipeline_class: class name in `diffusers`.
        denoiser: part that predicts noise or velocity.
        parts: parts that it cannot run without.
        spare_parts: parts that it can run without, but does not load without being told so.
    """

    name: str
    pipeline_class: str
    denoiser: str
    parts: tuple[str, ...]
    spare_parts: tuple[str, ...] = ()


_ONE_ENCODER = ("vae", "scheduler", "tokenizer", "text_encoder")
_TWO_ENCODERS = (*_ONE_ENCODER, "tokenizer_2", "text_encoder_2")
FAMILIES = (
    Family(name="sd", pipeline_class="StableDiffusionPipeline", denoiser="unet", parts=("unet", *_ONE_ENCODER)),
    Family(name="sdxl", pipeline_class="StableDiffusionXLPipeline", denoiser="unet", parts=("unet", *_TWO_ENCODERS)),
    Family(
        name="sd3",
        pipeline_class="StableDiffusion3Pipeline",
        denoiser="transformer",
        parts=("transformer", *_TWO_ENCODERS),
        spare_parts=("text_encoder_3", "tokenizer_3"),
    ),
)
DTYPES = ("float32", "float16", "bfloat16")
_DIGEST_VALUES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpace:
    """What two pipelines must share before one can go on from the other's latent. The family need not be the same.

    Attributes:
        family: name of the family.
        channels: latent channels.
        scale_factor: pixels per latent position along a side.
        scaling_factor: the autoencoder's latent is divided by this before decoding.
        shift_factor: added after that division.
        prediction_type: what the denoiser predicts: "epsilon", "v_prediction", "sample" or "flow".
        noise_schedule: the noise levels of training, in words.
    """

    family: str
    channels: int
    scale_factor: int
    scaling_factor: float
    shift_factor: float
    prediction_type: str
    noise_schedule: str

    def differences(self, other: LatentSpace) -> list[str]:
        """Return what keeps `other` from going on from a latent of this space; empty if nothing does."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} against {theirs[name]!r}"
            for name in mine
            if name != "family" and mine[name] != theirs[name]
        ]


def load(model: str | Path, device: str = "cpu", dtype: str = "float32", without: Collection[str] = ()) -> Pipeline:
    """Return the pipeline of `model`, on `device`.

    Args:
        model: "bundled/edge", "bundled/device", a folder written by `save_pretrained` (the network is not used for any
            of these), or the name of a model on the hub.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: one of `DTYPES`.
        without: parts to leave out, such as SD3's "text_encoder_3" and "tokenizer_3"; in a folder those that are not
            there are left out by themselves.

    Raises:
        ConfigError: for another dtype, or a device that is not there.
        PipelineError: if the folder or the hub has no such pipeline, its class is not supported, or a part is missing.
    """
    import torch
    from diffusers import DiffusionPipeline

    import megopt.diffusion.autoencoder  # noqa: F401  # diffusers loads parts of imported modules only

    read: Any = DiffusionPipeline.from_pretrained  # carries no types
    if dtype not in DTYPES:
        message = f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}"
        raise ConfigError(message)
    require_device("models", device)
    model = located(model)
    is_local = Path(model).is_dir()
    left_out = set(without)
    if is_local:
        left_out |= _absent_spare_parts(Path(model))
    elif isinstance(model, Path) or str(model).startswith((".", "/", "~")):
        message = f"{model}: no such folder; give a folder written by save_pretrained or the name of a model on the hub"
        raise PipelineError(message)
    try:
        with _quiet():
            pipeline = read(
                str(model), dtype=getattr(torch, dtype), local_files_only=is_local, **dict.fromkeys(left_out)
            )
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:  # what diffusers raises for a broken or absent model
        message = f"{model}: diffusers cannot load it: {error}"
        raise PipelineError(message) from error
    latent_space(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and remarks of the libraries from the screen while a pipeline is loaded; errors are raised as ever."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


def family(pipeline: Pipeline) -> Family:
    """Return the family of `pipeline`.

    Raises:
        PipelineError: if its class is not supported or a part is missing.
    """
    found = _family_of(type(pipeline).__name__, "pipeline")
    _check_parts(found, {part for part in found.parts if getattr(pipeline, part, None) is not None}, "pipeline")
    return found


def denoiser(pipeline: Pipeline) -> Any:
    """Return the part of `pipeline` that is run once per step, a torch module with a `config`."""
    return getattr(pipeline, family(pipeline).denoiser)


def latent_space(pipeline: Pipeline) -> LatentSpace:
    """Return the latent space of `pipeline`.

    Raises:
        PipelineError: if its class is not supported, a part is missing, or the denoiser does not fit the autoencoder.
    """
    found = family(pipeline)
    autoencoder, model = pipeline.vae.config, denoiser(pipeline).config
    channels = int(model["in_channels"])
    if channels != autoencoder["latent_channels"]:
        message = (
            f"pipeline: the {found.denoiser} takes {channels} channels, the autoencoder has "
            f"{autoencoder['latent_channels']}; inpainting and editing models are not supported"
        )
        raise PipelineError(message)
    schedule = pipeline.scheduler.config
    return LatentSpace(
        family=found.name,
        channels=channels,
        scale_factor=int(pipeline.vae_scale_factor),
        scaling_factor=float(autoencoder.get("scaling_factor") or 1.0),
        shift_factor=float(autoencoder.get("shift_factor") or 0.0),
        prediction_type="flow" if found.name == "sd3" else str(schedule.get("prediction_type", "epsilon")),
        noise_schedule=_noise_schedule(schedule, is_flow=found.name == "sd3"),
    )


def weights_digest(pipeline: Pipeline) -> str:
    """Return a short digest of the weights of `pipeline`: of the names, shapes and first values of all of them."""
    digest = hashlib.sha256()
    for part in family(pipeline).parts:
        network = getattr(pipeline, part)
        for name, weight in network.state_dict().items() if hasattr(network, "state_dict") else ():
            head = weight.detach().flatten()[:_DIGEST_VALUES].float().cpu().numpy().tobytes()
            digest.update(f"{part}.{name} {tuple(weight.shape)}".encode() + head)
    return digest.hexdigest()[:16]


def _noise_schedule(config: Mapping[str, Any], *, is_flow: bool) -> str:
    num_levels = config["num_train_timesteps"]
    if is_flow:
        return f"flow, {num_levels} levels"
    if config.get("trained_betas") is not None:
        return f"betas {[float(beta) for beta in config['trained_betas']]}"
    tail = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    return f"{config['beta_schedule']} {config['beta_start']:g}..{config['beta_end']:g}, {num_levels} levels{tail}"


def _absent_spare_parts(folder: Path) -> set[str]:
    """Check class and parts of a saved pipeline before anything is loaded; return the spare parts that it lacks."""
    index = folder / "model_index.json"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{index}: {error}; expected the index of a pipeline written by save_pretrained"
        raise PipelineError(message) from error
    found = _family_of(str(content.get("_class_name")), str(index))
    named = {part for part in (*found.parts, *found.spare_parts) if (content.get(part) or [None])[0] is not None}
    present = {part for part in named if (folder / part).is_dir()}
    _check_parts(found, present, str(folder))
    return set(found.spare_parts) - present


def _family_of(class_name: str, where: str) -> Family:
    for candidate in FAMILIES:
        if candidate.pipeline_class == class_name:
            return candidate
    message = f"{where}: class {class_name}; supported are {', '.join(known.pipeline_class for known in FAMILIES)}"
    raise PipelineError(message)


def _check_parts(found: Family, present: Collection[str], where: str) -> None:
    missing = sorted(set(found.parts) - set(present))
    if missing:
        message = f"{where}: {found.pipeline_class} without {', '.join(missing)}; save it whole, with save_pretrained"
        raise PipelineError(message)
