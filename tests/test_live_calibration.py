"""What earlier requests teach about predictions, and joules that are shared: known numbers, limiting cases."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import ConfigError, PayloadError
from megopt.live.calibration import CALIBRATIONS, Calibration, Taken
from megopt.live.decision import Decision
from megopt.live.jobs import Job
from megopt.live.messages import Request, Result
from megopt.live.shared_energy import SharedEnergy
from megopt.live.wire import Frame
from megopt.metering.energy import Energy
from megopt.system.outcome import Work

ONE = {name: np.ones(1) for name in Work.__dataclass_fields__}
WORK = Work(**ONE | {"edge_s": np.array([0.2]), "device_s": np.array([0.5])})
TOOK = Taken(edge_s=0.4, device_s=0.6, runtime_s=0.01)


@pytest.mark.parametrize("learns", CALIBRATIONS)
def test_nothing_is_corrected_before_the_first_request(learns: str) -> None:
    calibration = Calibration(learns)
    assert calibration.runtime_s == 0.0
    assert calibration.corrected(WORK).edge_s[0] == 0.2


def test_what_is_learned_is_what_was_asked_for() -> None:
    learned = {name: Calibration(name) for name in CALIBRATIONS}
    for calibration in learned.values():
        calibration.learn(WORK, TOOK)
    assert [learned[name].runtime_s for name in CALIBRATIONS] == [0.0, 0.01, 0.01]
    assert learned["runtime"].corrected(WORK) is WORK
    corrected = learned["speed"].corrected(WORK)
    assert corrected.edge_s[0] == pytest.approx(0.4)
    assert corrected.device_s[0] == pytest.approx(0.6)
    assert corrected.edge_energy_j[0] == pytest.approx(2.0)
    assert corrected.downlink_bits[0] == 1.0


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=20))
def test_it_is_the_median_of_the_last(runtimes_s: list[float]) -> None:
    calibration = Calibration(num_kept=5)
    for runtime_s in runtimes_s:
        calibration.learn(WORK, Taken(edge_s=0.0, device_s=0.5, runtime_s=runtime_s))
    assert calibration.runtime_s == np.median(runtimes_s[-5:])


def test_a_side_that_did_nothing_teaches_nothing() -> None:
    calibration = Calibration("speed")
    idle = Work(**ONE | {"edge_s": np.zeros(1)})
    calibration.learn(idle, Taken(edge_s=0.0, device_s=2.0, runtime_s=0.0))
    corrected = calibration.corrected(WORK)
    assert (corrected.edge_s[0], corrected.device_s[0]) == (0.2, 1.0)
    with pytest.raises(ConfigError, match="expected one of none, runtime, speed"):
        Calibration("all")


# --- joules ---------------------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """A meter of recorded windows."""

    windows_j: list[float]
    device: str = "x"
    shortest_window_s: float = 0.0
    is_open: bool = field(default=False, init=False)

    def begin(self) -> None:
        assert not self.is_open
        self.is_open = True

    def end(self) -> Energy:
        assert self.is_open
        self.is_open = False
        energy_j = self.windows_j.pop(0)
        return Energy(energy_j=energy_j, source="not_measured" if np.isnan(energy_j) else "nvml", device=self.device)


def job() -> Job:
    request = Request(
        request_id=uuid.uuid4().hex,
        prompt="a cube",
        negative_prompt=None,
        sampler="ddim",
        guidance_scale=3.0,
        seed=0,
        height_px=32,
        width_px=32,
        schedule_crc=0,
        checkpoint_every=0,
        deadline_s=1.0,
        decision=Decision(mode="step_split", num_steps=4, split_step=2),
    )
    return Job(request=request, digest=b"")


def test_each_request_bears_its_share_of_the_windows_that_it_was_there() -> None:
    early, late = job(), job()
    meter = Recorded([4.0, 3.0])
    with SharedEnergy(meter, [early, late]) as shared:
        assert shared.of_leaving(early) == 2.0
        assert shared.of_leaving(late) == 2.0 + 3.0
    assert shared.source == "nvml"
    assert not meter.is_open


def test_a_request_that_ended_bears_what_it_cost_and_unknown_joules_stay_unknown() -> None:
    first, gone, last = job(), job(), job()
    with SharedEnergy(Recorded([6.0, 5.0]), [first, gone, last]) as shared:
        assert shared.of_leaving(first) == 2.0
        shared.drop(gone)
        shared.drop(gone)
        assert shared.of_leaving(last) == 2.0 + 5.0
    unmetered, meter = job(), Recorded([np.nan, 1.0])
    with SharedEnergy(meter, [unmetered]) as shared:
        assert shared.of_leaving(unmetered) is None
    with pytest.raises(KeyError), SharedEnergy(meter, [job()]):
        raise KeyError
    assert not meter.is_open  # whatever a model raises


@pytest.mark.parametrize(
    "changes", [{"energy_j": -1.0}, {"energy_j": 1.0, "energy_source": "guess"}, {"energy_j": 1.0}, {"compute_s": -1.0}]
)
def test_a_result_with_impossible_joules_is_refused(changes: dict[str, Any]) -> None:
    plain = {"mode": "step_split", "num_steps": 4, "split_step": 2}
    fields = {"request_id": "0" * 32, "step": 2, "queue_s": 0.0, "compute_s": 1.0, "total_s": 1.0, "batch_size": 1.0}
    known = {**fields, "decision": asdict(Decision(**plain)), "energy_j": None, "energy_source": "not_measured"}
    assert Result.of_frame(Frame(kind="result", fields=known)).energy_j is None
    with pytest.raises(PayloadError):
        Result.of_frame(Frame(kind="result", fields=known | changes))
