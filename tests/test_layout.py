"""The tree holds together: links, imports, packaging, README."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import megopt

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", ["envs", "experiments", "conf", "profiles"])
def test_links_resolve_to_the_real_folders(name: str) -> None:
    link = ROOT / "megopt" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name
    assert importlib.import_module(f"megopt.{name}").__doc__


def test_every_package_is_installed() -> None:
    packages = {path.parent for path in (ROOT / "megopt").glob("**/__init__.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in packages}
    names |= {f"megopt.{name}" for name in ("envs", "experiments", "conf", "profiles")}
    assert names == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_constraints_pin_torch_and_keep_out_what_breaks_it() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["torch"] == "2.13.0"
    extras = " ".join(name for names in PYPROJECT["project"]["optional-dependencies"].values() for name in names)
    assert "torchvision" not in extras + " ".join(pins)
    assert "zeus" not in extras + " ".join(pins)
    required = {re.split(r"[<>=\[]", name)[0] for name in PYPROJECT["project"]["dependencies"]}
    assert required <= set(pins), f"without a pin: {required - set(pins)}"


def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("optimal ")
    assert float(second.split()[0]) <= 600.0


def test_the_package_offers_its_names_without_loading_them() -> None:
    code = "import megopt, sys; print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'pandas', 'torch'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(megopt.__all__) == set(megopt._ROOM_OF)
    assert all(getattr(megopt, name).__name__ == name for name in megopt.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'sove'"):
        megopt.sove  # noqa: B018


def test_readme_links_and_figures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_readme_commands_name_real_verbs_and_targets() -> None:
    from megopt.configuration import VERBS

    spans = " ".join(re.findall(r"`[^`]+`", README.replace("```", "")))
    assert set(re.findall(r"`megopt ([a-z-]+)", spans)) <= set(VERBS)
    targets = set(re.findall(r"`make ([a-z-]+)`", spans))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_source_file_is_of_readable_size() -> None:
    for path in [*(ROOT / "megopt").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, f"{path.relative_to(ROOT)} holds two rooms"
