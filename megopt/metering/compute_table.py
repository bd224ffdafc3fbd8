"""compute.csv: what each part of a split generation costs on the hardware at hand, for both sides.

| component | what is timed |
|---|---|
| text_encoder | a caption to its conditioning, guided |
| denoise_step | one guided step: a run of `STEPS_TIMED` steps over their number, so the scheduler's share is in it |
| vae_decode | a finished latent to an image |
| pipeline_overhead | a whole run less its steps: text, noise, scheduler, decoding |
| merge, unmerge | half of the tokens of a latent |
| codec_encode, codec_decode | a latent at 8 bits, checksum included |
| ..super_resolution_x.. | an image of 1 / s of the side to the full side: mean over `IMAGES_TIMED` scenes |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from megopt.diffusion import codec, merging
from megopt.diffusion.conditioning import encode
from megopt.diffusion.evaluation import Sampling, truth
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.rendering import Images
from megopt.diffusion.sampling import advance, decode, start
from megopt.metering.compute_row import compute_row
from megopt.metering.energy import Meter
from megopt.metering.flops import count_flops
from megopt.metering.measure import Measurement, measure
from megopt.metering.quality_generator import Upscalers
from megopt.ranges import require_whole, require_whole_list
from megopt.tables.schema import UPSCALERS

STEPS_TIMED = 8
IMAGES_TIMED = 8
_MERGE_RATIO, _CODEC_BITS = 0.5, 8
_INTERVAL = 0.03
"""Half interval of a median, relative, at which timing stops."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """Who computes, with what, on how much of the machine.

    Attributes:
        name: "edge" or "device".
        model: name of the model, for the table.
        pipeline: the model.
        meter: of the energy.
        num_threads: threads of a CPU side.
        batch_sizes: images computed together at the full side; below it one.
        upscalers: what enlarges to the full side, by kind and scale; a device has them.
    """

    name: str
    model: str
    pipeline: Pipeline
    meter: Meter
    num_threads: int = 1
    batch_sizes: tuple[int, ...] = (1,)
    upscalers: Upscalers

    def __post_init__(self) -> None:
        require_whole(self.name, 1, num_threads=self.num_threads)
        require_whole_list(self.name, 1, batch_sizes=self.batch_sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One row to be measured: a callable that does `num_units` of what the row is about."""

    component: str
    resolution_px: int
    batch_size: int
    call: Callable[[], object]
    num_units: int = 1
    counts_flops: bool = True


def measure_compute(
    sides: tuple[Side, ...],
    *,
    caption: str,
    resolution_px: int,
    sr_scales: tuple[int, ...],
    sampling: Sampling,
    source: str,
    budget_s: float = 4.0,
) -> list[dict[str, object]]:
    """Return the rows of compute.csv.

    Args:
        sides: edge and device.
        caption: what is drawn.
        resolution_px: side of the target.
        sr_scales: images are made at 1 / s of that side.
        sampling: how steps are done.
        source: key of the source in provenance.json.
        budget_s: most seconds per row, after ten calls.
    """
    plans = [
        (side, list(_parts(side, caption, resolution_px, scale, sampling))) for side in sides for scale in sr_scales
    ]
    rows = []
    with tqdm(total=sum(len(parts) for _, parts in plans), desc="compute", unit="row") as bar:
        for side, parts in plans:
            with _threads(side.num_threads):
                for part in parts:
                    rows.append(_measured(side, part, source, budget_s))
                    bar.update()
    return rows


def _measured(side: Side, part: Part, source: str, budget_s: float) -> dict[str, object]:
    found = measure(part.call, meter=side.meter, relative_interval=_INTERVAL, budget_s=budget_s)
    flops = count_flops(part.call).total / part.num_units if part.counts_flops else None
    return compute_row(
        _per_unit(found, part.num_units),
        side=side.name,
        model=side.model,
        component=part.component,
        resolution_px=part.resolution_px,
        batch_size=part.batch_size,
        source=source,
        flops=flops,
    )


