"""What a row costs on the live wire: the bits of the table, and those of the frames and of HTTP around them.

    uplink   = HTTP head + request frame, the prompt in it
    downlink = table's payload + HTTP head + result frame around it

The table counts the payload alone, as the field does. On a narrow link what is around it is not small.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from megopt.live.messages import Decision, Request, Result
from megopt.live.wire import Frame, Part
from megopt.schemes.action_table import ActionTable
from megopt.units import BITS_PER_BYTE

HTTP_REQUEST_BYTES = 176
"""Head of a POST as the device sends it, give or take the digits of the port [B]."""
HTTP_ANSWER_BYTES = 160
"""Head and chunk marks of an answer in one frame as the edge sends it [B]."""


def with_frames(table: ActionTable, prompt_chars: int = 80) -> ActionTable:
    """Return `table` with the bits of the live wire in place of its own, in the rows that use the link.

    Args:
        table: rows whose work counts payloads.
        prompt_chars: characters of a typical prompt, in place of the table's bits for it [1].
    """
    work = table.work
    is_sent = work.num_round_trips > 0.0
    request, answer = _bits_around(prompt_chars)
    return replace(
        table,
        work=replace(
            work,
            uplink_bits=np.where(is_sent, request, work.uplink_bits),
            downlink_bits=np.where(is_sent, work.downlink_bits + answer, work.downlink_bits),
        ),
    )


def _bits_around(prompt_chars: int) -> tuple[float, float]:
    """Return bits of a request, and bits around the payload of an answer [bit]."""
    decision = Decision(mode="step_split", num_steps=25, split_step=12, merge_ratio=0.25)
    request = Request(
        request_id="0" * 32,
        prompt="a" * prompt_chars,
        negative_prompt=None,
        sampler="ddim",
        guidance_scale=3.0,
        seed=100,
        height_px=64,
        width_px=64,
        schedule_crc=0xFFFF_FFFF,
        checkpoint_every=0,
        deadline_s=1.0 / 3.0,
        decision=decision,
    )
    third = 1.0 / 3.0  # a float of as many digits as a measured time has
    result = Result(
        request_id=request.request_id,
        step=12,
        decision=decision,
        queue_s=third,
        compute_s=third,
        total_s=third,
        batch_size=1.0,
    )
    empty = Frame(kind="result", fields=asdict(result), parts=(Part(name="latent", encoding="latent", payload=b""),))
    up, down = len(request.frame().to_bytes()), len(empty.to_bytes())
    return BITS_PER_BYTE * float(HTTP_REQUEST_BYTES + up), BITS_PER_BYTE * float(HTTP_ANSWER_BYTES + down)
