"""`megopt sweep` as a user meets it: processes that start, are interrupted, are killed; the records are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from megopt.application import run_verb
from megopt.cli import main
from megopt.configuration import group_choices
from megopt.sweeps.axes import Axis, axes_of
from megopt.sweeps.grid import runs_of
from megopt.sweeps.query import open_results
from tests import fake_slurm

SMALL = ["experiment=smoke", "num_traces=1", "num_requests=2"]
LIMIT_S = 900.0


def command(*overrides: str) -> list[str]:
    code = "import sys; from megopt.application import run_verb; raise SystemExit(run_verb('sweep', sys.argv[1:]))"
    return [sys.executable, "-c", code, *overrides]


def sweep(cwd: Path, *overrides: str, code: int = 0) -> dict:
    words = command(*SMALL, "output=json", *overrides)
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def records(folder: Path) -> pd.DataFrame:
    """All records, in an order that does not depend on when they were written."""
    with open_results(folder) as results:
        return results.ask('SELECT * EXCLUDE (config) FROM records ORDER BY run, policy, "limit", request')


def start(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a sweep in a group of its own, as a terminal does."""
    return subprocess.Popen(
        command(*overrides), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_runs(folder: Path, number: int) -> None:
    end = time.monotonic() + LIMIT_S
    while len(list(folder.glob("results/sweep=*/*.parquet"))) < number:
        assert time.monotonic() < end, "no run came back"
        time.sleep(0.02)


BAD_INPUT = [
    ("axes.channel.snr=[1]", "sweep has no key 'axes.channel.snr'; did you mean axes.channel.snr_db?"),
    ("+axes.channel.snr=[1]", "did you mean channel.snr_db"),
    ("+axes.seed=3", "axes.seed is 3; expected a list of values, such as axes.seed=[3]"),
    ("axes.policy=[optimall]", "Could not find 'policy/optimall'"),
    ("launcher=rya", "Could not find 'launcher/rya'"),
    ("launcher.num_worker=2", "no key 'launcher.num_worker'; did you mean launcher.num_workers?"),
    ("launcher.num_workers=0", "num_workers is 0; expected a whole number from 1"),
    ("launcher=ray launcher.num_cpus=-1", "launcher ray: num_cpus is -1; expected 0 to 1e+06"),
    ("launcher=ray launcher.max_retries=-2", "launcher ray: max_retries is -2; expected a whole number from 0"),
    ("launcher=dask launcher.timeout_s=0", "launcher dask: timeout_s is 0; expected 0.1 to 1e+06"),
    ("launcher=slurm launcher.timeout_min=0", "launcher submitit: timeout_min is 0; expected a whole number from 1"),
    ("launcher=slurm launcher.mem_gb=no", "launcher submitit: mem_gb is 'no'; expected a number"),
    ("launcher=submitit_local launcher.cluster=pbs", "launcher.cluster = 'pbs'; expected one of slurm, local"),
    ("name=a/b", "name = 'a/b'; expected letters"),
    ("redo=maybe", "redo = 'maybe'; expected true or false"),
    ("channel.snr_db=3", "channel.snr_db is set and is an axis of the sweep as well"),
    ("call=megopt.nothing", "expected the dotted path of a function"),
]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(*pair, id=pair[0], marks=[] if number % 3 == 0 else pytest.mark.slow)
        for number, pair in enumerate(BAD_INPUT)
    ],
)
def test_bad_input_gets_one_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_verb("sweep", [*SMALL, *override.split()]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "outputs" / "results").exists()


