"""Columns of the tables in `profiles/`: name, unit, dtype, range, meaning; files, checks and axis labels use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Dtype = Literal["text", "float", "int"]

KINDS = {
    "measured": "measured by megopt on real hardware, with the command in provenance.json",
    "published": "read from a public source that measured it",
    "modelled": "computed from a stated formula or a stated parameter",
    "composed": "put together from rows of several sources or kinds",
}
"""Where a row comes from; every row of every table has exactly one of these."""

ENERGY_SOURCES = {
    "nvml": "NVIDIA energy counter, GPU only",
    "rapl": "Intel or AMD package energy counter",
    "power_model": "stated watts times latency; never a measurement",
    "not_measured": "no joules are known; the cell is empty, never 0",
}
"""Where the joules of a row come from."""

COMPONENTS = {
    "text_encoder": "prompt to conditioning",
    "denoise_step": "one guided denoising step",
    "vae_decode": "latent to image",
    "pipeline": "a whole run of num_steps steps, prompt to image",
    "pipeline_overhead": "a whole run without its denoising steps",
    "whole_generation": "a whole run whose step count the source does not give",
    "coarse_pass": "region split: coarse full image on the device, at cost factor 1 and full power",
    "refine_pass": "region split: refinement of the whole image on the device, at cost factor 1 and full power",
    "merge": "token merging of a latent",
    "unmerge": "undoing the merge",
    "codec_encode": "latent, merged or not, to packed payload",
    "codec_decode": "packed payload to latent",
    "super_resolution_x2": "image upscaling by 2, light network",
    "super_resolution_x4": "image upscaling by 4, light network",
    "diffusion_super_resolution_x2": "image upscaling by 2, diffusion",
    "diffusion_super_resolution_x4": "image upscaling by 4, diffusion",
    "hybrid_super_resolution_x2": "image upscaling by 2, diffusion on patches with foreground, light on the others",
    "hybrid_super_resolution_x4": "image upscaling by 4, likewise",
}
"""What a compute row can time. A super-resolution row stands at the side of its output, any other row at the side of
the image that the component works on."""

UPSCALERS = {
    "light": "super_resolution_x",
    "diffusion": "diffusion_super_resolution_x",
    "hybrid": "hybrid_super_resolution_x",
}
"""Components by kind of super-resolution, without the factor."""
UPSCALED_ROWS = {"light": "step_split", "diffusion": "step_split_diffusion_sr", "hybrid": "step_split_hybrid_sr"}
"""Scheme name of the quality rows with an upscaled image, by kind of super-resolution."""

PSNR_CEILING_DB = float(10.0 * np.log10(255.0**2 * 12.0))
"""Peak SNR of identical images [dB], 58.92: outputs are rounded to 8 bits, and a rounding error spread evenly over one
step has the mean square 1/12. A measured `psnr_db` counts as at most this, so that means over images stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: header of the column, with its SI suffix.
        unit: unit as text, "1" for pure numbers, "" for text.
        dtype: how a cell is read.
        meaning: one line.
        low: smallest legal value.
        high: largest legal value.
        is_nullable: whether a cell may be empty (not measured, or not a knob of that row).
        choices: legal texts, all where empty.
    """

    name: str
    unit: str
    dtype: Dtype
    meaning: str
    low: float = -np.inf
    high: float = np.inf
    is_nullable: bool = False
    choices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Axis label: meaning and unit."""
        return self.meaning if self.unit in {"", "1"} else f"{self.meaning} [{self.unit}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quality metric.

    Attributes:
        name: how tables and configurations call it.
        unit: unit as text.
        sense: +1 where more is better, -1 where less is better.
        identity: value for an output equal to its reference; NaN where the metric has no reference image.
        meaning: one line.
    """

    name: str
    unit: str
    sense: int
    identity: float
    meaning: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="ssim", unit="1", sense=1, identity=1.0, meaning="structural similarity to the full edge output"),
        Metric(name="ms_ssim", unit="1", sense=1, identity=1.0, meaning="multi-scale SSIM to the full edge output"),
        Metric(name="psnr_db", unit="dB", sense=1, identity=np.inf, meaning="peak SNR to the full edge output"),
        Metric(
            name="sharpness", unit="1", sense=1, identity=np.nan, meaning="Laplacian energy over that of real scenes"
        ),
        Metric(
            name="frechet",
            unit="1",
            sense=-1,
            identity=np.nan,
            meaning="Frechet distance of attribute features to real scenes",
        ),
        Metric(name="fid", unit="1", sense=-1, identity=np.nan, meaning="Frechet inception distance, as in the source"),
        Metric(name="clip", unit="1", sense=1, identity=np.nan, meaning="CLIP score of image and prompt"),
        Metric(name="alignment", unit="1", sense=1, identity=np.nan, meaning="share of captioned attributes shown"),
    )
}
METRIC_SENSES = {metric.name: metric.sense for metric in METRICS.values()}

_KIND = Column(name="kind", unit="", dtype="text", meaning="where the row comes from", choices=tuple(KINDS))
_SOURCE = Column(name="source", unit="", dtype="text", meaning="key of a source in provenance.json")

COMPUTE = (
    Column(name="side", unit="", dtype="text", meaning="who computes", choices=("edge", "device")),
    Column(name="model", unit="", dtype="text", meaning="model that was run"),
    Column(
        name="component", unit="", dtype="text", meaning="part of the run that was timed", choices=tuple(COMPONENTS)
    ),
    Column(name="resolution_px", unit="px", dtype="int", meaning="side of the image (SR: of its output)", low=1),
    Column(name="batch_size", unit="1", dtype="int", meaning="images computed together", low=1),
    Column(name="num_steps", unit="1", dtype="int", meaning="denoising steps (pipeline rows)", low=1, is_nullable=True),
    Column(name="latency_s", unit="s", dtype="float", meaning="wall time of the whole batch", low=0.0),
    Column(
        name="latency_std_s",
        unit="s",
        dtype="float",
        meaning="standard deviation of the wall time over trials",
        low=0.0,
        is_nullable=True,
    ),
    Column(name="energy_j", unit="J", dtype="float", meaning="energy of the whole batch", low=0.0, is_nullable=True),
    Column(
        name="energy_source", unit="", dtype="text", meaning="where the joules come from", choices=tuple(ENERGY_SOURCES)
    ),
    Column(
        name="flops",
        unit="1",
        dtype="float",
        meaning="floating point operations of the whole batch",
        low=0.0,
        is_nullable=True,
    ),
    Column(name="num_trials", unit="1", dtype="int", meaning="timed calls behind the row", low=1, is_nullable=True),
    _KIND,
    _SOURCE,
)
QUALITY_KNOBS = ("num_steps", "split_step", "merge_ratio", "sr_scale", "codec_bits", "region_ratio", "snr_db")
"""Knobs of a quality row. Rows with `snr_db` are analog hand-overs, rows without are digital."""
QUALITY = (
    Column(name="scheme", unit="", dtype="text", meaning="how the request was shared"),
    Column(name="num_steps", unit="1", dtype="int", meaning="denoising steps in all", low=1, is_nullable=True),
    Column(name="split_step", unit="1", dtype="int", meaning="steps run on the edge", low=0, is_nullable=True),
    Column(
        name="merge_ratio",
        unit="1",
        dtype="float",
        meaning="share of tokens merged away",
        low=0,
        high=1,
        is_nullable=True,
    ),
    Column(
        name="sr_scale",
        unit="1",
        dtype="int",
        meaning="upscaling factor on the device",
        low=1,
        high=8,
        is_nullable=True,
    ),
    Column(
        name="codec_bits", unit="bit", dtype="int", meaning="bits per latent value", low=1, high=32, is_nullable=True
    ),
    Column(
        name="region_ratio",
        unit="1",
        dtype="float",
        meaning="share of the image made at the edge",
        low=0,
        high=1,
        is_nullable=True,
    ),
    Column(name="snr_db", unit="dB", dtype="float", meaning="received SNR of an analog hand-over", is_nullable=True),
    Column(name="metric", unit="", dtype="text", meaning="name of the quality metric", choices=tuple(METRICS)),
    Column(name="value", unit="metric", dtype="float", meaning="value of the metric"),
    Column(name="std", unit="metric", dtype="float", meaning="standard deviation over images", low=0, is_nullable=True),
    Column(name="low", unit="metric", dtype="float", meaning="lower end of its 95 % interval", is_nullable=True),
    Column(name="high", unit="metric", dtype="float", meaning="upper end of its 95 % interval", is_nullable=True),
    Column(name="num_images", unit="1", dtype="int", meaning="images behind the value", low=1, is_nullable=True),
    _KIND,
    _SOURCE,
)
PAYLOAD = (
    Column(name="codec", unit="", dtype="text", meaning="image format", choices=("raw", "png", "jpeg", "webp")),
    Column(
        name="codec_quality",
        unit="1",
        dtype="int",
        meaning="quality setting; empty for lossless",
        low=1,
        high=100,
        is_nullable=True,
    ),
    Column(name="bits_per_pixel", unit="bit/px", dtype="float", meaning="mean size of the encoded image", low=0),
    Column(name="bits_per_pixel_std", unit="bit/px", dtype="float", meaning="standard deviation over images", low=0),
    Column(
        name="psnr_db",
        unit="dB",
        dtype="float",
        meaning="mean peak SNR to the raw image; empty for lossless",
        low=0,
        is_nullable=True,
    ),
    Column(name="ssim", unit="1", dtype="float", meaning="mean structural similarity to the raw image", low=-1, high=1),
    Column(name="encode_s_per_px", unit="s/px", dtype="float", meaning="time to encode, one core", low=0),
    Column(name="decode_s_per_px", unit="s/px", dtype="float", meaning="time to decode, one core", low=0),
    Column(name="num_images", unit="1", dtype="int", meaning="images behind the row", low=1),
    _KIND,
    _SOURCE,
)
TABLES = {"compute.csv": COMPUTE, "quality.csv": QUALITY, "payload.csv": PAYLOAD}
"""The tables that a profile folder may hold, by file name."""
