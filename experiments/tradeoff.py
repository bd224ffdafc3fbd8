"""`megopt tradeoff`: from a profile to an energy-delay trade-off curve."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from megopt.analysis import tradeoff_report as say
from megopt.analysis import tradeoff_tables
from megopt.analysis.continuous_region_split import with_closed_form
from megopt.analysis.curve_images import can_be_drawn, save_curve_images
from megopt.analysis.fading_traces import sample_link
from megopt.analysis.records import write_records
from megopt.analysis.report import Report, shown_path
from megopt.analysis.tradeoff import Sweep, tradeoff
from megopt.analysis.tradeoff_figure import save_tradeoff_figure
from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.scheme import compile_all
from megopt.solvers import exhaustive
from megopt.tables.profile import Profile


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of one trade-off; writes records.parquet, curve.csv, actions.csv and the figure."""
    profile: Profile = instantiate(config.profile)
    schemes = list(instantiate(config.get("scheme", {}), _convert_="all").values())
    table, notes = compile_all(schemes, profile)
    link = sample_link(config)
    problem, sweep = problem_of(config.problem, profile, table)
    left_out = {scheme.name for scheme in schemes} - set(table.scheme)
    policies = {
        name: factory
        for name, factory in instantiate(config.get("policy", {})).items()
        if factory.keywords.get("scheme") not in left_out
    }
    fresh = sample_link(config, is_fresh=True) if config.long_run else None
    found = tradeoff(table, link, problem, sweep, policies, config.num_traces, fresh)
    found, closed_form = with_closed_form(found, profile, schemes, link)
    files = [
        write_records(found.records, output_dir / "records.parquet"),
        write_atomically(output_dir / "curve.csv", lambda path: found.curve.to_csv(path, index=False)),
        write_atomically(output_dir / "actions.csv", lambda path: table.frame().to_csv(path, index=False)),
        *save_tradeoff_figure(found, profile, sweep, output_dir / "tradeoff"),
    ]
    if config.contact_sheet and can_be_drawn(profile):
        sheet = save_curve_images(found, table, profile, sweep, output_dir / "contact_sheet.png")
        files += [] if sheet is None else [sheet]
    nearest = exhaustive.nearest_feasible_limit(table, link, found.problems[-1])
    complaints = say.complaints(found, sweep, nearest)
    return Report(
        summary={**say.summary(found, profile, sweep, nearest, files), "closed_form": closed_form},
        headline=say.headline(found, sweep),
        tables=[*tradeoff_tables.tables(found, sweep), *tradeoff_tables.closed_form_tables(closed_form)],
        lines=[
            *say.knee_lines(found, sweep),
            *(f"note: {note}" for note in [*notes, *say.notes(found, sweep)]),
            *(f"wrote {shown_path(p)}" for p in files),
        ],
        complaints=complaints,
        exit_code=2 if complaints else 0,
    )


def problem_of(config: DictConfig, profile: Profile, table: ActionTable) -> tuple[Problem, Sweep]:
    """Return problem and sweep of a configuration."""
    limits = tuple(Limit(quantity=str(quantity), bound=b) for quantity, b in config.limits.items() if b is not None)
    metric = (table.metrics or ("",))[0] if config.metric == "auto" else config.metric
    problem = Problem(objective=config.objective, metric=metric, limits=limits)
    quantity = profile.provenance.energy if config.sweep.quantity == "auto" else config.sweep.quantity
    values = config.sweep.limits
    if not isinstance(values, ListConfig):
        message = f"problem.sweep.limits = {values!r}; expected a list, such as [{values}]"
        raise ConfigError(message)
    return problem, Sweep(quantity=quantity, values=tuple(values), num_points=config.sweep.num_points)
