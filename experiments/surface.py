"""`megopt surface`: latency, energy and quality at once, as a Pareto surface with a proved distance to the best."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from megopt.analysis import surface_report as say
from megopt.analysis.fading_traces import sample_link
from megopt.analysis.report import Report, shown_path
from megopt.analysis.surface import surface
from megopt.analysis.surface_figure import save_surface_figure
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.schemes.action_table import ActionTable
from megopt.schemes.scheme import compile_all
from megopt.tables.profile import Profile


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of one surface; writes surface.csv, rows.csv and the figure."""
    profile: Profile = instantiate(config.profile)
    table, notes = compile_all(list(instantiate(config.get("scheme", {}), _convert_="all").values()), profile)
    quantities, metric = objectives_of(config, profile, table)
    policies = instantiate(config.get("policy", {}))
    link, fresh = sample_link(config), sample_link(config, is_fresh=True)
    found = surface(table, link, quantities, metric, policies, config.tolerance, fresh)
    frames = {"surface.csv": found.frame(), "rows.csv": found.row_frame()}
    files = [
        *(write_atomically(output_dir / name, partial(frame.to_csv, index=False)) for name, frame in frames.items()),
        *save_surface_figure(found, profile, output_dir / "surface"),
    ]
    complaints = say.complaints(found)
    return Report(
        summary=say.summary(found, profile, files),
        headline=say.headline(found),
        tables=say.tables(found),
        lines=[*(f"note: {note}" for note in [*notes, *found.notes]), *(f"wrote {shown_path(p)}" for p in files)],
        complaints=complaints,
        exit_code=2 if complaints else 0,
    )


def objectives_of(config: DictConfig, profile: Profile, table: ActionTable) -> tuple[tuple[str, ...], str]:
    """Return objectives and quality metric of a configuration.

    Raises:
        ConfigError: if the objectives are no list, or problem.limits holds a limit: a surface has none.
    """
    if not isinstance(config.objectives, ListConfig):
        message = f"objectives = {config.objectives!r}; expected a list, such as [latency_s, energy_j, quality]"
        raise ConfigError(message)
    limited = [str(name) for name, bound in config.problem.limits.items() if bound is not None]
    if limited:
        message = f"problem.limits.{limited[0]} is set; a surface shows all trade-offs without limits; remove it"
        raise ConfigError(message)
    names = tuple(profile.provenance.energy if name == "auto" else str(name) for name in config.objectives)
    metric = (table.metrics or ("",))[0] if config.problem.metric == "auto" else config.problem.metric
    return names, metric if "quality" in names else ""
