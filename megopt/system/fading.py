"""Small-scale fading, and the channel state that it moves: a constant specular part and a scattered part with memory.

The amplitude of a device is h = sqrt(s) + sqrt(1 - s) g with the specular share s = K / (K + 1) of a Rician factor K
and a scattered amplitude g of unit mean power, so E|h|^2 = 1. From one slot to the next, with w complex normal of unit
power,

    g' = rho g + sqrt(1 - rho^2) w

rho = 0 is block fading, rho = 1 a frozen channel. s = 0 is Rayleigh, 0 < s < 1 Rician, s = 1 no fading.
Source: A. Goldsmith, Wireless Communications, chapter 3; R. H. Clarke 1968 for the correlation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from megopt.arrays import BoolArray, FloatArray, IntArray, Real
from megopt.ranges import require_within
from megopt.units import linear_from_db

ComplexArray: TypeAlias = NDArray[np.complex128]


def jakes_correlation(doppler_hz: Real, interval_s: Real) -> FloatArray:
    """Return the correlation rho = J0(2 pi f_D tau) [1] of the scattered amplitude over one slot.

    Args:
        doppler_hz: largest Doppler shift f_D = speed / wavelength [Hz], any shape.
        interval_s: time tau between two slots [s], broadcasts.

    Raises:
        ConfigError: if one of them is negative.

    Source: R. H. Clarke, Bell Syst. Tech. J. 1968; W. C. Jakes, Microwave Mobile Communications, 1974.
    """
    require_within("Jakes correlation", 0.0, np.inf, doppler_hz=doppler_hz, interval_s=interval_s)
    return np.asarray(j0(2.0 * np.pi * np.asarray(doppler_hz, dtype=np.float64) * interval_s))


def specular_share(k_factor_db: Real) -> FloatArray:
    """Return s = K / (K + 1) [1] for a Rician factor [dB], any shape; -inf dB gives 0 (Rayleigh), inf dB gives 1."""
    return np.asarray(1.0 / (1.0 + linear_from_db(-np.asarray(k_factor_db, dtype=np.float64))))


def scattered(rng: np.random.Generator, shape: tuple[int, ...]) -> ComplexArray:
    """Return complex normal amplitudes [1] of unit mean power, of the given `shape`."""
    parts = rng.standard_normal((*shape, 2))
    return np.asarray(np.sqrt(0.5) * parts.view(np.complex128)[..., 0])


def advance_scattered(rng: np.random.Generator, amplitude: ComplexArray, correlation: float) -> ComplexArray:
    """Return the scattered `amplitude` [1] one slot later, same shape; a frozen channel (rho = 1) draws nothing."""
    if correlation == 1.0:
        return amplitude
    if correlation == 0.0:
        return scattered(rng, amplitude.shape)
    return _blend(amplitude, scattered(rng, amplitude.shape), correlation)


def scattered_path(
    rng: np.random.Generator, amplitude: ComplexArray, correlation: float, num_slots: int
) -> ComplexArray:
    """Return the path of `num_slots` slots that starts at `amplitude`, in the numbers that stepping would draw.

    Args:
        rng: generator of the innovations, drawn in one block.
        amplitude: scattered amplitudes of the first slot [1], shape (num_devices,).
        correlation: rho of one slot [1].
        num_slots: length of the path, at least 1.

    Returns:
        Scattered amplitudes [1], shape (num_slots, num_devices).
    """
    if correlation == 1.0:
        return np.broadcast_to(amplitude, (num_slots, *amplitude.shape))
    path = np.concatenate([amplitude[np.newaxis], scattered(rng, (num_slots - 1, *amplitude.shape))])
    if correlation != 0.0:
        for slot in range(1, num_slots):
            path[slot] = _blend(path[slot - 1], path[slot], correlation)
    return path


def _blend(amplitude: ComplexArray, innovation: ComplexArray, correlation: float) -> ComplexArray:
    """Return rho g + sqrt(1 - rho^2) w: unit power stays unit power."""
    return np.asarray(correlation * amplitude + np.sqrt(1.0 - correlation**2) * innovation)


def power_gain(share: FloatArray, amplitude: ComplexArray) -> FloatArray:
    """Return |sqrt(s) + sqrt(1 - s) g|^2 [1], mean 1.

    Args:
        share: specular share s [1], broadcasts against the amplitudes.
        amplitude: scattered amplitudes g [1], any shape.
    """
    if share.size and share.min() == share.max():  # one share for all devices: no array of roots
        share = share.ravel()[:1]
    scattered_root = np.sqrt(1.0 - share)
    in_phase = np.sqrt(share) + scattered_root * amplitude.real
    quadrature = scattered_root * amplitude.imag
    return np.asarray(in_phase**2 + quadrature**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """What the channels of `num_devices` devices are in one slot; all fields have the shape (num_devices,).

    Attributes:
        mean_snr: SNR averaged over small-scale fading [1].
        specular_share: share of the mean power that does not fade [1], 0 to 1.
        scattered: scattered amplitude of unit mean power [1], complex.
        slot: slots since `Channel.initial`.
    """

    mean_snr: FloatArray
    specular_share: FloatArray
    scattered: ComplexArray
    slot: IntArray

    def where(self, is_fresh: BoolArray, fresh: ChannelState) -> ChannelState:
        """Return `fresh` in the devices where `is_fresh` (num_devices,) and this state in the others."""
        chosen = {f.name: np.where(is_fresh, getattr(fresh, f.name), getattr(self, f.name)) for f in fields(self)}
        return ChannelState(**chosen)


class Channel(ABC):
    """A source of SNR: slot by slot for environments, or whole paths at once; both give the same numbers.

    A subclass says where devices are (`place`) and how fast their fading moves (`slot_correlation`).
    """

    __slots__ = ()

    @abstractmethod
    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return mean SNR [1] and specular share [1] of new devices, each of shape (num_devices,)."""

    def stratified(self) -> Channel:
        """Return this channel with places that share their range out evenly; itself where it draws none."""
        return self

    @abstractmethod
    def slot_correlation(self) -> float:
        """Return the correlation [1] of the scattered amplitude over one slot."""

    def initial(self, rng: np.random.Generator, num_devices: int) -> ChannelState:
        """Return the first slot of `num_devices` new devices: a place and a scattered amplitude for each.

        Raises:
            ConfigError: if `num_devices` is below 1.
        """
        require_within("channel", 1, np.inf, num_devices=num_devices)
        mean_snr, share = self.place(rng, num_devices)
        return ChannelState(
            mean_snr=mean_snr,
            specular_share=share,
            scattered=scattered(rng, (num_devices,)),
            slot=np.zeros(num_devices, dtype=np.int64),
        )

    def advance(self, rng: np.random.Generator, state: ChannelState) -> ChannelState:
        """Return the state one slot later: same place, moved fading."""
        moved = advance_scattered(rng, state.scattered, self.slot_correlation())
        return replace(state, scattered=moved, slot=state.slot + 1)

    def snr(self, state: ChannelState) -> FloatArray:
        """Return the received SNR [1] of `state`, shape (num_devices,)."""
        return state.mean_snr * power_gain(state.specular_share, state.scattered)

    def sample_snr(self, rng: np.random.Generator, num_requests: int, num_devices: int = 1) -> FloatArray:
        """Return the paths of `num_devices` new devices over `num_requests` slots: what stepping with `rng` would give.

        Args:
            rng: generator of all randomness.
            num_requests: slots, one request of each device in each.
            num_devices: independent devices; each keeps its place along its path.

        Returns:
            Received SNR [1], shape (num_requests, num_devices).

        Raises:
            ConfigError: if a count is below 1.
        """
        require_within("channel", 1, np.inf, num_requests=num_requests)
        first = self.initial(rng, num_devices)
        path = scattered_path(rng, first.scattered, self.slot_correlation(), num_requests)
        return first.mean_snr * power_gain(first.specular_share, path)
