"""Asking a policy for a row: it is foreign code, and the user wants an image all the same, in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from megopt.arrays import IntArray
from megopt.policies.base import Observation, Policy


async def chosen_row(
    policy: Policy, observation: Observation, num_rows: int, timeout_s: float
) -> tuple[int | None, str]:
    """Return the row that `policy` chooses for the one request of `observation`, and what is wrong with it in words.

    Args:
        policy: asked in a thread of its own, which nobody waits for.
        observation: of one request.
        num_rows: of the table.
        timeout_s: time that it has [s].

    Returns:
        The row and ""; None and a complaint where the policy errs, is late, or names no row of the table.
    """
    try:
        async with asyncio.timeout(timeout_s):
            row = int((await _in_own_thread(policy.act, observation))[0])
    except TimeoutError:
        return None, f"the policy did not answer within {timeout_s:g} s"
    except Exception as error:  # whatever a policy raises must not cost the user the image
        return None, f"the policy failed: {type(error).__name__}: {error}"
    if not 0 <= row < num_rows:
        return None, f"the policy chose row {row} of {num_rows}"
    return row, ""


async def _in_own_thread(act: Callable[[Observation], IntArray], observation: Observation) -> IntArray:
    """Call a policy in a thread that nobody has to wait for."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[IntArray] = loop.create_future()

    def _settle(rows: IntArray | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif rows is not None:
            answer.set_result(rows)

    def _call() -> None:
        rows, failed = None, None
        try:
            rows = act(observation)
        except Exception as error:  # it is raised again where the answer is awaited
            failed = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, rows, failed)

    threading.Thread(target=_call, name="megopt-policy", daemon=True).start()
    return await answer
