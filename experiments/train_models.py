"""`megopt train-models`: train the bundled models part by part, and export them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError

EXPORT = "export"


def run(config: DictConfig, output_dir: Path) -> Report:
    """Train or go on with one part and return its card, or write all trained parts as bundled models."""
    from megopt.diffusion.latent_attributes import PerceptualSettings
    from megopt.diffusion.training_parts import PARTS, train_part
    from megopt.diffusion.training_request import PartRequest

    if config.part == EXPORT:
        return _export(Path(config.folder), Path(config.models))
    if config.part not in PARTS:
        message = f"part={config.part}: expected one of {', '.join(PARTS)}, {EXPORT}"
        raise ConfigError(message)
    request = PartRequest(
        part=config.part,
        budget_min=None if config.num_steps else config.budget_min,
        num_steps=config.num_steps,
        seed=config.seed,
        start=None if config.start is None else Path(config.start),
        is_resumed=config.resume,
        folder=Path(config.folder),
        num_scenes=config.num_scenes,
        num_test_scenes=config.num_test_scenes,
        latent_channels=config.latent_channels,
        latent_noise=config.latent_noise,
        sr_scale=config.sr_scale,
        rate_factor=config.rate_factor,
        perceptual=PerceptualSettings(**config.perceptual),
        device=config.device,
        is_compiled=config.compile,
    )
    folder, card = train_part(request)
    done = f"{card.num_steps} steps in {card.training_s / 60:.1f} min"
    return Report(
        summary={"card": asdict(card), "folder": str(folder)},
        headline=f"{request.name}: {done}, {card.num_parameters} parameters",
        tables=[rich_table(request.name, ["metric", "value"], [[k, f"{v:.4g}"] for k, v in card.metrics.items()])],
        lines=[done, f"wrote {shown_path(folder)}"],
    )


def _export(folder: Path, target: Path) -> Report:
    from megopt.diffusion.trained_parts import export_models

    written = export_models(folder, target)
    sizes = {path.name: sum(f.stat().st_size for f in path.rglob("*.safetensors")) for path in written}
    rows = [[name, f"{size / 1e6:.2f}"] for name, size in sizes.items()]
    return Report(
        summary={"bytes": sizes, "folders": [str(path) for path in written]},
        headline=f"{len(written)} models exported",
        tables=[rich_table("bundled models", ["model", "MB"], rows)],
        lines=[f"wrote {shown_path(path)}" for path in written],
    )
