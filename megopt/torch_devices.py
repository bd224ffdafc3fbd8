"""What PyTorch computes on: whether a device is there, and how many threads of the processor it uses."""

from __future__ import annotations

from textwrap import shorten

from megopt.errors import ConfigError
from megopt.ranges import require_whole


def require_device(where: str, device: object) -> None:
    """Raise unless PyTorch can compute on a device.

    Args:
        where: who asks, the first word of the message.
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        ConfigError: for a word that names no device, or a device that this machine or this PyTorch does not have.
    """
    if not isinstance(device, str):
        message = f"{where}: device is {device!r}; expected a word such as cpu or cuda; change it"
        raise ConfigError(message)
    import torch

    try:
        torch.zeros(1, device=device).item()  # a computation: there is a device "meta" on which nothing can be
    except (RuntimeError, AssertionError, ImportError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append("mps")
        why = shorten(str(error).partition("\n")[0] or type(error).__name__, 80, placeholder=" ...")
        message = (
            f"{where}: PyTorch cannot use device {device!r} ({why}); expected one of {', '.join(there)}; "
            "change it, or install a PyTorch for that device"
        )
        raise ConfigError(message) from error


def set_threads(where: str, num_threads: int) -> None:
    """Let PyTorch use so many threads of the processor.

    Raises:
        ConfigError: for anything but a whole number from 1.
    """
    require_whole(where, 1, num_threads=num_threads)
    import torch

    torch.set_num_threads(num_threads)
