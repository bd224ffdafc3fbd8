"""Activations and noise that cross a cut of layer split, as frames: packed at 16, 8 or 4 bits, or as they are."""

from __future__ import annotations

import torch

from megopt.diffusion.codec import Latent
from megopt.diffusion.layer_pieces import Crossing, Shape
from megopt.errors import PayloadError
from megopt.live.decision import Decision
from megopt.live.handover import received_share, share_part
from megopt.live.wire import Frame


def crossing_frame(kind: str, step: int, crossing: Crossing, decision: Decision) -> Frame:
    """Return what crosses a cut at `step` as a frame of `kind`, packed as `decision` says."""
    parts = [
        share_part(f"activation.{index}", _flat(tensor), decision) for index, tensor in enumerate(crossing.tensors)
    ]
    return Frame(kind=kind, fields={"step": step}, parts=tuple(parts))


def received_crossing(
    frame: Frame, shapes: tuple[Shape, ...], batch: int, decision: Decision, like: torch.Tensor
) -> Crossing:
    """Return what crossed a cut.

    Args:
        frame: of `crossing_frame`.
        shapes: of what is expected, without the batch.
        batch: images times two with guidance; one for guided noise.
        decision: how it is packed.
        like: a tensor on the receiver's device, in its numbers.

    Raises:
        PayloadError: if a part is missing, damaged or of another size.
    """
    if len(frame.parts) != len(shapes):
        message = f"layers: {len(frame.parts)} tensors; expected {len(shapes)}; both ends must cut at the same layers"
        raise PayloadError(message)
    tensors = []
    for index, (channels, height, width) in enumerate(shapes):
        values = received_share(frame, f"activation.{index}", (batch * channels, height, width), decision)
        tensors.append(torch.from_numpy(values.copy()).to(like).reshape(batch, channels, height, width))
    return Crossing(hidden=tensors[0], skips=tuple(tensors[1:]))


def _flat(tensor: torch.Tensor) -> Latent:
    """Return a batch as one latent, its channels one after another: each keeps a range of its own when packed."""
    values: Latent = tensor.detach().float().cpu().numpy()
    return values.reshape(-1, *values.shape[2:])
