"""`megopt reproduce`: a published figure, published numbers beside computed ones."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.report import Report
from megopt.ranges import require_whole


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of the reproduction that conf/figure/ names."""
    require_whole("reproduce", 0, seed=config.seed)
    report: Report = instantiate(config.figure)(output_dir=output_dir, seed=config.seed)
    return report