@pytest.mark.parametrize(("verb", "goes_on"), [("sweep", True), ("search", True), ("info", False)])
def test_an_interruption_at_any_moment_is_one_line(
    verb: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("megopt.application.run_verb", interrupted)
    assert main([verb]) == 130
    error = capfd.readouterr().err
    assert error.startswith("megopt: error: interrupted")
    assert ("the same command goes on from there" in error) is goes_on


PRESETS = {
    "smoke": 8,
    "tradeoff": 240,
    "limits_sweep": 216,
    "snr_sweep": 45,
    "bundled_sweep": 45,
    "meg_cvpo": 40,
    "cell_scale": 24,
}
"""Runs of each preset, as docs/sweeps.md has them."""


def parts(axis: Axis) -> tuple[str, list, bool]:
    return axis.key, list(axis.values), axis.is_group  # no data frame


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_plans_the_runs_that_its_first_line_says(preset: str) -> None:
    import hydra

    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = hydra.compose("sweep", overrides=[f"experiment={preset}", "name=x"])
        planned = axes_of(config.axes)
        first = [Axis(key=key, values=values[:1], is_group=is_group) for key, values, is_group in map(parts, planned)]
        groups = [f"{axis.key}={value}" for axis in first if axis.is_group for value in parts(axis)[1]]
        composed = hydra.compose("sweep", overrides=[f"experiment={preset}", "name=x", *groups])
        (run,) = runs_of(config, first, lambda overrides: composed, name="x", call=config.call)
    num_runs = np.prod([len(parts(axis)[1]) for axis in planned])
    assert num_runs == PRESETS[preset]
    assert len(run.overrides) == len(planned)
    assert f"{num_runs} " in group_choices("experiment")[preset]


@pytest.mark.slow
def test_a_multirun_of_sweeps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_verb("sweep", ["-m", *SMALL, "seed=0,1"]) == 2
    assert "name the values in axes" in capfd.readouterr().out


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_gives_the_records_of_an_unbroken_one(tmp_path: Path) -> None:
    axes = f"axes.channel.snr_db=[{','.join(map(str, range(16)))}]"  # so many that some are left at the interrupt
    sweep(tmp_path, axes, "results=unbroken", "launcher.num_workers=2")
    process = start(tmp_path, *SMALL, axes, "results=results", "launcher.num_workers=2")
    wait_for_runs(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all processes of the group
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors
    assert "Traceback" not in output + errors
    num_done = len(list(tmp_path.glob("results/*/*.parquet")))
    assert 2 <= num_done < 64
    assert not list(tmp_path.glob("results/*/*.partial"))
    report = sweep(tmp_path, axes, "results=results")
    assert (report["num_runs"], report["skipped"], report["done"]) == (64, num_done, 64 - num_done)
    pd.testing.assert_frame_equal(records(tmp_path / "results"), records(tmp_path / "unbroken"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_a_killed_worker_does_not_stop_the_sweep(launcher: str, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("joblib")
    axes = "axes.channel.snr_db=[0,2,4,6,8,10,12,14,16,18]"
    overrides = [axes, "results=results", f"launcher={launcher}", "launcher.num_workers=2", "output=json"]
    process = start(tmp_path, *SMALL, *overrides)
    wait_for_runs(tmp_path, 2)
    os.kill(_worker(process.pid), signal.SIGKILL)
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    report = json.loads(output.strip().splitlines()[-1])
    assert report["done"] == 40
    assert len(report["workers"]) > 2


def _worker(parent: int) -> int:
    """Return a process of the pool, by what its command line runs."""
    import psutil

    marks = ("spawn_main", "loky", "ray::perform", "ray::IDLE")  # Ray ends itself when an agent of it dies
    found = psutil.Process(parent).children(recursive=True)
    workers = [child for child in found if any(mark in " ".join(child.cmdline()) for mark in marks)]
    workers = [child for child in workers if "resource_tracker" not in " ".join(child.cmdline())]
    return max(workers, key=lambda child: child.cpu_times().user).pid


@pytest.mark.slow
def test_two_sweeps_at_once_share_a_dataset(tmp_path: Path) -> None:
    both = [start(tmp_path, *SMALL, "results=results", "launcher.num_workers=1") for _ in range(2)]
    assert [process.wait(LIMIT_S) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert len(records(tmp_path / "results")) == 8 * 2


@pytest.mark.slow
def test_submitit_in_place_of_slurm(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    report = sweep(tmp_path, "launcher=submitit_local", "launcher.runs_per_task=4", "results=results")
    assert report["done"] == 8
    assert len(report["workers"]) == 2


@pytest.mark.slow
def test_the_jobs_that_slurm_gets_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of Slurm are stand-ins that run the script; what submitit writes and reads is the real thing."""
    pytest.importorskip("submitit")
    commands = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    overrides = ["launcher=slurm", "launcher.runs_per_task=4", "launcher.partition=cpu", "launcher.mem_gb=2"]
    report = sweep(tmp_path, *overrides, "launcher.setup=['export MEGOPT_SETUP=1']", "results=results")
    assert (report["done"], len(report["workers"])) == (8, 2)
    scripts = [path.read_text() for path in (tmp_path / "slurm" / "jobs").glob("*/script")]
    assert len(scripts) == 2
    for line in ("#SBATCH --partition=cpu", "#SBATCH --mem=2GB", "#SBATCH --time=60", "export MEGOPT_SETUP=1"):
        assert all(line in script for script in scripts), line
    sweep(tmp_path, "results=unbroken")
    pd.testing.assert_frame_equal(records(tmp_path / "results"), records(tmp_path / "unbroken"))


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_cluster_of_this_machine_survives_a_killed_worker_and_gives_the_same_records(
    engine: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray" if engine == "ray" else "distributed")
    axes = "axes.channel.snr_db=[0,2,4,6,8,10,12,14,16,18]"
    sweep(tmp_path, axes, "results=unbroken")
    overrides = [axes, "results=results", f"launcher={engine}", "launcher.num_workers=2", "output=json"]
    process = start(tmp_path, *SMALL, *overrides)
    wait_for_runs(tmp_path, 2)
    os.kill(_worker(process.pid), signal.SIGKILL)
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    report = json.loads(output.strip().splitlines()[-1])
    assert (report["num_runs"], report["done"]) == (40, 40)
    pd.testing.assert_frame_equal(records(tmp_path / "results"), records(tmp_path / "unbroken"))


RUNNING = {
    "dask": (
        "from distributed import LocalCluster; import sys; "
        "cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50); "
        "print(cluster.scheduler_address, flush=True); sys.stdin.read()"
    ),
    "ray": (
        "import os, sys; os.environ['RAY_AUTH_MODE'] = 'disabled'; import ray; "
        "found = ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False); "
        "print(found.address_info['address'], flush=True); sys.stdin.read()"
    ),
}
"""Programs that start a cluster, say where it is and keep it until their input ends."""


@pytest.mark.heavy
@pytest.mark.parametrize("engine", RUNNING)
def test_attach_to_a_cluster_that_runs_already(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray" if engine == "ray" else "distributed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    words = [sys.executable, "-c", RUNNING[engine]]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        report = sweep(tmp_path, f"launcher={engine}", f"launcher.address='{address}'", "results=results")
        assert cluster.poll() is None  # a sweep ends what it started, and nothing else
    assert report["done"] == 8


@pytest.mark.parametrize("launcher", group_choices("launcher"))
def test_every_launcher_is_one(launcher: str) -> None:
    from hydra.utils import instantiate

    from megopt.configuration import CONF_DIR

    node = OmegaConf.load(CONF_DIR / "launcher" / f"{launcher}.yaml")
    built = instantiate(node, _convert_="all")
    assert built.runs_per_task >= 1
    assert callable(built.start)
