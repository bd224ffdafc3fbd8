"""Conventional generation: edge only with a sent image, model split with a sent latent, device only.

edge only     the edge makes the image and sends it raw, or as PNG, JPEG or WebP at really measured sizes and times
model split   the edge runs all steps and sends the latent; the device decodes it
device only   the device does everything; nothing crosses the link

All three may generate at 1/s of the side, and the device upscales by s; a lossy image is sent at the full side only,
for nobody measured what upscaling makes of its artefacts. Model split may merge and pack its latent: that is the action
space of MEG-CVPO (arXiv 2407.07245).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError, NotOfferedError, SchemeError
from megopt.ranges import require_within
from megopt.schemes.action_table import ActionTable, concat
from megopt.schemes.hand_over import hand_over
from megopt.schemes.offer import CODEC_BITS, MERGE_RATIO, NUM_STEPS, SR_SCALE, Offer, alterations
from megopt.schemes.row_costs import RowCoster, RowCosts, generation_px, work_columns
from megopt.schemes.scheme import identity_quality, table
from megopt.system.payload import image_bits
from megopt.tables.profile import join_kinds
from megopt.tables.quality_points import NEUTRAL, POINT_KNOBS, UNALTERED, QualityPoints
from megopt.units import db_from_linear, linear_from_db

if TYPE_CHECKING:
    import pandas as pd

    from megopt.tables.profile import Profile

KNOBS = (NUM_STEPS, MERGE_RATIO, CODEC_BITS, SR_SCALE)
WAYS = ("edge_only", "model_split", "device_only")
LOSSLESS = ("raw", "png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventional:
    """The three ways without sharing the steps.

    In the lists of knobs None stands for all that the profile measured. Rows without a latent on the link hold the
    neutral values of merge_ratio and codec_bits. Edge only has the quality of model split at 16 bit without merging.

    Attributes:
        num_steps: step counts to offer.
        image_codecs: payloads of edge only: "raw", "png", "jpeg_75", "webp_90", ...
        merge_ratios: merging ratios of model split; above 0 needs merge and unmerge rows and measured quality.
        codec_bits: bits per latent value of model split; other than 16 needs codec rows and measured quality.
        sr_scales: upscaling factors, of 1, 2 and 4; above 1 needs rows at that resolution and measured quality.
        sr_kind: "light", "diffusion" or "hybrid" super-resolution.
        payload: of model split: "frame" for the real frames to the byte, "meg_cvpo" for that paper's formula.
        prompt_bits: size of the prompt on the uplink [bit].
        ways: which of `WAYS` to offer.
    """

    num_steps: tuple[int, ...] | None
    image_codecs: tuple[str, ...] = ("raw", "png", "jpeg_90", "webp_90")
    merge_ratios: tuple[float, ...] | None = (0.0,)
    codec_bits: tuple[int, ...] | None = (16,)
    sr_scales: tuple[int, ...] | None = (1,)
    sr_kind: str = "light"
    payload: str = "frame"
    prompt_bits: float = 1024.0
    ways: tuple[str, ...] = WAYS
    name: str = field(default="conventional", init=False)

    def __post_init__(self) -> None:
        self._offer()
        if not self.ways or set(self.ways) - set(WAYS):
            message = f"scheme {self.name}: ways is {list(self.ways)}; expected some of {', '.join(WAYS)}"
            raise ConfigError(message)
        require_within(f"scheme {self.name}", 0, 1e12, prompt_bits=self.prompt_bits)

    def compile(self, profile: Profile) -> ActionTable:
        """Return the rows that `profile` can carry and that were measured; see `Scheme.compile`."""
        offer = self._offer()
        points = offer.points(profile)
        # what sends no latent has none to alter
        unaltered = replace(offer, merge_ratios=(NEUTRAL["merge_ratio"],), codec_bits=(int(NEUTRAL["codec_bits"]),))
        images = _full_runs(profile, unaltered, points)
        codecs = self.image_codecs if "edge_only" in self.ways else ()
        tables = [self._edge_only(profile, codec, images, points) for codec in codecs]
        if "model_split" in self.ways and profile.has("device", "vae_decode"):
            tables.append(self._model_split(profile, _full_runs(profile, offer, points), points))
        if "device_only" in self.ways and profile.has("device", "denoise_step"):
            tables.append(self._device_only(profile, unaltered.settings(profile, points, lambda _: (0,)), points))
        tables = [part for part in tables if len(part)]
        if not tables:
            message = (
                f"scheme {self.name}: profiles/{profile.name}/quality.csv measured no whole run at the offered knobs; "
                "offer other values, or null for all that were measured"
            )
            raise NotOfferedError(message)
        return concat(tables)

    def _offer(self) -> Offer:
        return Offer(
            scheme=self.name,
            num_steps=self.num_steps,
            merge_ratios=self.merge_ratios,
            codec_bits=self.codec_bits,
            sr_scales=self.sr_scales,
            sr_kind=self.sr_kind,
            payload=self.payload,
        )

    def _edge_only(self, profile: Profile, codec: str, settings: FloatArray, points: QualityPoints) -> ActionTable:
        row = _image_codec(profile, codec)
        if codec not in LOSSLESS:
            settings = settings[settings[:, -1] == NEUTRAL["sr_scale"]]
        coster = RowCoster(profile=profile, scheme=self.name, sr_scale=settings[:, -1])
        side_px = np.array([float(generation_px(profile, scale)) for scale in coster.sr_scale])
        edge = _edge_run(coster, settings[:, 0], sends_latent=False)
        device = coster.upscaling(self.sr_kind)
        work = work_columns(edge, device, image_bits(side_px, row["bits_per_pixel"]), self.prompt_bits)
        work["edge_s"] = edge.latency_s + np.square(side_px) * row["encode_s_per_px"]
        work["device_s"] = device.latency_s + np.square(side_px) * row["decode_s_per_px"]
        quality = _full_quality(profile, settings, points)
        kinds = [edge.kind, device.kind, points.kind, "" if codec == "raw" else "measured"]
        if codec not in LOSSLESS:
            kinds.append("modelled" if "psnr_db" in points.metrics else "")
            quality = _after_image_codec(quality, row)
        text = f"edge only, {codec.replace('_', ' ')}"
        return self._table(profile, text, settings, work, quality, join_kinds(*kinds))

    def _model_split(self, profile: Profile, settings: FloatArray, points: QualityPoints) -> ActionTable:
        merge_ratio, codec_bits, sr_scale = settings[:, 2:].T
        coster = RowCoster(profile=profile, scheme=self.name, sr_scale=sr_scale)
        passed = hand_over(coster, merge_ratio, codec_bits, self.payload)
        edge = _edge_run(coster, settings[:, 0], sends_latent=True) + passed.edge
        device = passed.device + coster.of("device", "vae_decode") + coster.upscaling(self.sr_kind)
        work = work_columns(edge, device, passed.downlink_bits, self.prompt_bits)
        kind = join_kinds(edge.kind, device.kind, points.kind)
        return self._table(profile, "model split", settings, work, _full_quality(profile, settings, points), kind)

    def _device_only(self, profile: Profile, settings: FloatArray, points: QualityPoints) -> ActionTable:
        coster = RowCoster(profile=profile, scheme=self.name, sr_scale=settings[:, -1])
        device = coster.device_run(settings[:, 0]) + coster.upscaling(self.sr_kind)
        nothing = np.zeros(len(settings))
        idle = RowCosts(latency_s=nothing, energy_j=nothing, kind="")
        work = work_columns(idle, device, nothing, 0.0) | {"num_round_trips": 0.0}
        if "split_step" in points.held:
            quality, kind = _named(points, settings), join_kinds(device.kind, points.kind)
        else:  # what the edge's model gives says nothing about the device's
            unknown = np.full(len(settings), np.nan)
            quality, kind = dict.fromkeys(_full_quality(profile, settings, points), unknown), device.kind
        return self._table(profile, "device only", settings, work, quality, kind)

    def _table(
        self,
        profile: Profile,
        text: str,
        settings: FloatArray,
        work: dict[str, FloatArray | float],
        quality: dict[str, FloatArray],
        kind: str,
    ) -> ActionTable:
        knobs = {knob.name: settings[:, POINT_KNOBS.index(knob.name)] for knob in KNOBS}
        return table(
            scheme=self.name,
            profile=profile,
            labels=[_label(text, row) for row in settings],
            knobs=KNOBS,
            settings=knobs,
            work=work,
            quality=quality,
            kind=[kind] * len(settings),
        )


def _label(text: str, setting: FloatArray) -> str:
    num_steps = "" if np.isnan(setting[0]) else f", {setting[0]:g} steps"
    return f"{text}{num_steps}{alterations(*setting[2:])}"


def _full_runs(profile: Profile, offer: Offer, points: QualityPoints) -> FloatArray:
    """Return the settings of runs whose steps are all on the edge, shape (num_rows, 5).

    A profile that only times whole generations has one run, of unknown step count (NaN).

    Raises:
        NotOfferedError: if the profile times neither steps nor whole generations.
    """
    if profile.has("edge", "denoise_step"):
        return offer.settings(profile, points, lambda num_steps: (num_steps,))
    if profile.has("edge", "whole_generation"):
        return UNALTERED[np.newaxis].copy()
    message = (
        f"profile {profile.name} times neither edge denoise_step nor edge whole_generation; add one to compute.csv"
    )
    raise NotOfferedError(message)


def _edge_run(coster: RowCoster, num_steps: FloatArray, *, sends_latent: bool) -> RowCosts:
    if not coster.profile.has("edge", "denoise_step"):
        return coster.of("edge", "whole_generation")
    return coster.edge_latent_run(num_steps) if sends_latent else coster.edge_image_run(num_steps)


def _full_quality(profile: Profile, settings: FloatArray, points: QualityPoints) -> dict[str, FloatArray]:
    """Return measured quality by metric, each (num_rows,); where none was measured, that of an unaltered output."""
    return _named(points, settings) if points.metrics else identity_quality(profile, len(settings))


def _named(points: QualityPoints, settings: FloatArray) -> dict[str, FloatArray]:
    return dict(zip(points.metrics, points.at(settings).T, strict=True))


def _after_image_codec(quality: dict[str, FloatArray], row: pd.Series) -> dict[str, FloatArray]:
    """Return what is known of the quality after a lossy image codec, each (num_rows,); NaN where nothing is.

    Squared errors of generation and codec add up, 10^(-PSNR/10) each, as independent errors do. SSIM is known only for
    an image that equals its reference before; other metrics were not measured.

    Args:
        quality: of the raw images, by metric.
        row: of payload.csv.
    """
    found = {name: np.full_like(raw, np.nan) for name, raw in quality.items()}
    if "psnr_db" in quality:
        errors = linear_from_db(-quality["psnr_db"]) + linear_from_db(-row["psnr_db"])
        found["psnr_db"] = -db_from_linear(errors)
    if "ssim" in quality:
        found["ssim"] = np.where(quality["ssim"] == 1.0, row["ssim"], np.nan)
    return found


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
