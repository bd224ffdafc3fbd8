"""What a hand-over costs the user's image, and what it gives away: to who hears it, and to the edge.

    packed   the user's image, against the same hand-over with every number as it is
    heard    the latent that crosses, without the prompt, taken from its noise level to none by the public edge model
    edge     the edge's own end of the run: it has the prompt, the noise and the model
    guess    the user's image of another prompt and noise, which nobody had to hear

The last three are held against the image that the user gets; all by PSNR, equal images counted as 99 dB. There is no
secret between the ends, so this is a measure and no protection. Source: the distances of what the server sees that
Lambda-Split (arXiv 2310.14651) measures offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from megopt.diffusion import codec
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import conditioning_hash
from megopt.diffusion.evaluation import truth
from megopt.diffusion.metrics import psnr_db
from megopt.diffusion.pipelines import Pipeline, load
from megopt.diffusion.rendering import Images
from megopt.diffusion.sampling import advance, decode, start
from megopt.errors import ConfigError
from megopt.live.decision import EXACT_BITS
from megopt.live.runs import without_noise
from megopt.ranges import require_whole, require_whole_list

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

    - handover.K.guess_psnr_db: of the user's image of another prompt, for comparison.
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

    Raises:
        ConfigError: for less than two images, split steps outside the run, or bits that no codec has.
    """
    require_whole("benchmark handover", 2, num_images=num_images)
    require_whole_list("benchmark handover", 1, split_steps=split_steps, codec_bits=codec_bits)
    if max(split_steps) > num_steps:
        message = f"benchmark handover: split_steps {split_steps} of a run of {num_steps}; expected at most its steps"
        raise ConfigError(message)
    pipelines = load(edge), load(device)
    begun = start(
        pipelines[0],
        truth(num_images, seed=seed, split="unseen").captions,
        num_steps=num_steps,
        seed=[seed + number for number in range(num_images)],
        sampler="ddim",
        guidance_scale=3.0,
        guidance_rescale=0.7,
        resolution_px=side_px,
    )
    unsplit = _finished(pipelines[0], begun)
    found: dict[str, float] = {}
    for split_step in tqdm(split_steps, desc="hand-overs", unit="step", disable=None):
        passed = advance(pipelines[0], begun, split_step)
        scores = _scores(pipelines, passed, unsplit, codec_bits)
        found |= {f"handover.{split_step}.{key}": value for key, value in scores.items()}
    return found


def _scores(
    pipelines: tuple[Pipeline, Pipeline], passed: Checkpoint, unsplit: Images, codec_bits: Sequence[int]
) -> dict[str, float]:
    """Return what one hand-over of several runs costs and gives away.

    Args:
        pipelines: of edge and device.
        passed: the runs as the edge hands them over, with every number as it is.
        unsplit: what the edge makes of them.
        codec_bits: bits per value.
    """
    exact = _finished(pipelines[1], passed)
    found = {"guess_psnr_db": _mean_db(np.roll(exact, 1, axis=0), exact), "edge_psnr_db": _mean_db(unsplit, exact)}
    for bits in codec_bits:
        sent = replace(passed, latent=_sent(passed.latent, bits))
        image = _finished(pipelines[1], sent)
        heard = decode(pipelines[0], without_noise(pipelines[0], _untold(sent)))
        found |= {f"{bits}.packed_psnr_db": _mean_db(image, exact), f"{bits}.heard_psnr_db": _mean_db(heard, image)}
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
    return replace(
        run,
        prompt=texts,
        negative_prompt=None,
        conditioning_hash=conditioning_hash(texts, None),
        guidance_scale=1.0,
        guidance_rescale=0.0,
    )
