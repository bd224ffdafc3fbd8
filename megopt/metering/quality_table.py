"""quality.csv: what `quality_grid` makes, scored, cell by cell, so that a stopped measurement goes on.

Means over images come with their standard deviation and a 95 % bootstrap interval. The Frechet distance is of the whole
set and has none; it is that of the leading principal directions of the real scenes' features, for a set of images
smaller than the features has no full covariance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from megopt.arrays import FloatArray, IntArray
from megopt.diffusion import metrics
from megopt.diffusion.attribute_match import match_attributes
from megopt.diffusion.attribute_network import AttributeNetwork, read_attributes
from megopt.diffusion.feature_metrics import frechet_distance
from megopt.diffusion.rendering import Images
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.metering.quality_generator import Generator, Models
from megopt.metering.quality_grid import Grid, row_knobs
from megopt.tables import schema

if TYPE_CHECKING:
    import pandas as pd

NUM_DIRECTIONS = 32
"""Principal directions of the Frechet distance."""
PLAN_FILE = "plan.json"
_CELLS = "cells"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What images are to show, and how that is read off.

    Attributes:
        captions: one per image.
        real: how the scenes really look, uint8, shape (num_images, resolution_px, resolution_px, 3); None where nobody
            knows. Sharpness is then that over the reference's, and there is no Frechet distance.
        attributes: what the captions tell, shape (num_images, NUM_ATTRIBUTES); None where nobody knows.
        judge: reads attributes; None for none, and then no alignment and no Frechet distance is measured.
    """

    captions: tuple[str, ...]
    real: Images | None = None
    attributes: IntArray | None = None
    judge: AttributeNetwork | None = None


class Scorer:
    """Turns images into rows; holds what is the same for all cells."""

    def __init__(self, task: Task, reference: Images) -> None:
        self._task, self._reference = task, reference
        self._directions: FloatArray | None = None
        if task.judge is not None and task.real is not None:
            features = np.asarray(read_attributes(task.judge, task.real)[1], dtype=np.float64)
            num = min(NUM_DIRECTIONS, features.shape[1], len(features) - 1)
            directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][:num].T
            self._directions = np.asarray(directions / features.std())
            self._real_features = features @ self._directions

    def rows(self, knobs: Mapping[str, Any], images: Images, source: str) -> list[dict[str, Any]]:
        """Return a row of quality.csv per metric."""
        values: dict[str, FloatArray] = {
            "psnr_db": np.minimum(metrics.psnr_db(images, self._reference), schema.PSNR_CEILING_DB),
            "ssim": metrics.ssim(images, self._reference),
            "ms_ssim": metrics.ms_ssim(images, self._reference),
        }
        real = self._reference if self._task.real is None else self._task.real
        energy = metrics.laplacian_energy(real).mean()
        values["sharpness"] = metrics.laplacian_energy(images) / energy
        rows = []
        if self._task.judge is not None and self._task.attributes is not None:
            vectors, features = read_attributes(self._task.judge, images)
            values["alignment"] = match_attributes(vectors, self._task.attributes).alignment
            if self._directions is not None:
                distance = frechet_distance(features @ self._directions, self._real_features)
                rows.append(_row(knobs, "frechet", distance, len(images), source))
        for name, per_image in values.items():
            found = metrics.estimate(per_image, seed=0, num_resamples=500)
            rows.append(
                _row(knobs, name, found.mean, len(images), source, std=found.std, low=found.low, high=found.high)
            )
        return rows


def measure_quality(
    grid: Grid, models: Models, task: Task, folder: Path, *, identity: Mapping[str, Any], source: str
) -> pd.DataFrame:
    """Return quality.csv; cells that `folder` holds already are read, the others are made and kept there.

    Args:
        grid: what to measure.
        models: what makes the images.
        task: what they are to show; `grid.num_images` of them.
        folder: working folder.
        identity: whatever else the numbers depend on, such as the names of the models; plain data.
        source: key of the source in provenance.json.

    Raises:
        ConfigError: if `folder` holds the cells of another measurement, or a cell that cannot be read.
    """
    import pandas as pd

    plan = {**identity, "captions": _digest(task.captions), **asdict(models.sampling), "num_images": grid.num_images}
    plan |= {"reference_steps": max(grid.num_steps), "resolution_px": models.resolution_px}
    _claim(folder, {name: _plain(value) for name, value in plan.items()})
    cells = grid.cells()
    paths = {cell: folder / _CELLS / f"{cell.name}_{_digest(grid.handovers(cell))}.json" for cell in cells}
    missing = [cell for cell in cells if not paths[cell].is_file()]
    if missing:
        generator = Generator(models, task.captions)
        scorer = Scorer(task, generator.reference(max(grid.num_steps)))
        handovers = [len(grid.handovers(cell)) for cell in missing]
        with tqdm(total=sum(handovers), desc="quality", unit="setting") as bar:
            for cell in missing:
                rows = []
                for handover, kind, images in generator.images(cell, grid.handovers(cell)):
                    rows += scorer.rows(row_knobs(cell, handover, kind), images, source)
                    bar.update(kind == "light")
                _write_cell(paths[cell], rows)
    rows = [row for cell in cells for row in _read_cell(paths[cell])]
    return pd.DataFrame(rows, columns=[column.name for column in schema.QUALITY])


def _row(
    knobs: Mapping[str, Any],
    metric: str,
    value: float,
    num_images: int,
    source: str,
    *,
    std: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:
    numbers = {"value": value, "std": std, "low": low, "high": high}
    rounded = {name: None if came is None else float(f"{came:.6g}") for name, came in numbers.items()}
    return {**knobs, "metric": metric, **rounded, "num_images": num_images, "kind": "measured", "source": source}


def _write_cell(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, lambda target: target.write_text(json.dumps(rows), encoding="utf-8"))


def _read_cell(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{path}: {error}; expected measured rows; delete the file, and its cell is measured again"
        raise ConfigError(message) from error
    return rows


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan into an empty folder; in another, check that it is the same."""
    path = folder / PLAN_FILE
    text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
    if not path.is_file():
        write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{key} {held.get(key)!r} against {plan.get(key)!r}" for key in plan if held.get(key) != plan.get(key)]
    if other:
        message = f"{folder}: holds another measurement: {'; '.join(other)}; choose another folder, or delete this one"
        raise ConfigError(message)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
