"""What a hand-over costs the user's image, and what it gives away: to who hears it, and to the edge.

    packed   the user's image, against the same hand-over with every number as it is
    heard    the latent that crosses, without the prompt, taken from its noise level to none by the public edge model
    edge     the edge's own end of the run: it has the prompt, the noise and the model
    guess    the image of another prompt and noise, which nobody had to hear

The last three are held against the image that the user gets; all by PSNR, equal images counted as 99 dB. There is no
secret between the ends, so this is a measure and no protection. Source: the distances of what the server sees that
Lambda-Split (arXiv 2310.14651) measures offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from megopt.diffusion import codec
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import conditioning_hash
from megopt.diffusion.evaluation import truth
from megopt.diffusion.metrics import psnr_db
from megopt.diffusion.pipelines import Pipeline, load
from megopt.diffusion.rendering import Images
from megopt.diffusion.sampling import advance, decode, start
from megopt.live.decision import EXACT_BITS
from megopt.live.runs import without_noise
from megopt.ranges import require_whole

SIDE_PX = 64
MOST_DB = 99.0
"""In place of the infinite PSNR of equal images [dB]."""


def run(
    num_images: int,
    num_steps: int,
    split_steps: Sequence[int],
    codec_bits: Sequence[int],
    seed: int,
    edge: str = "bundled/edge",
    device: str = "bundled/device",
    side_px: int = SIDE_PX,
) -> dict[str, float]:
    """Return PSNR as means over images [dB].

    - handover.guess_psnr_db: of the image of another prompt, for comparison.
    - handover.K.edge_psnr_db: of what the edge makes of the run by itself, where the device goes on after K steps.
    - handover.K.BITS.packed_psnr_db: of the user's image at so many bits a value, against that at 32.
    - handover.K.BITS.heard_psnr_db: of what can be seen in a hand-over at K steps and so many bits a value.

    Args:
        num_images: prompts, each with noise of its own [1].
        num_steps: denoising steps of the run [1].
        split_steps: steps of the edge, each between 1 and num_steps.
        codec_bits: bits per value of the hand-over; 32 for all of it.
        seed: of prompts and noise.
        edge: model of the edge, as `megopt.diffusion.pipelines.load` takes it.
        device: of the device.
        side_px: of the images [px].
    """
    require_whole("hand-over benchmark", 2, num_images=num_images)
    pipelines = load(edge), load(device)
    texts = truth(num_images, seed=seed, split="unseen").captions
    seeds = [seed + number for number in range(num_images)]
    begun = start(
        pipelines[0],
        texts,
        num_steps=num_steps,
        seed=seeds,
        sampler="ddim",
        guidance_scale=3.0,
        guidance_rescale=0.7,
        resolution_px=side_px,
    )
    unsplit = _finished(pipelines[0], begun)
    found = {"handover.guess_psnr_db": _mean_db(np.roll(unsplit, 1, axis=0), unsplit)}
    for split_step in split_steps:
        passed = advance(pipelines[0], begun, split_step)
        exact = _finished(pipelines[1], passed)
        found[f"handover.{split_step}.edge_psnr_db"] = _mean_db(unsplit, exact)
        for bits in codec_bits:
            sent = replace(passed, latent=_sent(passed.latent, bits))
            image, key = _finished(pipelines[1], sent), f"handover.{split_step}.{bits}"
            found[f"{key}.packed_psnr_db"] = _mean_db(image, exact)
            heard = decode(pipelines[0], without_noise(pipelines[0], _untold(sent)))
            found[f"{key}.heard_psnr_db"] = _mean_db(heard, image)
    return found


def _mean_db(images: Images, reference: Images) -> float:
    return float(psnr_db(images, reference).clip(max=MOST_DB).mean())


def _finished(pipeline: Pipeline, run: Checkpoint) -> Images:
    return decode(pipeline, advance(pipeline, run, run.num_steps))


def _sent(latent: torch.Tensor, bits: int) -> torch.Tensor:
    """Return what the receiver of a batch of latents holds."""
    if bits == EXACT_BITS:
        return latent
    return torch.from_numpy(np.stack([codec.decode(codec.encode(one.cpu().numpy(), bits)) for one in latent]))


def _untold(run: Checkpoint) -> Checkpoint:
    """Return the run as somebody holds it who does not know what it is to show."""
    texts = ("",) * len(run.latent)
    told = {"negative_prompt": None, "guidance_scale": 1.0, "guidance_rescale": 0.0}
    return replace(run, prompt=texts, conditioning_hash=conditioning_hash(texts, None), **told)
