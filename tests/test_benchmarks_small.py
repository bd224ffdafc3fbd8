"""The benchmarks of models, live runtime and sweeps run whole at a small size, and their numbers belong together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megopt.benchmarks import generate, live, sweep
from megopt.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_generate_tells_its_share_of_the_stock_pipeline() -> None:
    found = generate.run(num_steps=2, num_threads=1, repeats=1)
    assert found["share_of_stock"] == pytest.approx(found["image_s"] / found["stock_image_s"])
    assert 0.0 < found["load_s"] < 60.0
    with pytest.raises(ConfigError, match="benchmark generate: num_threads is 0"):
        generate.run(num_threads=0)


def test_live_tells_rates_of_one_client_and_of_several() -> None:
    found = live.run(num_requests=2, num_steps=8, num_clients=2, num_images=4, repeats=1, num_threads=1, seed=0)
    gain = found["live.clients_images_per_s"] / found["live.one_client_images_per_s"]
    assert found["live.batching_gain"] == pytest.approx(gain)
    assert 0.0 < found["live.overhead_median_s"] < found["live.latency_median_s"]
    assert 0.0 < found["live.models_share"] < 1.0


def test_sweep_tells_overheads_and_reads_what_it_wrote() -> None:
    found = sweep.run(num_runs=2, num_records=25_000)
    ratio = found["overhead.hydra_joblib_s"] / found["overhead.megopt_s"]
    assert found["overhead.ratio"] == pytest.approx(ratio)
    assert found["records.num_records"] == 25_000
    parts = ("write", "filter", "aggregate", "plot")
    assert found["records.total_s"] == pytest.approx(sum(found[f"records.{part}_s"] for part in parts))
