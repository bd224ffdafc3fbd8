"""What a row costs on the live wire: the bits of the table, and those of the frames and of HTTP around them.

    uplink   = HTTP head + request frame, the prompt in it
    downlink = table's payload + HTTP head + frames around it, one, or one per step in layer split

The table counts the payload alone, as the field does. On a narrow link what is around it is not small.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from megopt.live.decision import Decision
from megopt.live.messages import Request, Result
from megopt.live.wire import Frame, Part
from megopt.schemes.action_table import ActionTable
from megopt.system.outcome import Outcome
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
    request, answer, frame = _bits_around(prompt_chars)
    steps = dict(zip([knob.name for knob in table.knobs], table.settings.T, strict=True)).get("num_steps")
    num_frames = 1.0 if steps is None else np.where(table.scheme == "layer_split", steps, 1.0)
    return replace(
        table,
        work=replace(
            work,
            uplink_bits=np.where(is_sent, request, work.uplink_bits),
            downlink_bits=np.where(is_sent, work.downlink_bits + answer + num_frames * frame, work.downlink_bits),
        ),
    )


def hidden_s(table: ActionTable, row: int, costs: Outcome) -> float:
    """Return the airtime of a row that passes while the edge computes [s]; 0 for what is sent in one frame.

    In layer split a frame of noise is under way while the edge takes the next step: the N frames and N steps of a sum

        N t_step + N Z/R    take    N t_step + N Z/R - (N - 1) min(t_step, Z/R)

    Args:
        table: the rows.
        row: one of them.
        costs: of the row on its link, fields of shape (1,).
    """
    if row < 0 or table.scheme[row] != "layer_split":
        return 0.0
    num_steps = float(table.settings[row, [knob.name for knob in table.knobs].index("num_steps")])
    return (num_steps - 1.0) / num_steps * min(float(costs.edge_s[0]), float(costs.downlink_s[0]))


def _bits_around(prompt_chars: int) -> tuple[float, float, float]:
    """Return bits of a request, bits of HTTP around an answer, and bits around the payload of each frame [bit]."""
    decision = Decision(mode="step_split", num_steps=25, split_step=12, merge_ratio=0.25)
    request = Request(
        request_id="0" * 32,
        prompt="a" * prompt_chars,
        negative_prompt=None,
        sampler="ddim",
        guidance_scale=3.0,
        guidance_rescale=0.7,
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
        energy_j=third,
        energy_source="power_model",
    )
    empty = Frame(kind="result", fields=asdict(result), parts=(Part(name="latent", encoding="latent", payload=b""),))
    up, down = len(request.frame().to_bytes()), len(empty.to_bytes())
    num_bytes = (HTTP_REQUEST_BYTES + up, HTTP_ANSWER_BYTES, down)
    return tuple(BITS_PER_BYTE * float(number) for number in num_bytes)  # type: ignore[return-value]
