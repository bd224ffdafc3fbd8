"""Conventional generation: edge only with a sent image, model split with a sent latent, device only.

edge only     the edge makes the image and sends it raw, or as PNG, JPEG or WebP at really measured sizes and times
model split   the edge runs all steps and sends the latent; the device decodes it
device only   the device does everything; nothing crosses the link
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megopt.errors import SchemeError
from megopt.ranges import require_whole, require_whole_list, require_within
from megopt.schemes.action_table import ActionTable, Knob, concat
from megopt.schemes.edge_run import device_steps, edge_full_runs
from megopt.schemes.scheme import identity_quality, refuse_unmeasured, table
from megopt.system.payload import image_bits, latent_bits
from megopt.tables.profile import join_kinds

if TYPE_CHECKING:
    import pandas as pd

    from megopt.tables.profile import Cost, Profile

NUM_STEPS = Knob(name="num_steps", unit="1", low=1, high=1000, meaning="denoising steps in all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventional:
    """The three ways without sharing the steps.

    Attributes:
        num_steps: step counts to offer.
        image_codecs: payloads of edge only: "raw", "png", "jpeg_75", "webp_90", ...
        prompt_bits: size of the prompt on the uplink [bit].
        codec_bits: bits per value of the latent of model split [bit].
    """

    num_steps: tuple[int, ...]
    image_codecs: tuple[str, ...] = ("raw", "png", "jpeg_90", "webp_90")
    prompt_bits: float = 1024.0
    codec_bits: int = 16
    name: str = field(default="conventional", init=False)

    def __post_init__(self) -> None:
        where = f"scheme {self.name}"
        require_whole_list(where, 1, num_steps=self.num_steps)
        require_whole(where, 1, codec_bits=self.codec_bits)
        require_within(where, 0, 1e12, prompt_bits=self.prompt_bits)

    def compile(self, profile: Profile) -> ActionTable:
        """Return the rows that `profile` can carry; see `Scheme.compile`."""
        refuse_unmeasured(profile, self.name, codec_bits=self.codec_bits != 16, num_steps=len(self.num_steps) > 1)
        runs = edge_full_runs(profile, tuple(self.num_steps))
        tables = [self._edge_only(profile, codec, runs) for codec in self.image_codecs]
        if profile.has("device", "vae_decode"):
            tables.append(self._model_split(profile, runs))
        if profile.has("device", "denoise_step"):
            tables.append(self._device_only(profile))
        return concat(tables)

    def _edge_only(self, profile: Profile, codec: str, runs: list[tuple[float, Cost]]) -> ActionTable:
        row = _image_codec(profile, codec)
        num_pixels = profile.provenance.resolution_px**2
        quality = identity_quality(profile, len(runs))
        if codec not in {"raw", "png"}:  # lossy: only the metrics that were measured on real encodes
            measured = {"ssim": float(row["ssim"]), "psnr_db": float(row["psnr_db"])}
            quality = {name: np.full(len(runs), measured.get(name, np.nan)) for name in quality}
        return table(
            scheme=self.name,
            profile=profile,
            labels=[_label(f"edge only, {codec.replace('_', ' ')}", steps) for steps, _ in runs],
            knobs=(NUM_STEPS,),
            settings={"num_steps": np.array([steps for steps, _ in runs])},
            work={
                "edge_s": np.array([cost.latency_s for _, cost in runs]) + num_pixels * row["encode_s_per_px"],
                "device_s": num_pixels * row["decode_s_per_px"],
                "downlink_bits": image_bits(profile.provenance.resolution_px, row["bits_per_pixel"]),
                "uplink_bits": self.prompt_bits,
                "num_round_trips": 1.0,
                "edge_energy_j": np.array([cost.energy_j for _, cost in runs]),
                "device_energy_j": 0.0,
            },
            quality=quality,
            kind=[join_kinds(cost.kind, "" if codec == "raw" else "measured") for _, cost in runs],
        )

    def _model_split(self, profile: Profile, runs: list[tuple[float, Cost]]) -> ActionTable:
        decode = profile.cost("device", "vae_decode")
        num_values = float(np.prod(profile.provenance.latent_shape))
        return table(
            scheme=self.name,
            profile=profile,
            labels=[_label("model split", steps) for steps, _ in runs],
            knobs=(NUM_STEPS,),
            settings={"num_steps": np.array([steps for steps, _ in runs])},
            work={
                "edge_s": np.array([cost.latency_s for _, cost in runs]),
                "device_s": decode.latency_s,
                "downlink_bits": latent_bits(num_values, self.codec_bits),
                "uplink_bits": self.prompt_bits,
                "num_round_trips": 1.0,
                "edge_energy_j": np.array([cost.energy_j for _, cost in runs]),
                "device_energy_j": decode.energy_j,
            },
            quality=identity_quality(profile, len(runs)),
            kind=[join_kinds(cost.kind, decode.kind) for _, cost in runs],
        )

    def _device_only(self, profile: Profile) -> ActionTable:
        run = device_steps(profile)
        steps = np.array(self.num_steps, dtype=np.float64)
        return table(
            scheme=self.name,
            profile=profile,
            labels=[_label("device only", n) for n in steps],
            knobs=(NUM_STEPS,),
            settings={"num_steps": steps},
            work={
                "edge_s": 0.0,
                "device_s": run.latency_s(steps),
                "downlink_bits": 0.0,
                "uplink_bits": 0.0,
                "num_round_trips": 0.0,
                "edge_energy_j": 0.0,
                "device_energy_j": run.energy_j(steps),
            },
            quality={name: np.full(len(steps), np.nan) for name in identity_quality(profile, 1)},
            kind=[run.kind] * len(steps),
        )


def _label(text: str, num_steps: float) -> str:
    return text if np.isnan(num_steps) else f"{text}, {num_steps:g} steps"


def _image_codec(profile: Profile, codec: str) -> pd.Series:
    """Return the row of payload.csv for "raw", "png", "jpeg_75", ...

    Raises:
        SchemeError: if payload.csv has no such row.
    """
    rows = profile.payload
    names = rows["codec"] + rows["codec_quality"].map(lambda q: "" if np.isnan(q) else f"_{q:g}")
    if codec not in set(names):
        message = f"image codec {codec!r} is not in payload.csv; expected one of {', '.join(names)}"
        raise SchemeError(message)
    return rows.loc[names == codec].iloc[0]
