"""`megopt generate`: one image made by device and edge together, and how far the prediction was off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.generated_report import PreviewFiles, generated_report, save_image
from megopt.analysis.report import Report
from megopt.errors import ConfigError
from megopt.experiments.serve import read_token
from megopt.experiments.tradeoff import problem_of
from megopt.schemes.scheme import compile_all

if TYPE_CHECKING:
    from megopt.live.course import Generated
    from megopt.live.modes_device import SharingDevice
    from megopt.live.stated import Stated
    from megopt.tables.profile import Profile

SIDE_KEYS = ("model", "torch_device", "dtype", "num_threads", "power_w")
SAMPLING_KEYS = ("seed", "sampler", "guidance_scale", "guidance_rescale")
PROMPT_KEYS = (*SAMPLING_KEYS, "deadline_s")
TIME_KEYS = ("margin_s", "checkpoint_every", "preview_every")


def run(config: DictConfig, output_dir: Path) -> Report:
    """Make the image and return the report; writes image.png, and previews such as preview_004.png if asked for."""
    from megopt.live.course import Prompt
    from megopt.live.modes_device import LayerConnection

    profile, stated = instantiate(config.profile), instantiate(config.get("decision"))
    side_px, own = profile.provenance.resolution_px, {key: config[key] for key in PROMPT_KEYS}
    prompt = Prompt(text=config.prompt, resolution_px=side_px, **own)
    connection = LayerConnection(str(config.edge), token=read_token(config.token_file), certificate=config.certificate)
    device, previews = _device(config, profile, stated), PreviewFiles(output_dir)
    device.previews.show = previews.save if config.preview_every else None

    async def generate() -> Generated:
        async with connection, device.previews:
            return await device.generate(prompt, connection, stated and stated.decision(device, prompt))

    found = asyncio.run(generate())
    return generated_report(found, device.table, save_image(found.image, output_dir / "image.png"), previews.paths)


def _device(config: DictConfig, profile: Profile, stated: Stated | None) -> SharingDevice:
    """Return the device of a configuration, its models loaded."""
    from megopt.live.device_settings import DeviceSettings
    from megopt.live.local_models import LocalModels
    from megopt.live.modes_device import SharingDevice
    from megopt.live.modes_rows import terms_of
    from megopt.live.observation import ProbedLink
    from megopt.live.predictions import with_frames
    from megopt.metering.profile_request import SideRequest

    factories, shadows = (list((instantiate(config.get(key)) or {}).values()) for key in ("policy", "shadow"))
    if len(factories) != 1:
        message = f"generate: {len(factories)} policies; expected one, such as policy=optimal"
        raise ConfigError(message)
    schemes = list(instantiate(config.scheme, _convert_="all").values())
    table = with_frames(compile_all(schemes, profile)[0], len(config.prompt))
    problem, _ = problem_of(config.problem, profile, table)
    terms = terms_of(config.terms, schemes, profile.provenance)
    side = SideRequest(**{key: config[key] for key in SIDE_KEYS})
    device = SharingDevice.of_models(
        LocalModels.load(side, table, terms.sr_kind, None if stated is None else stated.upscaler),
        table,
        factories[0](table=table, problem=problem),
        ProbedLink(num_bytes=config.probe_bytes, uplink_share=config.uplink_share),
        settings=DeviceSettings(**{key: config[key] for key in TIME_KEYS}),
        terms=terms,
        draws_groups=config.terms.group_id is None,
    )
    device.shadow = next((make(table=table, problem=problem) for make in shadows), None)
    return device
