"""`megopt compare`: algorithms x seeds x analytic baselines on the same fading; finished runs are skipped."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from megopt.analysis import comparison_report as say
from megopt.analysis.comparison import compare
from megopt.analysis.comparison_figure import save_comparison_figure
from megopt.analysis.report import Report
from megopt.errors import ConfigError
from megopt.experiments.train import place_of, plans_of
from megopt.files import write_atomically
from megopt.ranges import require_whole
from megopt.torch_devices import set_threads


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of a comparison; writes comparison.json, runs.csv and the figure into its folder."""
    require_whole("compare", 1, seeds=config.seeds, test_episodes=config.test_episodes)
    set_threads("compare", config.num_threads)
    known = plans_of(config)
    names = [config.algorithms] if isinstance(config.algorithms, str) else list(config.algorithms)
    if not names or set(names) - set(known):
        message = f"compare: algorithms = {names}; expected some of {', '.join(known)}; change it"
        raise ConfigError(message)
    plans = {name: known[name] for name in names}
    default = Path("outputs/compare") / place_of(config, next(iter(plans.values())))
    folder = default if config.folder is None else Path(config.folder)
    found = compare(
        plans,
        list(config.baselines),
        folder,
        num_seeds=config.seeds,
        num_episodes=config.test_episodes,
        test_seed=config.test_seed,
        is_resumed=config.resume,
    )
    files = [
        write_atomically(folder / "runs.csv", lambda path: say.runs_frame(found).to_csv(path, index=False)),
        *save_comparison_figure(found, folder / "comparison"),
    ]
    report = say.report_of(found, files)
    write_atomically(folder / "comparison.json", lambda path: path.write_text(report.as_json() + "\n"))
    return report