def _per_unit(found: Measurement, num_units: int) -> Measurement:
    return replace(found, samples_s=found.samples_s / num_units, energy_j=found.energy_j / num_units)


def _parts(side: Side, caption: str, resolution_px: int, scale: int, sampling: Sampling) -> Iterator[Part]:
    px = resolution_px // scale
    for batch_size in side.batch_sizes if scale == 1 else (1,):
        run = _Run(side.pipeline, caption, px, batch_size, sampling)
        where: dict[str, Any] = {"resolution_px": px, "batch_size": batch_size}
        yield Part(component="text_encoder", call=run.encode, **where)
        yield Part(component="denoise_step", call=run.steps, num_units=STEPS_TIMED, **where)
        yield Part(component="vae_decode", call=run.decode, **where)
        yield Part(component="pipeline_overhead", call=run.overhead, **where)
    yield from _payload_parts(side, run.latent, px)
    for (kind, factor), upscale in side.upscalers.items():
        if scale > 1 and factor == scale:
            yield _upscaling(f"{UPSCALERS[kind]}{scale}", upscale, px, resolution_px)


def _upscaling(component: str, upscale: Callable[[Images], Images], px: int, resolution_px: int) -> Part:
    """Return the upscaling of scenes one by one: how many patches are foreground depends on the image."""
    images = truth(IMAGES_TIMED, seed=0, split="unseen", resolution_px=px).images
    return Part(
        component=component,
        resolution_px=resolution_px,
        batch_size=1,
        call=lambda: [upscale(image[None]) for image in images],
        num_units=IMAGES_TIMED,
    )


def _payload_parts(side: Side, latent: codec.Latent, px: int) -> Iterator[Part]:
    """Yield what a side does to a latent that crosses the link: the edge sends, the device receives."""
    merged = merging.merge(latent, _MERGE_RATIO)
    payload = codec.encode(latent, _CODEC_BITS)
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "edge": {
            "merge": lambda: merging.merge(latent, _MERGE_RATIO),
            "codec_encode": lambda: codec.encode(latent, _CODEC_BITS),
        },
        "device": {"unmerge": lambda: merging.unmerge(merged), "codec_decode": lambda: codec.decode(payload)},
    }
    for component, call in calls[side.name].items():
        yield Part(component=component, resolution_px=px, batch_size=1, call=call, counts_flops=False)


class _Run:
    """The pieces of one run, each ready to be called again."""

    def __init__(self, pipeline: Pipeline, caption: str, px: int, batch_size: int, sampling: Sampling) -> None:
        self._pipeline, self._px, self._sampling = pipeline, px, sampling
        self._captions = (caption,) * batch_size
        self._begun, self._told = self._start(), self.encode()
        self._done = advance(pipeline, self._begun, STEPS_TIMED, self._told)

    @property
    def latent(self) -> codec.Latent:
        """Latent of the first image after those steps."""
        return codec.as_latent(self._done.latent[0].float().cpu().numpy())

    def encode(self) -> Any:
        """Encode the caption for every image of the batch."""
        return encode(
            self._pipeline,
            self._captions,
            guidance_scale=self._sampling.guidance_scale,
            resolution_px=(self._px, self._px),
        )

    def steps(self) -> Any:
        """Run the steps that are timed."""
        return advance(self._pipeline, self._begun, STEPS_TIMED, self._told)

    def decode(self) -> Images:
        return decode(self._pipeline, self._done)

    def overhead(self) -> Images:
        self._start()
        self.encode()
        return self.decode()

    def _start(self) -> Any:
        return start(
            self._pipeline,
            self._captions,
            num_steps=STEPS_TIMED,
            seed=self._sampling.seed,
            sampler=self._sampling.sampler,
            guidance_scale=self._sampling.guidance_scale,
            guidance_rescale=self._sampling.guidance_rescale,
            resolution_px=self._px,
        )


@contextmanager
def _threads(num: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
