"""The best row as a function of the link time u: the lower envelope of line segments that all start at u = 0.

The cost of row r is c_r + s_r u with s_r >= 0, so r keeps its limits on an interval [0, u_r] or nowhere, and the answer
changes at finitely many u only. Floating point blurs those breakpoints: a row *surely* keeps its limits up to a little
less than u_r and *possibly* up to a little more, and lines closer than a relative `TOLERANCE` cannot be told apart.
Where the blur could change the answer, the envelope says `UNSURE`, and the caller evaluates those states in full.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.solvers.brute_force import NOWHERE, tiles
from megopt.system.outcome import AffineCost

UNSURE = -2
"""Row number of a state that has to be evaluated in full."""
TOLERANCE = 1e-9
"""Relative distance below which two numbers count as one; float64 errs by less than 1e-14 in a cost."""

_UNDERFLOW = 1e-300
"""Absolute distance below which two numbers count as one."""
_BUCKET_SHIFT = 43
"""Bits dropped from a float64 to number its bucket: 512 buckets per octave."""
_MIXED = -3
"""Entry of a bucket that holds an edge."""
_MANY_STATES = 1 << 13
"""From so many states on a table of buckets pays; so many are looked up at once."""
_WIDEST_TABLE = 2.0**64
"""Largest ratio of the last edge to the first for which such a table is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A step function of u: `rows[k]` on (edges[k-1], edges[k]], the last row beyond the last edge.

    Attributes:
        edges: right ends of the pieces, ascending [s/bit], shape (num_edges,).
        rows: row of each piece, `NOWHERE` or `UNSURE`, shape (num_edges + 1,).
    """

    edges: FloatArray
    rows: IntArray

    @classmethod
    def of(cls, pieces: list[tuple[float, int]], beyond: int) -> Envelope:
        """Return the envelope of (right end, row) pieces in ascending order, `beyond` to their right."""
        edges = np.array([end for end, _ in pieces], dtype=np.float64)
        return cls(edges=edges, rows=np.array([*(row for _, row in pieces), beyond], dtype=np.int64))

    def at(self, u: FloatArray) -> IntArray:
        """Return the row at each u >= 0 [s/bit], shape (num_states,)."""
        ends = self.edges[np.isfinite(self.edges)]
        if len(u) < _MANY_STATES or not ends.size or ends[0] <= 0.0 or ends[-1] / ends[0] > _WIDEST_TABLE:
            return np.asarray(self.rows[np.searchsorted(self.edges, u)])
        return self._looked_up(u, ends)

    def _looked_up(self, u: FloatArray, ends: FloatArray) -> IntArray:
        """Return the rows by a table over the leading bits of u, which grow with u; sooner than by binary search."""
        first, last = _bucket(np.array([ends[0] / 2.0, ends[-1] * 2.0]))
        starts = (np.arange(first, last + 2) << _BUCKET_SHIFT).view(np.float64)
        piece = np.searchsorted(self.edges, starts)
        table = np.where(piece[1:] == piece[:-1], self.rows[piece[:-1]], _MIXED)
        rows = np.empty(len(u), dtype=np.int64)
        for tile in tiles(len(u), _MANY_STATES):
            np.take(table, _bucket(u[tile]) - first, mode="clip", out=rows[tile])
        mixed = np.flatnonzero(rows == _MIXED)
        rows[mixed] = self.rows[np.searchsorted(self.edges, u[mixed])]
        return rows


def _bucket(u: FloatArray) -> IntArray:
    """Return the bucket number of each u >= 0: its exponent and leading mantissa bits as an integer."""
    return np.asarray(u.view(np.int64) >> _BUCKET_SHIFT)


def reach(constant: FloatArray, slope: FloatArray, ceiling: float) -> tuple[FloatArray, FloatArray]:
    """Return up to which u each row surely, and possibly, keeps constant + slope u <= ceiling; -inf for nowhere.

    Args:
        constant: cost at u = 0, shape (num_rows,); NaN is never within a limit.
        slope: growth with u, >= 0, shape (num_rows,).
        ceiling: the limit.
    """
    if np.isinf(ceiling):
        always = np.where(constant + slope <= ceiling, np.inf, -np.inf)
        return always, always
    blur = TOLERANCE * (np.abs(constant) + abs(ceiling)) + _UNDERFLOW
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        surely = (ceiling - constant - blur) / slope * (1.0 - TOLERANCE)
        possibly = (ceiling - constant + blur) / slope * (1.0 + TOLERANCE)
    is_flat, flat = slope == 0.0, np.where(constant <= ceiling, np.inf, -np.inf)
    return _from_zero(np.where(is_flat, flat, surely), is_flat), _from_zero(np.where(is_flat, flat, possibly), is_flat)


def _from_zero(end: FloatArray, is_flat: BoolArray) -> FloatArray:
    """Return -inf for ends below 0 or NaN, and no infinite end but for flat rows: the others are lost in outage."""
    return np.where(end >= 0.0, np.where(is_flat, end, np.minimum(end, np.finfo(np.float64).max)), -np.inf)


def steps(value: FloatArray, surely: FloatArray, possibly: FloatArray) -> Envelope:
    """Return the envelope of rows with constant objective: each answers where no better one reaches.

    Args:
        value: objective, shape (num_rows,); rows that are not finite never answer.
        surely: up to which u a row surely keeps the limits, shape (num_rows,).
        possibly: up to which u it possibly does, shape (num_rows,).
    """
    order = np.flatnonzero(np.isfinite(value) & (possibly >= 0.0))
    order = order[np.argsort(value[order], kind="stable")]
    certain, hopeful = _records(order, surely[order]), _records(order, possibly[order])
    edges = np.union1d(certain.edges, hopeful.edges)
    low, high = certain.at(edges), hopeful.at(edges)
    return Envelope(edges=edges, rows=np.append(np.where(low == high, low, UNSURE), NOWHERE))


def _records(rows: IntArray, ends: FloatArray) -> Envelope:
    """Return the envelope whose pieces are the running maxima of `ends` along `rows`."""
    before = np.concatenate([[-1.0], np.maximum.accumulate(ends)[:-1]]) if ends.size else ends
    is_record = ends > np.maximum(before, -1.0)
    return Envelope(edges=ends[is_record], rows=np.append(rows[is_record], NOWHERE))


def segments(objective: AffineCost, ratio: float, surely: FloatArray, possibly: FloatArray, end: float) -> Envelope:
    """Return the envelope of affine objectives with u_up = ratio u on [0, end], found by walking from piece to piece.

    On a piece one row is best among the rows that surely keep the limits; the piece ends where that row stops keeping
    them or where a flatter line crosses it. Beyond `end` the rows that reach further are `UNSURE`.

    Args:
        objective: constants and slopes >= 0, shape (num_rows,); rows that are not finite never answer.
        ratio: uplink time over downlink time [1].
        surely: up to which u a row surely keeps the limits, shape (num_rows,).
        possibly: up to which u it possibly does, shape (num_rows,).
        end: largest finite u that will be asked for.
    """
    slope = objective.per_downlink + ratio * objective.per_uplink
    rows = np.flatnonzero(np.isfinite(objective.constant) & np.isfinite(slope) & (possibly >= 0.0))
    lines = _Lines(
        rows=rows,
        constant=objective.constant[rows],
        slope=slope[rows],
        per_uplink=objective.per_uplink[rows],
        per_downlink=objective.per_downlink[rows],
        surely=np.minimum(surely[rows], end),
        possibly=np.minimum(possibly[rows], end),
    )
    pieces: list[tuple[float, int]] = []
    u = 0.0
    while np.any(lines.surely > u if pieces else lines.surely >= u):
        best = lines.best(u, is_start=not pieces)
        stop = lines.stop(best, u)
        pieces += lines.certified(best, u, stop)
        u = stop
        lines = lines.from_here(u)
    last = np.max(lines.possibly, initial=-1.0)
    is_cut = bool(np.any(possibly[rows] > end))
    return Envelope.of([*pieces, (last, UNSURE)] if last >= u else pieces, UNSURE if is_cut else NOWHERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """The lines of a walk; all fields have the shape (num_lines,)."""

    rows: IntArray
    constant: FloatArray
    slope: FloatArray
    per_downlink: FloatArray
    per_uplink: FloatArray
    surely: FloatArray
    possibly: FloatArray

    def from_here(self, u: float) -> _Lines:
        """Return the lines that possibly reach u."""
        kept = self.possibly >= u
        return _Lines(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def best(self, u: float, *, is_start: bool) -> int:
        """Return the lowest line at u among those that surely reach further; of those that meet there, the flattest."""
        is_active = self.surely >= u if is_start else self.surely > u
        value = np.where(is_active, self.constant + self.slope * u, np.inf)
        meeting = np.flatnonzero(value <= np.min(value) * (1.0 + 1e-12))
        return int(meeting[np.argmin(self.slope[meeting])])

    def stop(self, best: int, u: float) -> float:
        """Return where line `best`, the lowest at u, expires or is crossed by a flatter line that surely reaches it."""
        flatter = np.flatnonzero(self.slope < self.slope[best])
        crossing = (self.constant[flatter] - self.constant[best]) / (self.slope[best] - self.slope[flatter])
        # A crossing at u itself is past: without the strict sign, rounding could hold the walk at u for ever.
        crossing = crossing[(self.surely[flatter] > crossing) & (crossing > u)]
        return float(min(self.surely[best], np.min(crossing, initial=np.inf)))

    def certified(self, best: int, start: float, stop: float) -> list[tuple[float, int]]:
        """Return the piece of line `best` as (right end, row), its ends `UNSURE` as far as another line comes near it.

        Line r is near where g + h u <= 0, with g and h the differences to `best`, less the tolerance: a half-line, cut
        off where r no longer possibly keeps its limits. An equal line of a higher row loses every tie and is not near.
        """
        g = self.constant - self.constant[best] - TOLERANCE * (self.constant + self.constant[best]) - _UNDERFLOW
        h = self.slope - self.slope[best] - TOLERANCE * (self.slope + self.slope[best])
        is_later = self.rows >= self.rows[best]
        for coefficient in (self.constant, self.per_downlink, self.per_uplink):  # equal slopes may round apart by u_up
            is_later &= coefficient == coefficient[best]
        is_rival = ~is_later
        last = np.minimum(self.possibly, stop)
        is_near_start, is_near_last = is_rival & (g + h * start <= 0.0), is_rival & (g + h * last <= 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = np.clip(-g / h, start, last)
        near_until = np.max(np.where(is_near_last, last, turn)[is_near_start], initial=-np.inf)
        near_from = np.min(turn[is_near_last & ~is_near_start], initial=np.inf)
        pieces = [(near_until, UNSURE)] if near_until >= start else []
        if near_until < min(near_from, stop) or start == stop > near_until:
            pieces.append((min(near_from, stop), int(self.rows[best])))
        return [*pieces, (stop, UNSURE)] if near_from < stop else pieces
