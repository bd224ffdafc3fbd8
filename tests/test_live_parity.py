"""Parity: streams of prompts, predictions on the wire, errors by hand, the book that goes on, and one served cell."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megopt.analysis.generated_report import save_image
from megopt.analysis.parity import TERMS, errors, errors_by, parity_record, relative_error, terms_s
from megopt.analysis.parity_book import ParityBook
from megopt.analysis.parity_figure import save_parity_figure
from megopt.analysis.parity_report import parity_report, write_parity_sheet
from megopt.arrays import IntArray
from megopt.errors import ConfigError
from megopt.live.course import Prompt
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.packets import Stream
from megopt.live.parity import ReplayedLink, cells, prompts, serve
from megopt.live.parity_processes import edge_process
from megopt.live.predictions import with_frames
from megopt.live.server import served_in_thread
from megopt.live.service import EdgeService
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.policies.base import Observation
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import NUM_STEPS, SPLIT_STEP
from megopt.system.channel import Rayleigh, Static
from megopt.system.link import Link
from megopt.system.outcome import Outcome, Work

LINK = Link(bandwidth_hz=1e6, round_trip_s=0.01)
HOW: dict[str, Any] = {"deadline_s": 30.0, "sampler": "ddim", "guidance_scale": 3.0}


def outcome_of(latency_s: float, edge_s: float = 0.0, device_s: float = 0.0, downlink_s: float = 0.0) -> Outcome:
    values = {"latency_s": latency_s, "edge_s": edge_s, "device_s": device_s, "downlink_s": downlink_s}
    unknown = dict.fromkeys(("edge_energy_j", "device_energy_j", "energy_j", "quality"), np.nan)
    known = {**values, "uplink_s": 0.0, "payload_bits": 0.0, **unknown}
    return Outcome(**{name: np.array([value]) for name, value in known.items()})


def records_of(pairs: list[tuple[float, float]], policy: str = "optimal", limit_s: float = 1.0) -> pd.DataFrame:
    """Records of (predicted, measured) latencies."""
    problem = Problem(limits=(Limit(quantity="latency_s", bound=limit_s),))
    state = LINK.state(np.array([10.0]))
    named = {"profile": "tiny", "policy": policy, "scheme": "step_split", "label": "x", "row": 0, "kind": "measured"}
    own = {"trace": 0, "level_db": 10.0, "waited_s": 0.0, "edge_steps": 2, "deadline_s": 30.0}
    told = {"energy_source": "not_measured", "edge_energy_source": "power_model", "notes": "", "prompt": "a cube"}
    own |= {"predicted_runtime_s": 0.02, "probability": 1.0, "shadow_row": 0 if policy == "optimal" else 1}
    return pd.concat(
        [
            parity_record(
                outcome_of(predicted, 0.1, 0.2),
                outcome_of(measured, 0.1, 0.2, 0.05),
                state,
                problem,
                {**named, **own, **told, "request": number, "table_latency_s": predicted - 0.02},
            )
            for number, (predicted, measured) in enumerate(pairs)
        ],
        ignore_index=True,
    )


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    found = errors(records_of([(0.9, 1.0), (1.0, 1.0), (1.5, 1.2)]))
    assert found.median_abs_error == pytest.approx(0.1)
    assert found.p95_abs_error == pytest.approx(np.quantile([0.1, 0.0, 0.25], 0.95))
    assert found.limits_kept_share == pytest.approx(2 / 3)  # 1.2 s is above the limit of 1 s
    assert not found.limits_kept
    assert found.terms_s["edge"] == pytest.approx((0.1, 0.1, 0.0))
    assert found.terms_s["total"][2] == pytest.approx(0.1)
    assert found.terms_s["runtime"][0] == pytest.approx(0.02)
    assert found.table_median_abs_error == pytest.approx(0.12)  # the table knows no runtime
    assert found.num_noted == 0


@given(st.lists(st.tuples(st.floats(0.5, 5.0), st.floats(0.5, 5.0)), min_size=1, max_size=5))
def test_terms_add_up_and_a_true_prediction_has_no_error(pairs: list[tuple[float, float]]) -> None:
    records = records_of(pairs)
    for of in ("predicted", "measured"):
        terms = terms_s(records, of=of)
        assert sum(terms[term] for term in TERMS[:-1]) == pytest.approx(terms["total"])
    exact = records.assign(predicted_latency_s=records["latency_s"])
    assert np.all(relative_error(exact) == 0.0)


def test_a_late_request_keeps_no_limit() -> None:
    records = records_of([(0.9, 0.9)]).assign(deadline_s=0.5)
    assert errors(records).limits_kept_share == 0.0


# --- report, figure, book -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_holds_the_keys_that_scripts_read(tmp_path: Path) -> None:
    records = pd.concat([records_of([(0.9, 1.0)]), records_of([(2.0, 1.0)], "step_split")], ignore_index=True)
    report = parity_report(records, [tmp_path / "x"])
    assert report.summary["median_abs_error"] == pytest.approx(0.55)
    assert report.summary["limits_kept"] is True
    assert report.summary["policies"]["step_split"]["p95_abs_error"] == pytest.approx(1.0)
    assert list(errors_by(records, "policy")) == ["optimal", "step_split"]
    assert '"median_abs_error": 0.55' in report.as_json()
    assert report.summary["shadow_agreement"] == 0.5
    assert report.summary["edge_energy_source"] == "power_model"
    files = save_parity_figure(records, "note", tmp_path / "parity")
    sheet = write_parity_sheet(tmp_path / "s.png", {"optimal": np.zeros((1, 8, 8, 3), np.uint8)}, ["a cube"])
    assert all(path.stat().st_size > 1000 for path in [*files, sheet])


def test_a_book_goes_on_and_refuses_another_experiment(tmp_path: Path) -> None:
    book = ParityBook(tmp_path, {"seed": 0})
    assert book.done() == set()
    for number in range(2):
        record = records_of([(0.9, 1.0)]).assign(request=number)
        book.add(record, np.full((4, 4, 3), number, np.uint8))
    again = ParityBook(tmp_path, {"seed": 0})
    assert again.done() == {("optimal", 10.0, 0), ("optimal", 10.0, 1)}
    assert again.images(["optimal"], [10.0])["optimal"].max() == 0  # the first one
    with pytest.raises(ConfigError, match="run of other seed; choose another name"):
        ParityBook(tmp_path, {"seed": 1})


def test_a_full_disk_is_told_and_the_book_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    book = ParityBook(tmp_path / "book", {"seed": 0})
    image, record = np.zeros((4, 4, 3), np.uint8), records_of([(0.9, 1.0)])
    book.add(record, image)
    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full)
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(ConfigError, match=r"No space left on device.*\); free some space"):
            book.add(record.assign(policy="other", request=1), image)
        with pytest.raises(ConfigError, match="the image is made and cannot be written"):
            save_image(image, tmp_path / "image.png")
    again = ParityBook(tmp_path / "book", {"seed": 0})
    assert again.done() == book.done() == {("optimal", 10.0, 0)}
    assert save_image(image, tmp_path / "image.png").is_file()


# --- streams and predictions ----------------------------------------------------------------------------------------


def test_policies_of_a_level_meet_the_same_prompts_fading_and_arrivals() -> None:
    asked = prompts(4, 64, seed=3, **HOW)
    channels = {level: Rayleigh(snr_db=level) for level in (0.0, 20.0)}
    found = cells(["a", "b"], channels, LINK, asked, requests_per_s=2.0, seed=0)
    assert [cell.key(1) for cell in found] == [("a", 0.0, 1), ("b", 0.0, 1), ("a", 20.0, 1), ("b", 20.0, 1)]
    assert found[0].prompts == found[1].prompts
    assert {prompt.text for cell in found for prompt in cell.prompts} == {prompt.text for prompt in asked}
    assert np.array_equal(found[0].state.snr, found[1].state.snr)
    assert np.array_equal(found[0].arrivals_s, found[1].arrivals_s)
    assert not np.array_equal(found[0].arrivals_s, found[2].arrivals_s)
    again = cells(["a"], channels, LINK, asked, requests_per_s=2.0, seed=0)
    assert np.array_equal(again[1].state.snr, found[2].state.snr)
    with pytest.raises(ConfigError, match="requests_per_s is 0"):
        cells(["a"], channels, LINK, asked, requests_per_s=0.0, seed=0)


def test_arrivals_are_a_poisson_stream() -> None:
    asked = [Prompt(text="a cube", resolution_px=64)] * 4000
    (cell,) = cells(["a"], {10.0: Static(snr_db=10.0)}, LINK, asked, requests_per_s=4.0, seed=0)
    gaps_s = np.diff(cell.arrivals_s)
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.05)  # exponential: as wide as its mean


def table_of() -> ActionTable:
    columns = {
        "edge_s": [0.0, 0.1],
        "device_s": [0.3, 0.1],
        "downlink_bits": [0.0, 4288.0],
        "uplink_bits": [0.0, 1024.0],
    }
    work = {**{name: np.array(values) for name, values in columns.items()}, "num_round_trips": np.array([0.0, 1.0])}
    unknown = np.full(2, np.nan)
    return ActionTable(
        scheme=np.array(["conventional", "step_split"]),
        label=np.array(["device only, 4 steps", "2 of 4 steps at the edge"]),
        knobs=(NUM_STEPS, SPLIT_STEP),
        settings=np.array([[4.0, np.nan], [4.0, 2.0]]),
        work=Work(**work, edge_energy_j=unknown, device_energy_j=unknown),
        metrics=(),
        quality=np.empty((2, 0)),
        kind=np.array(["measured", "measured"]),
        profile="tiny",
    )


def test_frames_are_added_where_the_link_is_used() -> None:
    work = with_frames(table_of()).work
    assert (work.downlink_bits[0], work.uplink_bits[0]) == (0.0, 0.0)
    assert 4288.0 + 8 * 400 < work.downlink_bits[1] < 4288.0 + 8 * 1500
    assert 8 * 400 < work.uplink_bits[1] < 8 * 1500
    longer = with_frames(table_of(), prompt_chars=180).work
    assert longer.uplink_bits[1] - work.uplink_bits[1] == 8 * 100


# --- served ---------------------------------------------------------------------------------------------------------


class Second:
    """Always the second row."""

    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        return np.ones(len(observation.link.snr), dtype=np.int64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_cell_is_served_over_the_shim_and_its_bits_are_predicted(
    load_tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[dict[str, float]] = []  # bits of each request by direction
    replay, send = ChannelShim.replay, ChannelShim._send

    def begin(shim: ChannelShim, trace: RateTrace) -> None:
        passed.append({"uplink": 0.0, "downlink": 0.0})
        replay(shim, trace)

    def count(shim: ChannelShim, at: float, num_bytes: int, stream: Stream, direction: str) -> float:
        passed[-1][direction] += 8 * num_bytes
        return send(shim, at, num_bytes, stream, direction)

    monkeypatch.setattr(ChannelShim, "replay", begin)
    monkeypatch.setattr(ChannelShim, "_send", count)
    narrow = Link(bandwidth_hz=2e4, round_trip_s=0.02)
    asked = [Prompt(text="a red cube", seed=seed, resolution_px=32) for seed in range(3)]
    wanted = cells(["second"], {10.0: Static(snr_db=10.0)}, narrow, asked, requests_per_s=50.0, seed=0)
    link, table = ReplayedLink(wanted[0].link(0)), with_frames(table_of(), len("a red cube"))
    device = Device(load_tiny("sd_device"), table, Second(), link, settings=DeviceSettings(refresh_s=60.0))

    async def call(port: int) -> list[Any]:
        policies, done = {"second": Second()}, {("second", 10.0, 1)}
        async with (
            asyncio.timeout(60.0),
            aclosing(serve(wanted, device, policies, link, edge_port=port, done=done, num_warm_up=1)) as requests,
        ):
            return [served async for served in requests]

    with served_in_thread(EdgeService(load_tiny("sd"), "tiny")) as port:
        found = asyncio.run(call(port))
    assert [served.request for served in found] == [0, 2]
    assert len(passed) == 3  # the first is the warm-up's, which also asks the edge what it can do
    for served, bits in zip(found, passed[1:], strict=True):
        assert served.found.notes == ()
        assert served.waited_s >= 0.0
        assert bits["uplink"] == pytest.approx(table.work.uplink_bits[1], rel=0.05)
        assert bits["downlink"] == pytest.approx(table.work.downlink_bits[1], rel=0.05)
        predicted, measured = served.found.predicted, served.found.measured
        down, up = (bits[way] / getattr(table.work, f"{way}_bits")[1] for way in ("downlink", "uplink"))  # as sent
        air_s = predicted.downlink_s * down + predicted.uplink_s * up + narrow.round_trip_s
        assert measured.downlink_s + measured.uplink_s >= 0.95 * air_s  # all of it does cross the link


@pytest.mark.slow
def test_an_edge_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"did not start: it ended with code 2; its last words: .*port is 99999"),
        edge_process({"port": 99999}, tmp_path),
    ):
        pass


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="refresh_s"):
        DeviceSettings(refresh_s=-1.0)
    assert replace(DeviceSettings(), refresh_s=2.0).refresh_s == 2.0
