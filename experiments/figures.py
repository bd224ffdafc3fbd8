"""`megopt figures`: all figures of a dataset, drawn anew from its records without running anything again."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError
from megopt.sweeps.compiled_table import compiled
from megopt.sweeps.figures import Drawn, draw_learning, draw_sweep, require_kinds
from megopt.sweeps.query import open_results


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of the figures that were drawn."""
    kinds, folder = require_kinds(_list(config, "kinds")), Path(config.folder)
    learned = [Path(each) for each in _list(config, "agents")]
    drawn = _of_sweeps(config, [kind for kind in kinds if kind != "learning"], folder)
    drawn += draw_learning(learned, folder) if "learning" in kinds else []
    made = [one for one in drawn if one.files]
    if not made:
        message = f"figures: nothing to draw in results={config.results}; make records with `megopt sweep`"
        raise ConfigError(message)
    files = [path for one in made for path in one.files]
    missing: dict[str, list[str]] = {}
    for one in drawn:
        if not one.files:
            missing.setdefault(one.what, []).append(one.kind)
    return Report(
        summary={"figures": [_facts(one) for one in drawn], "files": [str(path) for path in files]},
        headline=f"{len(made)} figures",
        tables=[rich_table("figures", ["of", "kind", "file"], [_row(one) for one in made])],
        lines=[f"{len(made)} figures, {len(files)} files"]
        + [f"note: {what} has nothing to show as {', '.join(left)}" for what, left in missing.items()],
    )


def _of_sweeps(config: DictConfig, kinds: list[str], folder: Path) -> list[Drawn]:
    has_records = config.sweep is not None or any(Path(config.results).glob("sweep=*/*.parquet"))
    if not kinds or not has_records:
        return []
    names = sorted(path.name.removeprefix("sweep=") for path in Path(config.results).glob("sweep=*"))
    drawn: list[Drawn] = []
    for name in names if config.sweep is None else [config.sweep]:
        if config.sweep is not None or any(Path(config.results).glob(f"sweep={name}/*.parquet")):
            with open_results(Path(config.results), name) as results:
                drawn += draw_sweep(results, name, kinds, folder, compiled)
    return drawn


def _list(config: DictConfig, name: str) -> list[str]:
    if not isinstance(config[name], ListConfig):
        message = f"{name} = {config[name]!r}; expected a list, such as {name}=[{config[name]}]"
        raise ConfigError(message)
    return [str(each) for each in config[name]]


def _facts(one: Drawn) -> dict[str, object]:
    return {"kind": one.kind, "of": one.what, "files": [str(path) for path in one.files]}


def _row(one: Drawn) -> list[str]:
    ends = ", ".join(path.suffix for path in one.files[1:])
    return [one.what, one.kind, ", ".join([shown_path(one.files[0].resolve()), *([ends] if ends else [])])]
