"""A whole experiment of `megopt live`: the edge as a process, the device here, every request handed to the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from megopt.live.device_settings import DeviceSettings
from megopt.live.local_models import LocalModels
from megopt.live.modes_device import SharingDevice
from megopt.live.modes_rows import SharingTerms
from megopt.live.parity import Cell, ReplayedLink, Served, serve
from megopt.live.parity_processes import edge_process
from megopt.metering.profile_request import SideRequest
from megopt.policies.base import Policy
from megopt.schemes.action_table import ActionTable

REFRESH_S = 60.0
"""Age at which an idle device asks the edge again what it can do [s]."""


def serve_with_edge(
    wanted: Sequence[Cell],
    table: ActionTable,
    policies: Mapping[str, Policy],
    models: LocalModels,
    write: Callable[[Served], None],
    *,
    terms: SharingTerms,
    calibration: str,
    shadow: Policy | None,
    edge: SideRequest,
    folder: Path,
    done: Collection[tuple[str, float, int]],
    num_warm_up: int,
) -> None:
    """Serve what is not `done` of the cells, and give each request to `write`.

    Args:
        wanted: the cells.
        table: rows that the policies choose from.
        policies: by name.
        models: of the device.
        write: called once per request, in order.
        terms: as in `Device`.
        calibration: as in `DeviceSettings`.
        shadow: as in `Device`.
        edge: the edge's side; it becomes a process of its own.
        folder: for the edge's log.
        done: keys of requests that are left out.
        num_warm_up: requests before each cell that nobody counts [1].

    Raises:
        ConfigError: if the edge does not start.
    """
    link = ReplayedLink(wanted[0].link(0))
    device = SharingDevice.of_models(
        models,
        table,
        policies[wanted[0].policy],
        link,
        settings=DeviceSettings(refresh_s=REFRESH_S, calibration=calibration),
        terms=terms,
        draws_groups=True,
    )
    device.shadow = shadow

    async def stream(port: int) -> None:
        """Serve every cell."""
        with tqdm(total=sum(len(cell.prompts) for cell in wanted), initial=len(done), unit="request") as bar:
            requests = serve(wanted, device, policies, link, edge_port=port, done=done, num_warm_up=num_warm_up)
            async with aclosing(requests):
                async for served in requests:
                    bar.set_description(f"{served.cell.policy} at {served.cell.level_db:g} dB")
                    write(served)
                    bar.update()

    overrides = {name: "null" if value is None else value for name, value in asdict(edge).items()}
    del overrides["batch_sizes"]  # no key of serve
    with edge_process(overrides, folder) as port:
        asyncio.run(stream(port))
