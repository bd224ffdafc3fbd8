"""`megopt live`: edge and device as two processes, a Poisson stream over an emulated channel, and the parity report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from megopt.analysis.parity import served_record
from megopt.analysis.parity_book import ParityBook
from megopt.analysis.parity_report import Origin, write_parity
from megopt.analysis.report import Report
from megopt.experiments.generate import PROMPT_KEYS, SAMPLING_KEYS
from megopt.experiments.tradeoff import problem_of
from megopt.schemes.scheme import compile_all

if TYPE_CHECKING:
    from megopt.live.parity import Cell

NOT_SETTINGS = ("output", "name", "folder")  # they do not change what is measured


def run(config: DictConfig, output_dir: Path) -> Report:
    """Serve what is left to serve and return the report; writes records, figure and contact sheet."""
    from megopt.live.parity import cells, prompts

    folder, settings = Path(config.folder), OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    book = ParityBook(folder, {str(key): value for key, value in settings.items() if key not in NOT_SETTINGS})
    profile, policies = instantiate(config.profile), list(config.policy)
    channels = {float(level): instantiate(config.channel, snr_db=level) for level in config.snr_db}
    num = len(channels) * -(-config.num_requests // (len(policies) * len(channels)))
    asked = prompts(num, profile.provenance.resolution_px, **{key: config[key] for key in PROMPT_KEYS})
    how = {"requests_per_s": config.requests_per_s, "seed": config.seed}
    wanted = cells(policies, channels, instantiate(config.link), asked, **how)
    schemes = list(instantiate(config.scheme, _convert_="all").values())
    if len(book.done()) < sum(len(cell.prompts) for cell in wanted):
        _serve(config, profile, schemes, wanted, book)
    notes = compile_all(schemes, profile)[1]
    return write_parity(book, policies, wanted, Origin(profile=profile, compute=config.compute, notes=notes))


def _serve(config: DictConfig, profile: Any, schemes: list[Any], wanted: list[Cell], book: ParityBook) -> None:
    """Start the edge, and write every request that is left into the book."""
    from megopt.diffusion.evaluation import Sampling
    from megopt.live.local_models import LocalModels
    from megopt.live.modes_rows import terms_of
    from megopt.live.parity import tightened
    from megopt.live.parity_compute import compute_of, measured_here
    from megopt.live.parity_run import serve_with_edge
    from megopt.live.predictions import with_frames
    from megopt.metering.profile_request import SideRequest

    edge, own, folder = SideRequest(**config.edge), SideRequest(**config.device), Path(config.folder)
    terms = terms_of(config.terms, schemes, profile.provenance)
    models = LocalModels.load(own, compile_all(schemes, profile)[0], terms.sr_kind)
    captions = [prompt.text for cell in wanted for prompt in cell.prompts]
    sampling = Sampling(**{key: config[key] for key in SAMPLING_KEYS})
    how = {"captions": captions, "sampling": sampling, "folder": folder, "budget_s": config.budget_s}
    timed = compute_of(config.compute, profile, lambda: measured_here(profile, edge, own, models, **how))
    table = with_frames(compile_all(schemes, timed)[0], round(sum(map(len, captions)) / len(captions)))
    problem, _ = problem_of(config.problem, profile, table)
    built = {"table": table, "problem": tightened(problem, config.limit_margin)}
    shadows = [make(**built) for make in (instantiate(config.get("shadow")) or {}).values()]
    serve_with_edge(
        wanted,
        table,
        {name: make(**built) for name, make in instantiate(config.policy).items()},
        models,
        lambda served: book.add(served_record(served, table, problem), served.found.image),
        terms=terms,
        calibration=config.calibration,
        shadow=next(iter(shadows), None),
        edge=edge,
        folder=folder / "edge",
        done=book.done(),
        num_warm_up=config.num_warm_up,
    )
