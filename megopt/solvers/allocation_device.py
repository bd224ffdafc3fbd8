"""What one device does at given prices: how densely it sends, how long, and how fast it computes. Vectorised.

Units are those of the cell: bandwidth in B, power in P, so that the signal-to-noise ratio is g' = g P/B per unit, a
payload is S = Z ln 2/B [s], and w = S/(t v) buys the airtime t at v nats per symbol. With ratio = lambda/mu,

    v solves e^v (v - 1) + 1 = g' ratio,      x = S mu e^v/g'  is what the airtime costs: x/t,

and the device balances airtime t against the time d = C/f of its own work (nu >= 0 is the price of its deadline):

    minimise (A + nu) t + x/t + (alpha + nu) d + b k C^3/d^2,      A = alpha + beta q,  b = beta
    slack:   t = sqrt(x/A),  f = (alpha/(2 beta k))^(1/3) within [f_min, f_max]
    binding: t + d = D - a and x/t^2 - beta q = 2 beta k (C/d)^3, one root, as the sides fall and rise with t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray

_SMALL_V = 0.03
"""Below this v + (v - 1) (e^v - 1) cancels by more than two digits; its series is used."""
_SERIES = tuple((n - 1) / float(np.prod(np.arange(1, n + 1, dtype=np.float64))) for n in range(2, 10))
_CLOSE = 1e-7
_MAX_ITERATIONS = 80


def efficiency(target: FloatArray, guess: FloatArray | None = None, close: float = _CLOSE) -> FloatArray:
    """Return v > 0 [nat/symbol] with e^v (v - 1) + 1 = `target` > 0, any shape, by Newton's method in logarithms.

    log(e^v (v - 1) + 1) is convex and increasing in log v with slope at least 2, so that it converges from anywhere.

    Args:
        target: g lambda/mu [1].
        guess: where to start, same shape; a rough fit if None.
        close: largest residual of the logarithm from which one more step is the last; what it leaves is of the order
            of its square.
    """
    v = np.log1p(np.sqrt(2.0 * target)) if guess is None else guess
    log_target = np.log(target)
    for _ in range(_MAX_ITERATIONS):
        above = np.expm1(v)
        value = _marginal(v, above)
        residual = log_target - np.log(value)
        v = v * np.exp(residual * value / (v * v * (above + 1.0)))
        if not np.abs(residual).max(initial=0.0) >= close:  # quadratic: the next error is below rounding
            break
    return v


def _marginal(v: FloatArray, above: FloatArray) -> FloatArray:
    """Return e^v (v - 1) + 1 for `above` = e^v - 1."""
    value = v + (v - 1.0) * above
    if v.min(initial=np.inf) < _SMALL_V:
        is_small = v < _SMALL_V
        small = v[is_small]
        value[is_small] = small * small * np.polynomial.polynomial.polyval(small, _SERIES)
    return np.asarray(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Balance:
    """x/t^2 = beta q + cubed/d^3 at t + d = room; fields of shape (num_late,)."""

    cost: FloatArray
    room_s: FloatArray
    receive: FloatArray
    cubed: FloatArray

    def root(self, low: FloatArray, high: FloatArray, guess: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """Return t between `low` and `high` and d log t/d log x: Newton's method in a bracket that shrinks."""
        middle = 0.5 * (low + high)
        t = middle if guess is None else np.where((guess > low) & (guess < high), guess, middle)
        for _ in range(_MAX_ITERATIONS):
            work_s = self.room_s - t
            clock_cost = self.cubed / work_s**3
            excess = np.log(self.cost / (t * t * (self.receive + clock_cost)))  # falls with t
            slope = 2.0 + 3.0 * t * clock_cost / (work_s * (self.receive + clock_cost))  # of it, in log t
            low, high = np.where(excess > 0.0, t, low), np.where(excess > 0.0, high, t)
            moved = t * np.exp(np.clip(excess / slope, -1.0, 1.0))
            t = np.where((moved >= low) & (moved <= high), moved, 0.5 * (low + high))
            if np.max(np.abs(excess)) < _CLOSE:  # quadratic: the next error is below rounding
                break
        return t, 1.0 / slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Devices of cells in the units of the cell; every field has shape (num_cells, num_devices).

    Attributes:
        payload_s: S [s].
        gain: g' [1]; 1 where nothing is sent or nothing can be.
        room_s: D - a, what is left for airtime and the device's work [s], inf without a deadline.
        work_hz_s: C [cycle].
        clock_min_hz: f_min [Hz].
        clock_max_hz: f_max [Hz].
        latency_weight: alpha.
        airtime_weight: A = alpha + beta q.
        cubic: 2 beta k, so that alpha + nu = cubic f^3 at the best clock.
    """

    payload_s: FloatArray
    gain: FloatArray
    room_s: FloatArray
    work_hz_s: FloatArray
    clock_min_hz: FloatArray
    clock_max_hz: FloatArray
    latency_weight: FloatArray
    airtime_weight: FloatArray
    cubic: FloatArray

    def take(self, cells: BoolArray) -> Devices:
        """Return the devices of some cells."""
        return Devices(**{name: getattr(self, name)[cells] for name in self.__dataclass_fields__})

    def unhurried_clock_hz(self, deadline_price: FloatArray | float = 0.0) -> FloatArray:
        """Return the best clock f [Hz] at a price nu of the deadline."""
        if not self.cubic.any():
            return self.clock_max_hz  # energy is free: as fast as it goes
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.cbrt((self.latency_weight + deadline_price) / self.cubic)
        best = np.where(self.cubic > 0.0, best, np.inf)  # so it is for some devices
        return np.asarray(np.clip(best, self.clock_min_hz, self.clock_max_hz))

    def airtime(
        self, cost: FloatArray, guess: FloatArray | None, unhurried_hz: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the best airtime t [s] and its elasticity d log t/d log x in 0..1/2, for costs x > 0 of airtime.

        Args:
            cost: x, shape (num_cells, num_devices); 0 where nothing is sent.
            guess: airtimes to start from, if any.
            unhurried_hz: the best clocks without a deadline [Hz], `unhurried_clock_hz()`.
        """
        is_on = cost > 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            slack = np.where(is_on, np.sqrt(cost / self.airtime_weight), 0.0)
        elasticity = np.where(is_on, 0.5, 0.0)
        is_late = (slack + self.work_hz_s / unhurried_hz > self.room_s) & is_on
        if np.any(is_late):
            start = None if guess is None else guess[is_late]
            hurried = self._hurried(is_late, cost[is_late], unhurried_hz[is_late], start)
            slack[is_late], elasticity[is_late] = hurried
        return slack, elasticity

    def _hurried(
        self, which: BoolArray, cost: FloatArray, unhurried_hz: FloatArray, guess: FloatArray | None
    ) -> tuple[FloatArray, FloatArray]:
        """Return airtimes and elasticities of the devices `which` hold their deadline back, each (num_late,).

        The clock lies between the unhurried and the largest one; where the balance is beyond either, it is there.
        """
        room, work, cubic = self.room_s[which], self.work_hz_s[which], self.cubic[which]
        receive, fastest_hz = (self.airtime_weight - self.latency_weight)[which], self.clock_max_hz[which]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = room - work / unhurried_hz, room - work / fastest_hz
            is_slow = (low > 0.0) & (cost <= (receive + cubic * unhurried_hz**3) * low * low)
            is_fast = cost >= (receive + cubic * fastest_hz**3) * high * high
        airtime_s, elasticity = np.where(is_slow, low, high), np.zeros_like(high)
        inside = ~is_slow & ~is_fast
        if np.any(inside):
            balance = _Balance(
                cost=cost[inside], room_s=room[inside], receive=receive[inside], cubed=(cubic * work**3)[inside]
            )
            start = None if guess is None else guess[inside]
            airtime_s[inside], elasticity[inside] = balance.root(np.maximum(low[inside], 0.0), high[inside], start)
        return airtime_s, elasticity

    def deadline_price(self, cost: FloatArray, airtime_s: FloatArray, clock_hz: FloatArray) -> FloatArray:
        """Return nu >= 0 at the answer: what its airtime, or without one its clock, says a second is worth."""
        with np.errstate(divide="ignore", invalid="ignore"):
            sent = cost / (airtime_s * airtime_s) - self.airtime_weight
        idle = self.cubic * clock_hz**3 - self.latency_weight
        is_tight = airtime_s + self.work_hz_s / clock_hz >= self.room_s * (1.0 - 1e-9)
        is_hurried = is_tight & ((cost > 0.0) | (clock_hz > self.unhurried_clock_hz()))
        return np.asarray(np.where(is_hurried, np.maximum(np.where(cost > 0.0, sent, idle), 0.0), 0.0))

    def dual_values(self, cost: FloatArray, deadline_price: FloatArray) -> FloatArray:
        """Return what each device adds to the dual besides alpha a: see `allocation_model`, shape as the fields."""
        clock = self.unhurried_clock_hz(deadline_price)
        pace = (self.latency_weight + deadline_price) * self.work_hz_s / clock
        energy = 0.5 * self.cubic * self.work_hz_s * clock**2
        with np.errstate(invalid="ignore"):
            room = np.where(deadline_price > 0.0, deadline_price * self.room_s, 0.0)
        return np.asarray(2.0 * np.sqrt((self.airtime_weight + deadline_price) * cost) + pace + energy - room)
