"""What the operating system refuses while a verb runs: one line with what to do, and exit code 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megopt.application import run_verb
from megopt.configuration import VERBS
from megopt.files import ADVICE, os_complaint, write_atomically

FULL_BYTES = 64 << 10
FAST = ["experiment=published", "num_requests=4", "num_traces=4", "problem.sweep.num_points=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for a few small files only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def the_line(capfd: pytest.CaptureFixture[str]) -> str:
    """Return what was said; it is one line."""
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("megopt: error: ")
    return line


@pytest.mark.parametrize(
    "verb", [verb if verb == "tradeoff" else pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS]
)
def test_a_folder_below_a_file_is_told_by_every_verb(verb: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    assert run_verb(verb, ["hydra.run.dir=file/run", "hydra.output_subdir=.hydra"]) == 2
    line = the_line(capfd)
    assert "file/run: Not a directory; a file is where a folder was expected" in line
    assert "hydra.run.dir=FOLDER" in line


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["tradeoff", "live", "info"])
def test_a_disk_that_is_full_at_the_start_is_told(
    verb: str, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "all of it").write_bytes(bytes(2 * FULL_BYTES))
    assert run_verb(verb, [f"hydra.run.dir={small_disk}/run", "hydra.output_subdir=.hydra"]) == 2
    assert "No space left on device; free some space, or write elsewhere" in the_line(capfd)


@pytest.mark.slow
def test_a_disk_that_fills_up_during_the_run_is_told(small_disk: Path) -> None:
    command = [sys.executable, "-m", "megopt.cli", "tradeoff", *FAST, f"hydra.run.dir={small_disk}/run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("megopt: error: ")]
    assert "No space left on device; free some space" in line
    assert line.startswith(f"megopt: error: {small_disk}/run/")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "theirs").mkdir(mode=0o500)
    assert run_verb("tradeoff", ["hydra.run.dir=theirs/run"]) == 2
    assert "theirs/run: Permission denied; change its permissions" in the_line(capfd)


@pytest.mark.slow
def test_a_read_only_file_system_is_told(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run_verb("tradeoff", [f"hydra.run.dir={small_disk}/run"]) == 2
    assert f"{small_disk}/run: Read-only file system; change its permissions" in the_line(capfd)


def test_a_writer_that_stumbles_over_a_refusal_does_not_hide_it(tmp_path: Path) -> None:
    def stumbling(path: Path) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            None.close()  # type: ignore[attr-defined]

    def faulty(path: Path) -> None:
        path.write_text("half")
        raise AttributeError

    with pytest.raises(OSError, match="No space left on device") as refused:
        write_atomically(tmp_path / "a.pdf", stumbling)
    assert refused.value.filename == str(tmp_path / "a.pdf")
    with pytest.raises(AttributeError):
        write_atomically(tmp_path / "a.pdf", faulty)
    assert list(tmp_path.iterdir()) == []


def test_every_number_with_advice_names_file_words_and_advice() -> None:
    for number, advice in ADVICE.items():
        assert os_complaint(OSError(number, os.strerror(number), "a")) == f"a: {os.strerror(number)}; {advice}"
    both = OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")
    assert os_complaint(both) == "a -> b: Invalid cross-device link"
    assert os_complaint(OSError("two\n  lines")) == "two lines"
    assert os_complaint(ConnectionResetError()) == "ConnectionResetError"
