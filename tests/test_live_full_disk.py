"""A disk that fills up under two real processes: the limit of the kernel on a file's size stands for it.

Linux refuses a write beyond the limit as it refuses one on a full disk: with an OSError at that write.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from megopt.analysis.records import read_records
from megopt.live.parity_processes import edge_process

pytestmark = pytest.mark.heavy
START = "import sys; from megopt.application import run_verb; sys.exit(run_verb(sys.argv[1], sys.argv[2:]))"
NUM_REQUESTS = 4
DEADLINE_S = 60.0
FULL_BYTES = 512  # less than an image or a file of records


def started(*arguments: str, num_bytes: int | None = None) -> subprocess.Popen[str]:
    """Start a verb as a process of its own, under a limit on the size of its files."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes})); "
    start = START if num_bytes is None else limit + START
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", start, *arguments], stdout=pipe, stderr=pipe, text=True)


def fill(process: psutil.Process | subprocess.Popen[str], num_bytes: int = 0) -> None:
    """Let a running process write no file beyond a size."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def edge_of(process: psutil.Process) -> psutil.Process:
    """Return the edge among the children of a process."""
    (found,) = [child for child in process.children() if "serve" in child.cmdline()]
    return found


def test_an_image_that_cannot_be_written_is_told_and_the_edge_goes_on(
    tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    def generate(port: int, name: str, num_bytes: int | None) -> tuple[int, str, str]:
        process = started(
            "generate",
            "a red cube",
            "policy=step_split",
            f"deadline_s={DEADLINE_S}",
            f"edge=http://127.0.0.1:{port}",
            f"model={tiny_pipelines['sd_device']}",
            "output=json",
            "hydra.output_subdir=null",
            f"hydra.run.dir={tmp_path / name}",
            num_bytes=num_bytes,
        )
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    with edge_process({"model": tiny_pipelines["sd"], "num_threads": 1}, tmp_path / "edge") as port:
        fill(edge_of(psutil.Process()))  # its log is a file: it cannot say a word any more
        code, _, err = generate(port, "full", FULL_BYTES)
        again, out, _ = generate(port, "free", None)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"megopt: error: {tmp_path / 'full' / 'image.png'}: the image is made and cannot be written")
    assert list((tmp_path / "full").iterdir()) == []
    assert again == 0
    assert json.loads(out.splitlines()[-1])["edge_steps"] > 0
    assert np.asarray(Image.open(tmp_path / "free" / "image.png")).shape == (64, 64, 3)


def test_records_that_cannot_be_written_are_told_and_the_run_goes_on_later(tmp_path: Path) -> None:
    arguments = (
        "live",
        "policy=[step_split]",
        "snr_db=[20]",
        f"num_requests={NUM_REQUESTS}",
        "requests_per_s=100",
        "num_warm_up=0",
        "compute=profile",
        f"deadline_s={DEADLINE_S}",
        "edge.num_threads=1",
        "output=json",
        f"folder={tmp_path / 'book'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    path = tmp_path / "book" / "records.parquet"
    process = started(*arguments)
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    fill(process, FULL_BYTES)
    edge = edge_of(psutil.Process(process.pid))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"megopt: error: folder {path.parent}: cannot be written ([Errno 27]")
    assert last.endswith("free some space, and start again to go on")
    assert not edge.is_running()
    before = read_records(path)
    assert 1 <= len(before) < NUM_REQUESTS
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []  # no half of a file
    process = started(*arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    after = read_records(path)
    assert sorted(after["request"]) == list(range(NUM_REQUESTS))
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
