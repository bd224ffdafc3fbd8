"""`megopt generate`: one image made by device and edge together, and how far the prediction was off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import ConfigError
from megopt.experiments.serve import read_token
from megopt.experiments.tradeoff import problem_of
from megopt.files import write_atomically
from megopt.schemes.scheme import compile_all

if TYPE_CHECKING:
    from megopt.live.course import Generated
    from megopt.live.device import Device

TERMS = ("edge_s", "downlink_s", "uplink_s", "device_s", "latency_s", "payload_bits")


def run(config: DictConfig, output_dir: Path) -> Report:
    """Make the image and return the report; writes image.png."""
    from PIL import Image

    from megopt.live.connection import Connection
    from megopt.live.course import Prompt

    profile = instantiate(config.profile)
    prompt = Prompt(
        text=config.prompt,
        seed=config.seed,
        resolution_px=profile.provenance.resolution_px,
        deadline_s=config.deadline_s,
        sampler=config.sampler,
        guidance_scale=config.guidance_scale,
    )
    device = _device(config, profile)

    async def generate() -> Generated:
        async with Connection(str(config.edge), token=read_token(config.token_file)) as connection:
            return await device.generate(prompt, connection)

    found = asyncio.run(generate())
    path = write_atomically(output_dir / "image.png", lambda target: Image.fromarray(found.image).save(target))
    pairs = {
        term: (float(getattr(found.predicted, term)[0]), float(getattr(found.measured, term)[0])) for term in TERMS
    }
    cells = [[term, f"{predicted:.6g}", f"{came:.6g}"] for term, (predicted, came) in pairs.items()]
    timeline = [[stage, f"{1e3 * took_s:.1f}"] for stage, took_s in found.timeline]
    name = device.table.name(found.row)
    return Report(
        summary={
            "row": name,
            "edge_steps": found.edge_steps,
            "predicted": {term: pair[0] for term, pair in pairs.items()},
            "measured": {term: pair[1] for term, pair in pairs.items()},
            "timeline_s": dict(found.timeline),
            "notes": list(found.notes),
            "image": str(path),
        },
        headline=f"{name}: predicted {pairs['latency_s'][0]:.3g} s, measured {pairs['latency_s'][1]:.3g} s",
        tables=[
            rich_table("predicted against measured", ["term", "predicted", "measured"], cells),
            rich_table("timeline", ["stage", "ms"], timeline),
        ],
        lines=[name, *(f"note: {note}" for note in found.notes), f"wrote {shown_path(path)}"],
    )


def _device(config: DictConfig, profile: Any) -> Device:
    from megopt.diffusion.bundled import load_upscaler
    from megopt.diffusion.pipelines import load
    from megopt.live.device import Device, DeviceSettings
    from megopt.live.observation import ProbedLink
    from megopt.live.service import set_threads

    schemes = list(instantiate(config.scheme, _convert_="all").values())
    table, _ = compile_all(schemes, profile)
    factories = list(instantiate(config.policy).values())
    if len(factories) != 1:
        message = f"generate: {len(factories)} policies; expected one, such as policy=optimal"
        raise ConfigError(message)
    problem, _ = problem_of(config.problem, profile, table)
    set_threads(config.num_threads)
    scales = {int(scale) for scale in _column(table, "sr_scale") if scale > 1}
    return Device(
        load(config.model, config.torch_device, config.dtype),
        table,
        factories[0](table=table, problem=problem),
        ProbedLink(num_bytes=config.probe_bytes, uplink_share=config.uplink_share),
        settings=DeviceSettings(margin_s=config.margin_s, checkpoint_every=config.checkpoint_every),
        upscalers={scale: load_upscaler("light", scale) for scale in sorted(scales)},
    )


def _column(table: Any, knob: str) -> Any:
    names = [each.name for each in table.knobs]
    return np.unique(table.settings[:, names.index(knob)]) if knob in names else np.empty(0)
