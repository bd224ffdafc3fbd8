"""What `megopt sweep` says: progress with the time left, and what became of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.sweeps.execution import Execution
from megopt.sweeps.run import Outcome, RunStatus
from megopt.sweeps.store import Store

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
INPUT_FAULT = 2
MAX_MESSAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A bar on stderr, where that is a terminal.

    Attributes:
        bar: the bar.
    """

    bar: tqdm[Any]

    def reach(self, number: int) -> None:
        """Say how many are done in all."""
        self.bar.update(number - self.bar.n)

    def note(self, outcome: Outcome) -> None:
        """Count one run."""
        self.bar.update()
        if outcome.status in {RunStatus.REFUSED, RunStatus.FAILED}:
            self.bar.set_postfix_str(f"last {outcome.status}: {outcome.message[:60]}")


@contextmanager
def progress(num_runs: int, num_done: int, verb: str = "sweep") -> Iterator[Progress]:
    """Show how many runs are back, of which `num_done` were before, and the time left."""
    with tqdm(total=num_runs, initial=num_done, desc=verb, unit="run", disable=None) as bar:
        yield Progress(bar=bar)


def report(done: Execution, store: Store) -> Report:
    """Return the report of a sweep."""
    counts = {str(status): len(done.with_status(status)) for status in RunStatus}
    new = list(done.outcomes.values())
    name = done.runs[0].sweep
    summary = {
        "sweep": name,
        "num_runs": len(done.runs),
        "skipped": done.num_skipped,
        **{status.replace(" ", "_"): count for status, count in counts.items()},
        "interrupted": done.is_interrupted,
        "num_records": sum(outcome.num_records for outcome in new),
        "wall_s": done.wall_s,
        "call_s": sum(outcome.call_s for outcome in new),
        "workers": sorted({outcome.worker for outcome in new if outcome.worker}),
        "results": str(store.folder),
        "messages": _messages(done),
    }
    return Report(
        summary=summary,
        headline=_headline(done, counts),
        tables=[rich_table(f"sweep {name}", ["runs", "number"], _rows(done, counts))],
        lines=[*_lines(done, store, name)],
        complaints=_complaints(done, counts),
        exit_code=_exit_code(done, counts),
    )


def _headline(done: Execution, counts: dict[str, int]) -> str:
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    parts += [f"{done.num_skipped} done before"] if done.num_skipped else []
    return f"{len(done.runs)} runs: {', '.join(parts) or 'none carried out'} in {done.wall_s:.1f} s"


def _rows(done: Execution, counts: dict[str, int]) -> list[list[str]]:
    rows = [["all", str(len(done.runs))], ["done before, skipped", str(done.num_skipped)]]
    rows += [[f"{status} now", str(count)] for status, count in counts.items() if count or status == RunStatus.DONE]
    missing = len(done.runs) - done.num_skipped - sum(counts.values())
    return rows + ([["not carried out", str(missing)]] if missing else [])


def _lines(done: Execution, store: Store, name: str) -> Sequence[str]:
    new = list(done.outcomes.values())
    num_records, workers = sum(o.num_records for o in new), {o.worker for o in new if o.worker}
    lines = [f"{_headline(done, Counter(str(o.status) for o in new))}; {num_records:,} records"]
    if workers:
        lines += [f"{len(workers)} workers were {sum(o.call_s for o in new):.1f} s inside the library call"]
    lines += [f"note: {text}" for text in _messages(done, RunStatus.LEFT_OUT)]
    folder = shown_path(store.folder.resolve())
    return [*lines, f"records in {folder}/sweep={name}; ask them: megopt results results={folder} sweep={name}"]


def _messages(done: Execution, *statuses: RunStatus) -> list[str]:
    """Return what kept runs from having records, each message once, with how many runs it kept."""
    wanted = statuses or tuple(RunStatus)
    overrides = {run.run_id: " ".join(run.overrides) for run in done.runs}
    texts = [o for status in wanted for o in done.with_status(status) if o.message]
    counts = Counter(o.message for o in texts)
    first = {o.message: overrides[o.run_id] for o in reversed(texts)}
    shown = [f"{text} [{count} runs, such as {first[text]}]" for text, count in counts.most_common(MAX_MESSAGES)]
    return shown + ([f"{len(counts) - MAX_MESSAGES} more reasons"] if len(counts) > MAX_MESSAGES else [])


def _complaints(done: Execution, counts: dict[str, int]) -> list[str]:
    lines = _messages(done, RunStatus.REFUSED, RunStatus.FAILED)
    if done.is_interrupted:
        num = done.num_skipped + counts[RunStatus.DONE] + counts[RunStatus.LEFT_OUT]
        lines.append(f"interrupted with {num} of {len(done.runs)} runs done; the same command goes on from here")
    return lines


def _exit_code(done: Execution, counts: dict[str, int]) -> int:
    if done.is_interrupted:
        return INTERRUPTED
    if counts[RunStatus.FAILED]:
        return 1
    return INPUT_FAULT if counts[RunStatus.REFUSED] else 0
