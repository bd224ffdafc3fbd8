"""What to profile: the two sides, the model of each, its power, and the grid of what is measured."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from megopt.diffusion.evaluation import Sampling
from megopt.diffusion.pipelines import Pipeline
from megopt.metering.compute_table import Side
from megopt.metering.meters import ChosenMeter, best_meter
from megopt.metering.quality_generator import Upscalers
from megopt.metering.quality_grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRequest:
    """One side of a profile.

    Attributes:
        model: as `pipelines.load` takes it.
        torch_device: "cpu", "cuda", ...
        dtype: one of `pipelines.DTYPES`.
        num_threads: threads of a CPU side.
        power_w: stated power while computing [W], where no counter can be read; None for none.
        batch_sizes: images computed together.
    """

    model: str
    torch_device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 1
    power_w: float | None = None
    batch_sizes: tuple[int, ...] = (1,)

    def meter(self) -> ChosenMeter:
        """Return the meter of this side."""
        return best_meter(self.torch_device, power_w=self.power_w)

    def hardware(self) -> str:
        """Return what computes, in words."""
        if self.torch_device.startswith("cuda"):
            import torch

            return torch.cuda.get_device_name(self.torch_device)
        return f"{_cpu_name()}, {self.num_threads} thread{'s' * (self.num_threads > 1)}"

    def side(self, name: str, pipeline: Pipeline, upscalers: Upscalers) -> Side:
        """Return what `measure_compute` times: this side's hardware with its loaded `pipeline`."""
        return Side(
            name=name,
            model=self.model,
            pipeline=pipeline,
            meter=self.meter().meter,
            num_threads=self.num_threads,
            batch_sizes=self.batch_sizes,
            upscalers=upscalers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to profile.

    Attributes:
        edge: the edge.
        device: the device.
        grid: of quality.csv; None to measure no quality.
        sampling: how images are sampled.
        resolution_px: side of the target [px]; None for the edge model's own.
        scene_seed: of the captions, none of which training has seen.
        budget_s: most seconds per row of compute.csv, after ten calls.
        command: what the user typed.
    """

    edge: SideRequest
    device: SideRequest
    grid: Grid | None
    sampling: Sampling
    resolution_px: int | None = None
    scene_seed: int = 2000
    budget_s: float = 4.0
    command: str = ""


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
