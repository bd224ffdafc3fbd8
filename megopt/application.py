"""Runs a verb under Hydra: one-line errors with exit code 2, one report per run, one summary per multirun."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megopt.analysis.report import Report
from megopt.configuration import group_choices, root_name
from megopt.errors import ConfigError, MegoptError
from megopt.files import os_complaint, write_atomically
from megopt.prompt_override import with_quoted_prompt

INPUT_FAULT = 2
"""Exit code where the input is at fault, or no limit can be kept."""
REPORT_FILE = "report.json"
INPUT_ERRORS = (MegoptError, HydraException, OmegaConfBaseException, OSError)
"""Said in one line; OSError is what the operating system refuses: a full disk, a folder that may not be written."""
HYDRA_FLAGS = ("-m", "--multirun", "-c", "--cfg", "-p", "--package", "--resolve", "--info", "-i", "-r", "--run")
"""Flags that go through to Hydra."""


def run_verb(verb: str, overrides: list[str]) -> int:
    """Run `megopt VERB overrides` and return the exit code."""
    flags = [item for item in overrides if item.startswith("-") and item.split("=")[0] not in HYDRA_FLAGS]
    if flags:
        _complain(f"{verb} has no flag {flags[0]!r}; options are key=value (`megopt {verb} --help`), -m and --cfg job")
        return INPUT_FAULT
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # remarks on what is not installed are nobody's business
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions reach us whole instead of being printed by Hydra
    sys.argv = [f"megopt {verb}", *with_quoted_prompt(verb, overrides)]
    app = hydra.main(version_base="1.3", config_path="pkg://megopt.conf", config_name=root_name(verb))(_task)
    try:
        app()
    except SystemExit as exit_request:
        return int(exit_request.code or 0)
    except INPUT_ERRORS as error:
        _complain(_explain(error, verb))
        return INPUT_FAULT
    except ValueError as error:  # Hydra refuses some overrides with a bare ValueError
        if not _raised_in_hydra(error):
            raise
        _complain(_explain(error, verb))
        return INPUT_FAULT
    return 0


def _raised_in_hydra(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hydra.")


def _task(config: DictConfig) -> None:
    """Run one job; module-level so that launchers can send it to a worker."""
    settings = HydraConfig.get()
    verb, is_single = str(settings.job.config_name), settings.mode == RunMode.RUN
    output_dir = Path(settings.runtime.output_dir)
    try:
        report = run_config(verb, config, output_dir)
    except INPUT_ERRORS as error:
        text = _explain(error, verb)
        if is_single:
            _complain(text)
            raise SystemExit(INPUT_FAULT) from None
        report = Report(summary={"status": "error", "error": text}, headline=f"error: {text}", exit_code=INPUT_FAULT)
    if not is_single or settings.output_subdir is not None:
        write_atomically(output_dir / REPORT_FILE, lambda path: path.write_text(report.as_json() + "\n"))
    if is_single:
        _show(report, str(config.output))
        raise SystemExit(report.exit_code)


def run_config(verb: str, config: DictConfig, output_dir: Path) -> Report:
    """Return the report of one verb on one composed configuration."""
    if config.output not in {"table", "json"}:
        message = f"output={config.output}: expected table or json"
        raise ConfigError(message)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        message = f"{missing[0]} is not given; expected a value (`megopt {verb} --help` says which); set {missing[0]}="
        raise ConfigError(message)
    report: Report = importlib.import_module(f"megopt.experiments.{verb}").run(config, output_dir)
    return report


def _show(report: Report, output: str) -> None:
    if output == "json":
        sys.stdout.write(report.as_json() + "\n")
    else:
        report.print()
    for line in report.complaints:
        _complain(line)


def _complain(line: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"megopt: error: {line}\n")


def _explain(error: BaseException, verb: str) -> str:
    """Return one line for an error of ours, of Hydra, of OmegaConf or of the operating system."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MegoptError):
            return " ".join(str(cause).split())
        if isinstance(cause, OSError) and not isinstance(cause, HydraException):  # a missing choice is both
            return os_complaint(cause)
        cause = cause.__cause__
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if unknown:
        return _unknown_key(unknown.group(1) or unknown.group(2), verb)
    return re.sub(r" (full_key|Config search path): .*$", "", text) + _choices(text) + _quoting(text, verb)


def _choices(text: str) -> str:
    """Return what a group offers, where one of a list of choices is unknown and Hydra does not say."""
    missing = re.search(r"Could not load '(\w+)/", text)
    return f" Available options in {missing[1]!r}: {' '.join(group_choices(missing[1]))}" if missing else ""


def _quoting(text: str, verb: str) -> str:
    """Return how to write the quotes of SQL, where Hydra could not read them."""
    if verb != "results" or "override_grammar" not in text:
        return ""
    from megopt.sweeps.query import QUOTING

    return f"; {QUOTING}"


def _unknown_key(key: str, verb: str) -> str:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        known = _leaf_keys(OmegaConf.to_container(hydra.compose(config_name=root_name(verb)), resolve=False))
    known = [name for name in known if not name.rpartition(".")[2].startswith("_")]
    near = difflib.get_close_matches(key, [*known, *{name.split(".")[0] for name in known}], n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    new = "; a setting that the yaml does not list needs a + before it" if ".settings." in key else ""
    return f"{verb} has no key {key!r}{guess} (`megopt {verb} --help` lists the keys){new}"


def _leaf_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [
        leaf for key, value in node.items() for leaf in _leaf_keys(value, f"{prefix}.{key}" if prefix else str(key))
    ]


class MultirunSummary(Callback):
    """After a multirun: one table, or with output=json one JSON object, over the reports of all runs."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collect the reports below the sweep folder and print them."""
        sweep_dir = Path(config.hydra.sweep.dir)
        reports = sorted(sweep_dir.glob(f"*/{REPORT_FILE}"), key=lambda path: (len(path.parent.name), path.parent.name))
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in reports]
        overrides = [_overrides(path.parent) for path in reports]
        summary = {"runs": [{"overrides": o, **run} for o, run in zip(overrides, runs, strict=True)]}
        if config.output == "json":
            sys.stdout.write(json.dumps(summary) + "\n")
        else:
            lines = [f"{', '.join(o):<40} {run.get('headline', '')}" for o, run in zip(overrides, runs, strict=True)]
            sys.stdout.write("\n".join([*lines, f"{len(runs)} runs in {sweep_dir}"]) + "\n")
        failed = [o for o, run in zip(overrides, runs, strict=True) if run["exit_code"]]
        if failed:
            _complain(f"{len(failed)} of {len(runs)} runs were refused or infeasible: {failed[0]} first")
            raise SystemExit(INPUT_FAULT)


def _overrides(run_dir: Path) -> list[str]:
    path = run_dir / ".hydra" / "overrides.yaml"
    return [str(item) for item in OmegaConf.load(path)] if path.is_file() else [run_dir.name]
