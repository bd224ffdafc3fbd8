"""`megopt live`: edge and device as two processes, a Poisson stream over an emulated channel, and the parity report."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from megopt.analysis.parity import served_record
from megopt.analysis.parity_book import ParityBook
from megopt.analysis.parity_figure import save_parity_figure
from megopt.analysis.parity_report import parity_report, write_parity_sheet
from megopt.analysis.plots import profile_note
from megopt.analysis.report import Report
from megopt.experiments.tradeoff import problem_of
from megopt.schemes.scheme import compile_all

if TYPE_CHECKING:
    from megopt.live.local_models import LocalModels
    from megopt.live.parity import Cell
    from megopt.tables.profile import Profile

NOT_SETTINGS = ("output", "name", "folder")
"""Keys that do not change what is measured."""


def run(config: DictConfig, output_dir: Path) -> Report:
    """Serve what is left to serve and return the report; writes records, figure and contact sheet."""
    from megopt.live.local_models import LocalModels
    from megopt.live.parity import cells, prompts
    from megopt.metering.profiling import SideRequest

    folder, settings = Path(config.folder), OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    book = ParityBook(folder, {str(key): value for key, value in settings.items() if key not in NOT_SETTINGS})
    profile, policies = instantiate(config.profile), list(config.policy)
    channels = {float(level): instantiate(config.channel, snr_db=level) for level in config.snr_db}
    num = len(channels) * -(-config.num_requests // (len(policies) * len(channels)))
    how = {name: config[name] for name in ("seed", "deadline_s", "sampler", "guidance_scale")}
    asked, rate = prompts(num, profile.provenance.resolution_px, **how), config.requests_per_s
    wanted = cells(policies, channels, instantiate(config.link), asked, requests_per_s=rate, seed=config.seed)
    schemes = list(instantiate(config.scheme, _convert_="all").values())
    rows, notes = compile_all(schemes, profile)
    if len(book.done()) < sum(len(cell.prompts) for cell in wanted):
        models = LocalModels.load(SideRequest(**config.device), rows)
        timed = _timed(config, profile, models, [prompt.text for prompt in asked])
        _serve(config, compile_all(schemes, timed)[0], models, wanted, book)
    assert book.records is not None
    first = {cell.level_db: f"{cell.level_db:g} dB: {cell.prompts[0].text}" for cell in wanted}
    images = book.images(policies, list(first))
    note = profile_note(profile, book.records) + {"measure": "; timed here", "profile": ""}.get(config.compute, "")
    files = [
        book.path,
        *save_parity_figure(book.records, note, folder / "parity"),
        write_parity_sheet(folder / "contact_sheet.png", images, list(first.values())),
    ]
    return parity_report(book.records, files, notes)


def _serve(config: DictConfig, rows: Any, models: LocalModels, wanted: list[Cell], book: ParityBook) -> None:
    """Start the edge, and write every request that is left into the book."""
    from megopt.live.device import Device, DeviceSettings
    from megopt.live.parity import ReplayedLink, serve, tightened
    from megopt.live.parity_processes import edge_process
    from megopt.live.predictions import with_frames

    table, link, done = with_frames(rows), ReplayedLink(wanted[0].link(0)), book.done()
    problem, _ = problem_of(config.problem, instantiate(config.profile), table)
    asked = tightened(problem, config.limit_margin)
    policies = {name: make(table=table, problem=asked) for name, make in instantiate(config.policy).items()}
    device = Device(
        models.pipeline,
        table,
        policies[wanted[0].policy],
        link,
        settings=DeviceSettings(refresh_s=60.0),
        upscalers=models.upscalers,
        meter=models.meter,
    )

    async def stream(port: int) -> None:
        """Serve every cell, and write down what came of it."""
        how = {"edge_port": port, "done": done, "num_warm_up": config.num_warm_up}
        with tqdm(total=sum(len(cell.prompts) for cell in wanted), initial=len(done), unit="request") as bar:
            async with aclosing(serve(wanted, device, policies, link, **how)) as requests:
                async for served in requests:
                    bar.set_description(f"{served.cell.policy} at {served.cell.level_db:g} dB")
                    book.add(served_record(served, table, problem), served.found.image)
                    bar.update()

    overrides = {key: config.edge[key] for key in ("model", "torch_device", "dtype", "num_threads")}
    with edge_process(overrides, Path(config.folder) / "edge") as port:
        asyncio.run(stream(port))


def _timed(config: DictConfig, profile: Profile, models: LocalModels, captions: list[str]) -> Profile:
    """Return the profile with the compute rows that were asked for."""
    from megopt.diffusion.evaluation import Sampling
    from megopt.live.parity_compute import measured_here, with_compute_of
    from megopt.metering.profiling import SideRequest

    if config.compute == "profile":
        return profile
    if config.compute != "measure":
        return with_compute_of(profile, Path(config.compute))
    return measured_here(
        profile,
        SideRequest(**config.edge),
        SideRequest(**config.device),
        models,
        captions=captions,
        sampling=Sampling(sampler=config.sampler, guidance_scale=config.guidance_scale, seed=config.seed),
        folder=Path(config.folder),
        budget_s=config.budget_s,
    )
