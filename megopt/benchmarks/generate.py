"""How soon the bundled models answer: cold load, one image, and what a stock pipeline needs for the same image."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from megopt.diffusion.evaluation import Sampling, generated, truth
from megopt.diffusion.pipelines import Pipeline, load
from megopt.ranges import require_whole
from megopt.torch_devices import set_threads

_LOAD = """
import time, torch
import diffusers, transformers, megopt.diffusion.sampling, megopt.diffusion.autoencoder
from megopt.diffusion.pipelines import load
begun = time.perf_counter()
load("bundled/edge")
print(time.perf_counter() - begun)
"""


def run(num_steps: int = 8, num_threads: int = 2, repeats: int = 5, seed: int = 0) -> dict[str, float]:
    """Return seconds of loading and of one 64 px image, from the bundled edge model.

    - load_s: loading the pipeline in a fresh process, after the imports, median.
    - image_s: one image at `num_steps` guided steps through megopt's loop, prompt to pixels, median.
    - stock_image_s: the same image through the pipeline's own call, median.
    - share_of_stock: image_s over stock_image_s; 1 would be as fast.

    Args:
        num_steps: denoising steps [1].
        num_threads: threads of torch [1].
        repeats: medians are over so many [1].
        seed: of caption and noise.

    Raises:
        ConfigError: for a number that is none or too small.
    """
    require_whole("benchmark generate", 1, num_steps=num_steps, repeats=repeats)
    set_threads("benchmark generate", num_threads)
    pipeline = load("bundled/edge")
    caption = truth(2, seed=seed, split="unseen").captions[0]
    sampling = Sampling(seed=seed)
    mine = _median_s(lambda: generated(pipeline, (caption,), num_steps, sampling), repeats)
    stock = _median_s(lambda: _stock(pipeline, caption, num_steps, sampling), repeats)
    loads = [_load_s() for _ in range(max(1, repeats // 2))]
    return {
        "load_s": float(np.median(loads)),
        "image_s": mine,
        "stock_image_s": stock,
        "share_of_stock": mine / stock,
        "num_steps": float(num_steps),
        "num_threads": float(num_threads),
    }


def _stock(pipeline: Pipeline, caption: str, num_steps: int, sampling: Sampling) -> object:
    import torch

    generator = torch.Generator().manual_seed(sampling.seed)
    return pipeline(
        caption,
        num_inference_steps=num_steps,
        guidance_scale=sampling.guidance_scale,
        guidance_rescale=sampling.guidance_rescale,
        generator=generator,
    )


def _median_s(call: Callable[[], object], repeats: int) -> float:
    call()
    samples = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begun)
    return float(np.median(samples))


def _load_s() -> float:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _LOAD], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
