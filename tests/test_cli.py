"""The command line as a user meets it: help, verbs, JSON, multirun, and one-line errors with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megopt.cli import main, verb_help
from megopt.configuration import CONF_DIR, VERBS, group_choices, group_names, root_name

ROOT = Path(__file__).resolve().parent.parent
FAST = ["experiment=published", "num_requests=4", "num_traces=4", "problem.sweep.num_points=4"]


def megopt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megopt", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """Run in this process and return the JSON object."""
    assert main([*arguments, "output=json"]) == 0
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_help_is_light_and_names_every_verb() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "megopt.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "megopt.configuration" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"torch", "cvxpy", "pandas", "matplotlib", "numpy", "hydra"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_script_a_root_yaml_and_a_help_that_explains_each_key(verb: str) -> None:
    assert (ROOT / "experiments" / f"{root_name(verb)}.py").is_file()
    assert VERBS[verb] in verb_help(verb)
    text = (CONF_DIR / f"{root_name(verb)}.yaml").read_text()
    own = text.split("\nhydra:")[0].split("_self_")[-1].splitlines()
    for line in own:
        if ":" in line and "override" not in line:
            assert "#" in line, f"{verb}: {line} has no comment"


@pytest.mark.parametrize("group", group_names())
def test_every_choice_opens_with_a_sentence_and_is_yaml(group: str) -> None:
    for choice, sentence in group_choices(group).items():
        assert sentence, f"{group}/{choice}.yaml has no opening comment"
        assert yaml.safe_load((CONF_DIR / group / f"{choice}.yaml").read_text())


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tradeof"]) == 2
    assert "did you mean tradeoff?" in capsys.readouterr().err


def test_tradeoff_writes_what_it_says_and_answers_json(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "tradeoff", *FAST)
    assert report["status"] == "optimal"
    assert report["profile"] == "a100__snapdragon8gen3__sdxl"
    assert all(solution["gap"] == 0.0 for solution in report["solutions"])
    names = {Path(path).name for path in report["files"]}
    assert names == {"records.parquet", "curve.csv", "actions.csv", "tradeoff.pdf", "tradeoff.png"}
    assert all((here / path).is_file() for path in report["files"])
    assert (Path(report["files"][0]).parent / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("group", ["profile", "channel", "link", "problem"])
def test_every_choice_of_every_group_runs(group: str, tmp_path: Path) -> None:
    """The contract test of conf/: an addition is covered the moment its yaml exists."""
    base = ["profile=megsplitting_sdxl", "scheme=[conventional,region_split]"] if group == "problem" else []
    choices = [
        choice for choice in group_choices(group) if choice != "min_energy"
    ]  # its energy_j is not in that profile
    report = last_json(
        megopt("tradeoff", "-m", *base, f"{group}={','.join(choices)}", "output=json", *FAST, cwd=tmp_path)
    )
    assert len(report["runs"]) == len(choices)
    assert all(run["solutions"] for run in report["runs"])


@pytest.mark.slow
def test_least_energy_under_a_latency_limit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "tradeoff", "problem=min_energy", *FAST)
    values = [solution["value"] for solution in report["solutions"]]
    assert report["limit_quantity"] == "latency_s"
    assert values == sorted(values, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_multirun(launcher: str, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = ["channel.snr_db=0,10,20", f"hydra/launcher={launcher}", "output=json", *FAST]
    report = last_json(megopt("tradeoff", "-m", *arguments, cwd=tmp_path))
    assert [run["overrides"][0] for run in report["runs"]] == [f"channel.snr_db={snr}" for snr in (0, 10, 20)]
    latency = [run["solutions"][-1]["value"] for run in report["runs"]]
    assert latency == sorted(latency, reverse=True)


@pytest.mark.slow
def test_a_multirun_goes_on_past_a_bad_value_and_says_so(tmp_path: Path) -> None:
    done = megopt("tradeoff", "-m", "seed=0,-1,1", "output=json", *FAST, cwd=tmp_path)
    assert done.returncode == 2
    runs = json.loads(done.stdout.strip().splitlines()[-1])["runs"]
    assert [run["status"] for run in runs] == ["optimal", "error", "optimal"]
    assert "1 of 3 runs were refused or infeasible: ['seed=-1'" in done.stderr


@pytest.mark.slow
def test_codecs_measure_a_folder(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    from PIL import Image

    (here / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(here / "images" / "red.png")
    report = answer(capfd, "codecs", "images=images")
    assert report["rows"][0]["bits_per_pixel"] == 24.0
    assert main(["codecs", "images=nowhere"]) == 2
    assert "images=nowhere: no such folder" in capfd.readouterr().err
    assert main(["codecs"]) == 0  # the table of the bundled photographs prints


@pytest.mark.slow
def test_same_seed_same_answer(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, again, other = (answer(capfd, "tradeoff", f"seed={seed}", *FAST) for seed in (1, 1, 2))
    assert first["curve"] == again["curve"]
    assert first["curve"] != other["curve"]


def test_info_lists_everything(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "info")
    assert {"profile", "scheme", "channel", "policy"} <= set(report["groups"])
    assert report["profiles"]["megsplitting_sdxl"]["metrics"] == "ssim, fid"
    assert not list(here.iterdir())


BAD_INPUT = [
    ("profile=nope", "Could not find 'profile/nope'"),
    ("profile.name=nope", "profile 'nope' is neither a folder nor one of"),
    ("profile.device_power_w=strong", "device_power_w = strong; expected watts above 0"),
    ("sede=1", "tradeoff has no key 'sede'; did you mean seed?"),
    ("channel.snr=1", "tradeoff has no key 'channel.snr'"),
    ("chanel=static", "no key 'chanel'; did you mean channel?"),
    ("num_steps=[60]", "num_steps = 60 lies outside the table; expected 25 to 50"),
    ("num_steps=25", "num_steps is 25; expected a list of distinct whole numbers"),
    ("num_steps=[25.5]", "num_steps is 25.5; expected a whole number from 1"),
    ("num_steps=[]", "num_steps is []; expected a list"),
    ("num_requests=0", "num_requests is 0; expected a whole number from 1"),
    ("num_requests=many", "num_requests is 'many'; expected a whole number from 1"),
    ("num_traces=0", "num_traces is 0; expected a whole number from 1"),
    ("seed=-1", "seed is -1; expected a whole number from 0"),
    ("seed=abc", "seed is 'abc'; expected a whole number from 0"),
    ("prompt_bits=.nan", "prompt_bits is"),
    ("prompt_bits=many", "prompt_bits is 'many'; expected a number"),
    ("channel.snr_db=loud", "snr_db is 'loud'; expected a number"),
    ("output=xml", "output=xml: expected table or json"),
    ("problem=max_quality scheme=[step_split]", "quality is asked for with metric ''; expected one of ssim"),
    ("problem.metric=beauty problem.objective=quality", "metric 'beauty'; expected one of ssim"),
    ("problem.objective=joy", "objective 'joy': expected one of latency_s"),
    ("problem.sweep.quantity=joy", "problem.sweep.quantity = 'joy'; expected one of latency_s"),
    ("problem.sweep.num_points=1", "num_points is 1; expected a whole number from 2"),
    ("problem.sweep.num_points=2.5", "num_points is 2.5; expected a whole number from 2"),
    ("problem.sweep.limits=5", "problem.sweep.limits = 5; expected a list, such as [5]"),
    ("problem.sweep.limits=[a]", "limits is 'a'; expected a number"),
    ("problem.sweep.limits=[.inf]", "limits is"),
    ("problem.limits.latency_s=fast", "limit on latency_s is 'fast'; expected a number"),
    ("problem.limits.latency_s=.nan", "limit on latency_s is"),
    ("problem.limits.energy_j=300", "problem.limits.energy_j is set and the same quantity is swept"),
    ("scheme=[]", "no scheme was named"),
    ("policy=[]", "no policy was named"),
    ("policy=[optimal,foo]", "Could not load 'policy/foo'. Available options in 'policy': average_optimal device_only"),
    ("policy=learned", "policy.learned.checkpoint is not given; expected a value"),
    ("scheme.step_split.codec_bits=[4]", "would look free"),
    ("scheme.conventional.codec_bits=[4]", "would look free"),
    ("scheme.step_split.codec_bits=[]", "codec_bits is []; expected a list"),
    ("scheme.region_split.num_region_ratios=5.5", "num_region_ratios is 5.5; expected a whole number"),
    ("problem.sweep.limits=[0.5,1]", "nearest feasible limit is"),
    ("problem.limits.latency_s=0.01", "nearest feasible limit"),
    ("==", "=="),
    ("--foo", "tradeoff has no flag '--foo'; options are key=value"),
    ("num_requests=10000000000", "expected at most 20,000,000; lower one of them"),
    ("num_steps=[25,30]", "holds no quality over num_steps, which would look free"),
    ("problem.limits.latency_s=-1", "limit on latency_s is -1; seconds and joules are >= 0"),
    ("problem.objective=energy_j", "energy_j is both the objective and the swept limit"),
    ("profile=null", "Config group override must be a string or a list"),
]


FEW_BAD = {
    "profile=nope",
    "profile.name=nope",
    "sede=1",
    "chanel=static",
    "num_steps=[60]",
    "seed=abc",
    "output=xml",
    "policy=[optimal,foo]",
    "problem.sweep.limits=[a]",
    "problem.limits.latency_s=.nan",
    "==",
    "--foo",
}
"""What is tried where slow tests are left out: one refusal of each kind."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [pytest.param(*pair, id=pair[0], marks=[] if pair[0] in FEW_BAD else pytest.mark.slow) for pair in BAD_INPUT],
)
@pytest.mark.usefixtures("here")
def test_bad_input_gets_one_line_and_exit_code_2(
    overrides: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["tradeoff", *FAST, *overrides.split(" ")]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("megopt: error: ")
    assert message in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        "policy=model_split",
        "policy=[edge_only_raw,optimal]",
        "channel=static channel.snr_db=-20 link=cqi policy=[step_split,optimal]",
        "num_requests=1 num_traces=1",
        "problem=max_quality profile=megsplitting_sdxl",
        "problem.limits.quality=0.95 profile=megsplitting_sdxl",
    ],
)
def test_unusual_but_legal_settings_run(overrides: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "tradeoff", *FAST, *overrides.split(" "))
    assert all((here / path).is_file() for path in report["files"])


