"""Groups that share steps: what their members agree on, and the run that is made once for all of them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from megopt.diffusion.checkpoint import Checkpoint
from megopt.errors import PayloadError
from megopt.live.messages import Request

MAX_GROUPS = 64


@dataclass(slots=True, eq=False)
class _Group:
    terms: dict[str, Any]
    members: set[str] = field(default_factory=set)
    run: Checkpoint | None = None
    used_s: float = field(default_factory=time.monotonic)


class Groups:
    """The groups that an edge knows; a group is forgotten when nobody has asked for it for a while.

    Attributes:
        keep_s: for how long [s].
    """

    def __init__(self, keep_s: float = 120.0) -> None:
        self.keep_s = keep_s
        self._groups: dict[str, _Group] = {}
        self._lock = threading.Lock()

    def join(self, request: Request) -> None:
        """Take `request` into its group; the first member says what the others must agree on.

        Raises:
            PayloadError: if it asks for something else than its group, the group is full, or there are too many.
        """
        asked = request.decision.group
        assert asked is not None
        terms, now_s = _terms(request), time.monotonic()
        with self._lock:
            self._groups = {k: v for k, v in self._groups.items() if now_s - v.used_s <= self.keep_s}
            if asked.group_id not in self._groups and len(self._groups) >= MAX_GROUPS:
                message = f"group {asked.group_id}: {MAX_GROUPS} groups are open; ask again in {self.keep_s:g} s"
                raise PayloadError(message)
            group = self._groups.setdefault(asked.group_id, _Group(terms=terms))
            _check(asked.group_id, group, terms)
            if request.request_id not in group.members and len(group.members) >= asked.size:
                message = f"group {asked.group_id}: its {asked.size} members are there already; draw another group_id"
                raise PayloadError(message)
            group.members.add(request.request_id)
            group.used_s = now_s

    def common(self, request: Request) -> Checkpoint | None:
        """Return the common steps of the group of `request`, if they are made."""
        with self._lock:
            group = self._groups.get(_name(request))
            return None if group is None or group.terms != _terms(request) else group.run

    def keep(self, request: Request, run: Checkpoint) -> None:
        """Keep `run`, the common steps of the group of `request`, for its other members."""
        with self._lock:
            group = self._groups.get(_name(request))
            if group is not None and group.terms == _terms(request):
                group.run = run


def _name(request: Request) -> str:
    assert request.decision.group is not None
    return request.decision.group.group_id


def _terms(request: Request) -> dict[str, Any]:
    """Return what the members of a group must agree on: all that the common steps depend on."""
    group = request.decision.group
    assert group is not None
    return {
        "num_steps": request.decision.num_steps,
        "common_steps": group.common_steps,
        "size": group.size,
        "prompt of the group": group.prompt,
        "guidance_scale of the group": group.guidance_scale,
        "sampler": request.sampler,
        "seed": request.seed,
        "height_px": request.height_px,
        "width_px": request.width_px,
    }


def _check(name: str, group: _Group, terms: dict[str, Any]) -> None:
    differing = [term for term, value in terms.items() if group.terms[term] != value]
    if not differing:
        return
    # a text of another member is none of the asker's business
    told = [
        term if "prompt" in term else f"{term} {terms[term]} against {group.terms[term]} of its first member"
        for term in differing
    ]
    message = (
        f"group {name}: {'; '.join(told)}; members share their first steps and must ask for the same, or draw another "
        "group_id"
    )
    raise PayloadError(message)
