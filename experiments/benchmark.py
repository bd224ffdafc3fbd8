"""`megopt benchmark`: speed as a ratio against a floor or a peer measured in the same run."""

from __future__ import annotations

import inspect
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.report import Report, rich_table
from megopt.ranges import require_whole


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of the benchmark that conf/what/ names."""
    require_whole("benchmark", 0, seed=config.seed)
    benchmark = instantiate(config.what)
    result: dict[str, float] = benchmark(seed=config.seed)
    rows = [[key, f"{value:,.6g}"] for key, value in result.items()]
    return Report(
        summary=dict(result),
        headline=", ".join(f"{key} {value:,.4g}" for key, value in list(result.items())[:3]),
        tables=[rich_table("benchmark", ["key", "value"], rows)],
        lines=(inspect.getdoc(benchmark.func) or "").split("Args:")[0].strip().splitlines(),
    )
