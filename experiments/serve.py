"""`megopt serve`: the edge's side of live split inference, until the process is told to stop."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from megopt.analysis.report import Report
from megopt.errors import ConfigError
from megopt.ranges import require_within


def run(config: DictConfig, output_dir: Path) -> Report:
    """Serve, and return what was served when the process is told to stop."""
    from megopt.diffusion.pipelines import load
    from megopt.live.admission import EdgeSettings
    from megopt.live.model_thread import ModelThread
    from megopt.live.modes_service import SharingEdgeService
    from megopt.live.server import check_exposure, serve
    from megopt.metering.profile_request import SideRequest
    from megopt.torch_devices import set_threads

    require_within("serve", 1, 65_535, port=config.port)
    token = read_token(config.token_file)
    check_exposure(str(config.host), token)
    settings = EdgeSettings(
        max_waiting=config.max_waiting,
        max_batch=config.max_batch,
        max_steps=config.max_steps,
        max_side_px=config.max_side_px,
        keep_s=config.keep_s,
    )
    if config.log:
        logger = logging.getLogger("megopt.live")
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
    side = SideRequest(**{key: config[key] for key in ("model", "torch_device", "dtype", "num_threads", "power_w")})
    thread = ModelThread()
    thread.submit(lambda: set_threads("models", side.num_threads)).result()
    pipeline = thread.submit(lambda: load(side.model, side.torch_device, side.dtype)).result()
    service = SharingEdgeService(pipeline, side.model, settings, side.meter().meter, thread)
    serve(
        service,
        host=str(config.host),
        port=config.port,
        token=token,
        certificate=None if config.certificate is None else Path(config.certificate),
        key=None if config.key is None else Path(config.key),
    )
    ended = service.metrics.ended()
    return Report(
        summary={"requests": ended},
        headline=f"{sum(ended.values())} requests",
        lines=[f"{reason}: {number}" for reason, number in ended.items()],
    )


def read_token(path: str | None) -> str | None:
    """Return the token in a file; None for no file.

    Raises:
        ConfigError: if the file cannot be read.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        message = f"token_file={path}: cannot be read ({error}); expected a file with one ASCII token"
        raise ConfigError(message) from error
