"""Asking a policy for a row: it is foreign code, and the user wants an image all the same, in time."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from megopt.policies.base import Observation, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a policy said.

    Attributes:
        row: of the table; None where the policy failed.
        complaint: what is wrong with it, in words; empty if nothing is.
        probability: with which it chose that row [1]; 1 for a policy that draws nothing.
    """

    row: int | None = None
    complaint: str = ""
    probability: float = 1.0


async def chosen_row(policy: Policy, observation: Observation, num_rows: int, timeout_s: float) -> Choice:
    """Return what `policy` chooses for the one request of `observation`.

    Args:
        policy: asked in a thread of its own, which nobody waits for.
        observation: of one request.
        num_rows: of the table.
        timeout_s: time that it has [s].

    Returns:
        A complaint in place of the row where the policy errs, is late, or names no row of the table.
    """
    try:
        async with asyncio.timeout(timeout_s):
            row, probability = await _in_own_thread(policy, observation)
    except TimeoutError:
        return Choice(complaint=f"the policy did not answer within {timeout_s:g} s")
    except Exception as error:  # whatever a policy raises must not cost the user the image
        return Choice(complaint=f"the policy failed: {type(error).__name__}: {error}")
    if not 0 <= row < num_rows:
        return Choice(complaint=f"the policy chose row {row} of {num_rows}")
    return Choice(row=row, probability=probability)


def _asked(policy: Policy, observation: Observation) -> tuple[int, float]:
    """Return the row, and with which probability it was chosen [1]."""
    tell: Any = getattr(policy, "probabilities", None)
    shares = None if tell is None else tell(observation)  # before the choice, which some policies remember
    row = int(policy.act(observation)[0])
    return row, 1.0 if shares is None or not 0 <= row < shares.shape[1] else float(shares[0, row])


async def _in_own_thread(policy: Policy, observation: Observation) -> tuple[int, float]:
    """Call a policy in a thread that nobody has to wait for."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[int, float]] = loop.create_future()

    def _settle(said: tuple[int, float] | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif said is not None:
            answer.set_result(said)

    def _call() -> None:
        said, failed = None, None
        try:
            said = _asked(policy, observation)
        except Exception as error:  # it is raised again where the answer is awaited
            failed = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, said, failed)

    threading.Thread(target=_call, name="megopt-policy", daemon=True).start()
    return await answer
