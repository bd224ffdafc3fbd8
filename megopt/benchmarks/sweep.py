"""Overhead of a sweep per run, next to hydra-joblib-launcher's own, and the speed of its dataset.

Both sweeps compose the same configurations, make the same library calls on as many warm processes of the same machine,
and write the records. Each is carried out twice in one process, and the second time counts: by then workers are
started and have imported what they need. The overhead of a run is what is left of the workers' time without the call:

    (wall_s num_workers - sum of call_s) / num_runs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megopt.analysis.records import write_records
from megopt.sweeps.aggregates import Aggregate
from megopt.sweeps.axes import axes_of
from megopt.sweeps.execution import execute
from megopt.sweeps.figure_data import means_of
from megopt.sweeps.figure_lines import save_lines
from megopt.sweeps.grid import runs_of
from megopt.sweeps.launchers import Kept, Local
from megopt.sweeps.query import open_results
from megopt.sweeps.run import Run, RunStatus, function_at
from megopt.sweeps.store import Store

_SIZE = ["experiment=smoke", "num_traces=2", "num_requests=8", "problem.sweep.limits=[600]"]
"""The call of each run: 16 requests, under a limit [J] that A100 and phone can keep."""
_RECORDS_PER_FILE = 25_000
_LIMIT_S = 3600.0


def run(num_runs: int = 64, num_workers: int = 2, num_records: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """Return overheads, and the times of a large dataset.

    - overhead.megopt_s: of `megopt sweep` per run, with warm workers [s].
    - overhead.hydra_joblib_s: of `megopt ... -m hydra/launcher=joblib` per run, with warm workers [s].
    - overhead.ratio: the second over the first.
    - overhead.call_s, overhead.hydra_joblib_call_s: the library call itself [s].
    - records.write_s: time to write `num_records` records, 25,000 a run (one run's records under many names) [s].
    - records.filter_s, records.aggregate_s: time to count those of one policy at an SNR of the configuration, and to
      average over groups, files opened anew [s].
    - records.plot_s: time to draw latency and energy over the SNR of all of them, PDF and PNG, imports included [s].
    - records.total_s: all four together [s].
    - records.cpu_s: processor time of all four, which other programs on the machine do not lengthen [s].
    - records.peak_mb: largest size of the process that did this [MB].

    Args:
        num_runs: runs of each sweep [1].
        num_workers: processes of each sweep [1].
        num_records: records of the large dataset [1].
        seed: of the fading.
    """
    arguments = {"num_runs": num_runs, "num_workers": num_workers, "num_records": num_records, "seed": seed}
    return {**_in_process("records", arguments), **_in_process("overhead", arguments)}


def _in_process(part: str, arguments: dict[str, int]) -> dict[str, float]:
    """Measure one part in a process of its own, whose largest size is its alone."""
    code = f"from megopt.benchmarks import sweep; sweep.measure({part!r}, **{arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=_LIMIT_S, check=True)
    report: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def measure(part: str, *, num_runs: int, num_workers: int, num_records: int, seed: int) -> None:
    """Measure `records` or `overhead` and write the report to stdout as one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        if part == "records":
            report = _records(Path(folder), num_records, seed)
        else:
            report = _overhead(Path(folder), num_runs, num_workers, seed)
    sys.stdout.write(json.dumps(report) + "\n")


def _overhead(folder: Path, num_runs: int, num_workers: int, seed: int) -> dict[str, float]:
    own_s, own_call_s = _own_sweep(folder / "own", num_runs, num_workers, seed)
    peer_s, peer_call_s = _peer_sweep(folder / "peer", num_runs, num_workers, seed)
    own = (own_s * num_workers - own_call_s) / num_runs
    peer = (peer_s * num_workers - peer_call_s) / num_runs
    return {
        "overhead.megopt_s": own,
        "overhead.hydra_joblib_s": peer,
        "overhead.ratio": peer / own,
        "overhead.call_s": own_call_s / num_runs,
        "overhead.hydra_joblib_call_s": peer_call_s / num_runs,
        "overhead.num_runs": float(num_runs),
    }


def _own_sweep(folder: Path, num_runs: int, num_workers: int, seed: int) -> tuple[float, float]:
    """Return wall time and the sum of the calls' times of the second sweep on the same processes [s]."""
    with Kept(Local(num_workers=num_workers)) as launcher:
        for turn in range(2):
            start = time.perf_counter()
            done = execute(_runs(_snrs(num_runs), seed + turn), Store(folder=folder), launcher)
            wall_s = time.perf_counter() - start
            assert len(done.with_status(RunStatus.DONE)) == num_runs, done.outcomes
    return wall_s, sum(outcome.call_s for outcome in done.outcomes.values())


def _runs(snrs_db: Sequence[float], seed: int, *overrides: str) -> list[Run]:
    """Return one run per SNR, composed from conf/."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = hydra.compose("sweep", overrides=[*_SIZE, "name=benchmark", f"seed={seed}", *overrides])
        axes = axes_of(OmegaConf.create({"channel": {"snr_db": list(snrs_db)}}))
        return runs_of(config, axes, lambda groups: config, name="benchmark", call=config.call)


def _snrs(num_runs: int) -> list[float]:
    """Return mean SNRs from 0 to 20 [dB]."""
    return [round(20.0 * index / num_runs, 6) for index in range(num_runs)]


def _peer_sweep(folder: Path, num_runs: int, num_workers: int, seed: int) -> tuple[float, float]:
    """Return the same of hydra-joblib-launcher, which keeps its processes from sweep to sweep as well."""
    import hydra

    app = hydra.main(version_base="1.3", config_path="pkg://megopt.conf", config_name="sweep")(_peer_task)
    launcher = ["-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={num_workers}", "~hydra.callbacks.summary"]
    snrs = f"channel.snr_db={','.join(map(str, _snrs(num_runs)))}"
    for turn in range(2):
        sweep = folder / str(turn)
        sys.argv = ["peer", *launcher, f"hydra.sweep.dir={sweep}", *_SIZE, f"seed={seed + turn}", snrs]
        start = time.perf_counter()
        app()
        wall_s = time.perf_counter() - start
    times = [float(path.read_text()) for path in sweep.glob("*/call_s.txt")]
    assert len(times) == num_runs
    return wall_s, sum(times)


def _peer_task(config: Any) -> None:
    """Do what a worker of `megopt sweep` does, in the job's folder."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    start = time.perf_counter()
    records = function_at(config.call)(config)
    call_s = time.perf_counter() - start
    write_records(records, folder / "records.parquet")
    (folder / "call_s.txt").write_text(str(call_s))


def _records(folder: Path, num_records: int, seed: int) -> dict[str, float]:
    """Return the times of writing, filtering, aggregating and plotting, and the peak of the memory."""
    num_files = max(1, num_records // _RECORDS_PER_FILE)
    size = min(num_records, _RECORDS_PER_FILE)
    runs = _runs(_snrs(num_files), seed, "num_traces=1", f"num_requests={size}")
    records = _called(runs[0])
    store, start, busy = Store(folder=folder), time.perf_counter(), time.process_time()
    for each in runs:
        store.write(each, records, status=RunStatus.DONE, message="", call_s=0.0)
    written = time.perf_counter()
    where = "policy = 'optimal' AND config.channel.snr_db >= 10"
    with open_results(folder) as results:
        (kept,) = results.ask(f"SELECT count(*) AS number FROM records WHERE {where}")["number"]
    filtered = time.perf_counter()
    with open_results(folder) as results:
        keys = ["policy", "label", "config.channel.snr_db"]
        results.means(Aggregate(group_by=keys, show=["latency_s", "energy_j"]))
    aggregated = time.perf_counter()
    with open_results(folder) as results:
        (means,) = means_of(results, runs[0].sweep)
        save_lines(means, folder / "lines")
    plotted = time.perf_counter()
    return {
        "records.num_records": float(num_files * len(records)),
        "records.num_kept": float(kept),
        "records.write_s": written - start,
        "records.filter_s": filtered - written,
        "records.aggregate_s": aggregated - filtered,
        "records.plot_s": plotted - aggregated,
        "records.total_s": plotted - start,
        "records.cpu_s": time.process_time() - busy,
        "records.peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        "records.size_mb": sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 2.0**20,
    }


def _called(each: Run) -> Any:
    from omegaconf import OmegaConf

    return function_at(each.call)(OmegaConf.create(dict(each.config)))
