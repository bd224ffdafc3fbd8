"""Fixtures of several files: tiny pipelines with random weights, a clock that stands still, recorded energies."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=20)  # shared machines stall now and then
settings.register_profile("thorough", deadline=None, max_examples=100)


def pytest_configure(config: pytest.Config) -> None:
    """Look at fewer generated cases where slow tests are left out; tests may ask for a multiple of them."""
    is_quick = "not slow" in (config.getoption("markexpr") or "")
    settings.load_profile("quick" if is_quick else "thorough")


def pytest_collectstart() -> None:
    """Do without the collector while test modules are imported: next to nothing of what that makes is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let the collector begin, and pass over what the imports made: it stays to the end."""
    gc.freeze()
    gc.enable()


PipelineFolders = dict[str, Path]
WORDS = ("a", "red", "blue", "cube", "cat", "on", "grass", "blurry")


@pytest.fixture
def clock() -> Any:
    """A `FakeClock`, which stands still until told."""
    from tests.fake_meters import FakeClock

    return FakeClock()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three recorded windows of an H100, the second without energy."""
    path = tmp_path / "energy.csv"
    path.write_text("energy_j,energy_source,device\n1.5,nvml,H100\n,not_measured,H100\n2.5,nvml,H100\n")
    return path


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> PipelineFolders:
    """Folders of saved pipelines: sd, sdxl, sd3, and sd_device, a smaller denoiser in sd's latent space."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pipelines")
    built = {"sd": _sd(16), "sd_device": _sd(8), "sdxl": _sdxl(), "sd3": _sd3()}
    for name, pipeline in built.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in built}


@pytest.fixture(scope="session")
def load_tiny(tiny_pipelines: PipelineFolders) -> Callable[[str], Any]:
    """Load a fresh object of a tiny pipeline by name."""
    from megopt.diffusion.pipelines import load

    return lambda name: load(tiny_pipelines[name])


def _tokenizer() -> Any:
    """Byte pairs that join the letters of WORDS from the left: the same in every run, unlike trained ones."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(pieces)):
            pair = ("".join(pieces[:end]), pieces[end])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=16)


def _text_encoder(tokenizer: Any, width: int, *, has_projection: bool) -> Any:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if has_projection else CLIPTextModel)(config).eval()


def _autoencoder(channels: int, **config: Any) -> Any:
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **config,
    ).eval()


def _unet(width: int, text_width: int, **config: Any) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        **config,
    ).eval()


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def _sd(width: int) -> Any:
    from diffusers import StableDiffusionPipeline

    tokenizer = _tokenizer()
    return StableDiffusionPipeline(
        vae=_autoencoder(4, scaling_factor=0.18215),
        text_encoder=_text_encoder(tokenizer, 16, has_projection=False),
        tokenizer=tokenizer,
        unet=_unet(width, 16),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline

    tokenizer = _tokenizer()
    unet = _unet(
        8, 24 + 16, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=72
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(4, scaling_factor=0.13025),
        text_encoder=_text_encoder(tokenizer, 16, has_projection=False),
        text_encoder_2=_text_encoder(tokenizer, 24, has_projection=True),
        tokenizer=tokenizer,
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=_ddim(),
        add_watermarker=False,
    )


def _sd3() -> Any:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = _tokenizer()
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=40,
        pos_embed_max_size=16,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=_text_encoder(tokenizer, 16, has_projection=True),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(tokenizer, 24, has_projection=True),
        tokenizer_2=_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
