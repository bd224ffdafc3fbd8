"""Our TR 38.901 path loss and line-of-sight probability against those of Sionna."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megopt.arrays import FloatArray
from megopt.system.path_loss import (
    URBAN_MACRO,
    URBAN_MICRO,
    UrbanScenario,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NUM_DEVICES = 400


def _place(base_height_m: float, carrier_hz: float, kind: str, is_los: bool) -> tuple[FloatArray, FloatArray, Any]:
    """Return horizontal distances [m], device heights [m] and Sionna's scenario with devices there."""
    tr38901 = pytest.importorskip("sionna.phy.channel.tr38901")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(int(carrier_hz / 1e8))
    distance_m = 10 ** rng.uniform(1.0, np.log10(5000.0), NUM_DEVICES)
    height_m = rng.uniform(1.5, 12.9, NUM_DEVICES)
    angle = rng.uniform(0, 2 * np.pi, NUM_DEVICES)
    place = np.stack([distance_m * np.cos(angle), distance_m * np.sin(angle), height_m], axis=-1)[np.newaxis]
    array = tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=carrier_hz,
        precision="double",
    )
    scenario = getattr(tr38901, kind)(carrier_hz, "low", array, array, "downlink", precision="double")
    zeros = torch.zeros((1, NUM_DEVICES, 3), dtype=torch.float64)
    scenario.set_topology(
        ut_loc=torch.tensor(place),
        bs_loc=torch.tensor([[[0.0, 0.0, base_height_m]]], dtype=torch.float64),
        ut_orientations=zeros,
        bs_orientations=torch.zeros((1, 1, 3), dtype=torch.float64),
        ut_velocities=zeros,
        in_state=torch.zeros((1, NUM_DEVICES), dtype=torch.bool),
        los=is_los,
    )
    return distance_m, height_m, scenario


@pytest.mark.parametrize("carrier_hz", [0.7e9, 3.5e9, 28e9])
@pytest.mark.parametrize(
    ("ours", "theirs", "base_height_m"), [(URBAN_MICRO, "UMiScenario", 10.0), (URBAN_MACRO, "UMaScenario", 25.0)]
)
@pytest.mark.parametrize("is_los", [True, False])
def test_path_loss_equals_sionna(
    ours: UrbanScenario, theirs: str, base_height_m: float, carrier_hz: float, is_los: bool
) -> None:
    distance_m, height_m, scenario = _place(base_height_m, carrier_hz, theirs, is_los)
    loss_db = los_path_loss_db if is_los else nlos_path_loss_db
    mine_db = loss_db(ours, distance_m, carrier_hz, base_height_m=base_height_m, device_height_m=height_m)
    np.testing.assert_allclose(mine_db, scenario.basic_pathloss.numpy()[0, 0], atol=1e-6)
    np.testing.assert_allclose(los_probability(ours, distance_m), scenario.los_probability.numpy()[0, 0], atol=1e-6)
