"""`megopt codecs`: the bits of really encoded images."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.metering.image_codecs import bundled_photographs, measure_image_codecs, photographs_in


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return size and fidelity of every codec; writes payload.csv, ready for a profile folder."""
    if config.images != "bundled" and not Path(config.images).is_dir():
        message = f"images={config.images}: no such folder; expected bundled, or a folder of images"
        raise ConfigError(message)
    named = list(bundled_photographs() if config.images == "bundled" else photographs_in(Path(config.images)))
    from pandas import isna as is_missing

    rows = measure_image_codecs([image for _, image in named], source="codecs")
    path = write_atomically(output_dir / "payload.csv", lambda target: rows.to_csv(target, index=False))
    cells = [["" if is_missing(value) else str(value) for value in row] for row in rows.astype(object).to_numpy()]
    shapes = ", ".join(f"{name} {image.shape[1]}x{image.shape[0]}" for name, image in named)
    return Report(
        summary={"rows": rows.astype(object).where(rows.notna(), None).to_dict("records"), "file": str(path)},
        headline=f"{len(rows)} codec settings on {len(named)} images",
        tables=[rich_table("encoded images", list(rows.columns), cells)],
        lines=[f"images: {shapes}", f"wrote {shown_path(path)}"],
    )
