"""Every example of docs/solvers.md runs as it stands and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "solvers.md").read_text()
EXAMPLES = re.findall(r"### ([^\n]+)\n\n```python\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT, flags=re.DOTALL)
NUMBER = r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), [pair for _, *pair in EXAMPLES], ids=[title for title, *_ in EXAMPLES])
def test_an_example_prints_what_is_below_it(code: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/solvers.md", "exec"), {})
    came = capsys.readouterr().out
    assert re.sub(NUMBER, "#", came).split() == re.sub(NUMBER, "#", printed).split()
    expected = [float(number) for number in re.findall(NUMBER, printed)]
    assert [float(number) for number in re.findall(NUMBER, came)] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_every_solver_of_the_table_has_an_example() -> None:
    assert len(EXAMPLES) == DOCUMENT.count("```python") == 9
    shown = " ".join(code for _, code, _ in EXAMPLES)
    for module in ("exhaustive", "average_limits", "average_surface", "occupancy", "allocation", "cell", "cell_exact"):
        assert re.search(rf"\b{module}\b" if module != "exhaustive" else r"\bsolve\(", shown), module
    assert all(name in shown for name in ("generation_splitting", "solve_exactly", "cluster", "bound", "DriftPlus"))
