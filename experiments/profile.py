"""`megopt profile`: measure what split generation costs and how good it is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError

if TYPE_CHECKING:
    from megopt.metering.quality_grid import Grid

REDUCED: dict[str, Any] = {
    "num_steps": (4, 8),
    "num_splits": 4,
    "merge_ratios": (0.0, 0.5),
    "codec_bits": (16, 4),
    "snr_db": (10.0,),
    "model_split_steps": (),
}
"""What grid=reduced measures instead of the lists; so many images go with it."""
REDUCED_IMAGES = 48
GRIDS = ("full", "reduced", "none")
GRID_KEYS = (
    "num_steps",
    "merge_ratios",
    "codec_bits",
    "sr_scales",
    "snr_db",
    "model_split_steps",
    "model_split_ratios",
)


def run(config: DictConfig, output_dir: Path) -> Report:
    """Measure and write a profile folder; what was measured before a stop is not measured again."""
    from megopt.diffusion.evaluation import Sampling
    from megopt.metering.profile_request import ProfileRequest, SideRequest
    from megopt.metering.profiling import measure_profile
    from megopt.tables.profile import load_profile

    sides = {}
    for side in ("edge", "device"):
        values = OmegaConf.to_container(config[side], resolve=True)
        assert isinstance(values, dict)
        sides[side] = SideRequest(**{**values, "batch_sizes": tuple(config[side].batch_sizes)})
    request = ProfileRequest(
        **sides,
        grid=_grid(config),
        sampling=Sampling(
            sampler=config.sampler,
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            seed=config.seed,
        ),
        resolution_px=config.resolution_px,
        scene_seed=config.seed,
        budget_s=config.budget_s,
        command=" ".join(["megopt profile", *HydraConfig.get().overrides.task]),
    )
    target = measure_profile(request, Path(config.folder), Path(config.target))
    profile = load_profile(str(target))
    num_rows = {name: len(getattr(profile, name)) for name in ("compute", "quality")}
    cells = [
        [str(row.side), str(row.component), f"{row.resolution_px}", f"{row.batch_size}", f"{1e3 * latency_s:.3f}"]
        for row, latency_s in zip(profile.compute.itertuples(), profile.compute["latency_s"].astype(float), strict=True)
    ]
    header = ["side", "component", "resolution [px]", "batch", "latency [ms]"]
    return Report(
        summary={"folder": str(target), "num_rows": num_rows},
        headline=f"{num_rows['compute']} compute rows, {num_rows['quality']} quality rows",
        tables=[rich_table("compute.csv", header, cells)],
        lines=[f"wrote {shown_path(target)}", f"use it: megopt tradeoff profile.name={shown_path(target)}"],
    )


def _grid(config: DictConfig) -> Grid | None:
    """Return the grid of quality.csv; None for none."""
    from megopt.metering.quality_grid import Grid

    if config.grid not in GRIDS:
        message = f"grid={config.grid}: expected one of {', '.join(GRIDS)}"
        raise ConfigError(message)
    if config.grid == "none":
        return None
    lists: dict[str, Any] = {name: tuple(config[name]) for name in GRID_KEYS}
    full = Grid(**lists, num_splits=config.num_splits, num_images=config.num_images)
    if config.grid == "full":
        return full
    return Grid(**{**lists, **REDUCED}, num_images=min(config.num_images, REDUCED_IMAGES))
