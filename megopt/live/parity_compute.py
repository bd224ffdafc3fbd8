"""The compute table of the machine at hand, in place of a profile's: predictions for this machine, not for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from megopt.diffusion.evaluation import Sampling, generated
from megopt.diffusion.pipelines import load
from megopt.files import write_atomically
from megopt.live.local_models import LocalModels
from megopt.metering.compute_table import measure_compute
from megopt.metering.image_codecs import measure_image_codecs
from megopt.metering.profile_request import SideRequest
from megopt.metering.quality_generator import Upscalers
from megopt.tables.checks import read_table
from megopt.tables.profile import Profile, load_profile
from megopt.tables.schema import COMPUTE, PAYLOAD

NUM_IMAGES, IMAGE_STEPS = 16, 8
"""Images, and steps of each, whose encoded size stands for those that an edge sends whole."""


def with_compute_of(profile: Profile, folder: Path) -> Profile:
    """Return `profile` with the compute rows of the profile in `folder`, such as `megopt profile grid=none` writes it.

    Raises:
        ProfileError: if `folder` holds no profile.
    """
    return replace(profile, compute=load_profile(folder).compute)


def compute_of(choice: str, profile: Profile, measured: Callable[[], Profile]) -> Profile:
    """Return the profile with the compute rows of `choice`.

    Args:
        choice: "profile" for its own, "measure" for those of `measured`, or the folder of another profile.
        profile: the profile.
        measured: returns it with rows of this machine, see `measured_here`.
    """
    if choice == "profile":
        return profile
    return measured() if choice == "measure" else with_compute_of(profile, Path(choice))


def measured_here(
    profile: Profile,
    edge: SideRequest,
    device: SideRequest,
    models: LocalModels,
    *,
    captions: Sequence[str],
    sampling: Sampling,
    folder: Path,
    budget_s: float,
) -> Profile:
    """Return `profile` with times and image sizes measured now, or read from `folder` where they were measured before.

    Args:
        profile: its latent shape and qualities are kept.
        edge: the edge's side; its model is loaded and left again.
        device: the device's side.
        models: of the device.
        captions: what is drawn.
        sampling: how steps are done.
        folder: for compute.csv and payload.csv.
        budget_s: most seconds per row of compute.csv, after ten calls [s].
    """
    compute, payload = folder / "compute.csv", folder / "payload.csv"
    if not (compute.is_file() and payload.is_file()):
        source = next(iter(profile.provenance.sources))
        edge_pipeline = load(edge.model, edge.torch_device, edge.dtype)
        upscalers: Upscalers = {("light", scale): one.upscale for scale, one in models.upscalers.items()}
        sides = (edge.side("edge", edge_pipeline, {}), device.side("device", models.pipeline, upscalers))
        rows = measure_compute(
            sides,
            caption=captions[0],
            resolution_px=profile.provenance.resolution_px,
            sr_scales=(1, *models.upscalers),
            sampling=sampling,
            source=source,
            budget_s=budget_s,
        )
        images = list(generated(edge_pipeline, tuple(captions[:NUM_IMAGES]), IMAGE_STEPS, sampling))
        _write(payload, measure_image_codecs(images, source=source))
        _write(compute, pd.DataFrame(rows, columns=[column.name for column in COMPUTE]))
    return replace(profile, compute=read_table(compute, COMPUTE), payload=read_table(payload, PAYLOAD))


def _write(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda target: table.to_csv(target, index=False))