@pytest.mark.slow
def test_the_optimum_over_all_rows_has_the_largest_hypervolume(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volumes = answer(capfd, "tradeoff", "num_requests=4", "num_traces=4")["hypervolume"]
    assert set(volumes) == {"optimal", "step_split"}
    assert volumes["optimal"] >= volumes["step_split"]


@pytest.mark.slow
def test_ties_in_quality_are_broken_by_latency(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "tradeoff", "experiment=megsplitting", "problem=max_quality", "policy=[optimal]")
    last = report["curve"][-1]
    assert last["quality"] == 1.0
    assert last["latency_s"] == pytest.approx(4.1405, abs=1e-4)  # model split, not the slower lossless images


@pytest.mark.slow
def test_the_nearest_limit_is_named_for_the_most_relaxed_problem(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tradeoff", *FAST, "problem.limits.latency_s=1"]) == 2
    line = capfd.readouterr().err
    assert "latency_s <= 1 is below what any row reaches; the nearest feasible limit is 2.9" in line


@pytest.mark.slow
def test_the_closed_form_keeps_its_own_limit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "tradeoff", "experiment=megsplitting", "problem.sweep.num_points=24")
    assert {point["violation_rate"] for point in report["curve"]} == {0.0}
    assert report["closed_form"]["worst_gap"] < 1e-12
    assert report["closed_form"]["worst_disagreement_with_cone_program"] < 1e-6


def test_bad_input_of_a_process_shows_no_traceback(tmp_path: Path) -> None:
    done = megopt("tradeoff", "profile=nope", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_an_infeasible_limit_is_a_status_that_still_writes_its_records(tmp_path: Path) -> None:
    done = megopt("tradeoff", *FAST, "output=json", "problem.sweep.limits=[0.5]", cwd=tmp_path)
    assert done.returncode == 2
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["status"] == "infeasible"
    assert "energy_j" in report["nearest_feasible_limit"]
    assert (tmp_path / report["files"][0]).is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy_j", "joules", "mine/compute.csv: column energy_j is missing"),
        (",1104.11,", ",-1,", "mine/compute.csv: energy_j < 0"),
        (",2.8583,", ",nan,", "mine/compute.csv: latency_s is NaN"),
    ],
)
def test_a_spoilt_profile_is_named_on_the_command_line(
    old: str, new: str, message: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = here / "mine"
    folder.mkdir()
    for source in (ROOT / "profiles" / "a100__snapdragon8gen3__sdxl").iterdir():
        (folder / source.name).write_text(source.read_text())
    path = folder / "compute.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["tradeoff", *FAST, "profile.name=mine"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert message in error
