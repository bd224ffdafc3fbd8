"""`megopt generate`: one image made by device and edge together, and how far the prediction was off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.generated_report import generated_report
from megopt.analysis.report import Report
from megopt.errors import ConfigError
from megopt.experiments.serve import read_token
from megopt.experiments.tradeoff import problem_of
from megopt.files import write_atomically
from megopt.schemes.scheme import compile_all

if TYPE_CHECKING:
    from megopt.live.course import Generated
    from megopt.live.device import Device
    from megopt.tables.profile import Profile

SIDE_KEYS = ("model", "torch_device", "dtype", "num_threads", "power_w")


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
    return generated_report(found, device.table.name(found.row), path)


def _device(config: DictConfig, profile: Profile) -> Device:
    """Return the device of a configuration, its models loaded."""
    factories = list(instantiate(config.policy).values())
    if len(factories) != 1:
        message = f"generate: {len(factories)} policies; expected one, such as policy=optimal"
        raise ConfigError(message)
    rows, _ = compile_all(list(instantiate(config.scheme, _convert_="all").values()), profile)
    from megopt.live.device import Device, DeviceSettings
    from megopt.live.local_models import LocalModels
    from megopt.live.observation import ProbedLink
    from megopt.live.predictions import with_frames
    from megopt.metering.profiling import SideRequest

    table = with_frames(rows, len(config.prompt))
    problem, _ = problem_of(config.problem, profile, table)
    policy = factories[0](table=table, problem=problem)
    models = LocalModels.load(SideRequest(**{key: config[key] for key in SIDE_KEYS}), table)
    return Device(
        models.pipeline,
        table,
        policy,
        ProbedLink(num_bytes=config.probe_bytes, uplink_share=config.uplink_share),
        settings=DeviceSettings(margin_s=config.margin_s, checkpoint_every=config.checkpoint_every),
        upscalers=models.upscalers,
        meter=models.meter,
    )
