"""Uniform random numbers from a stream for each row, for all rows at once and without state.

Number t of the stream with seed s is SplitMix64 (Steele, Lea, Flood 2014) started at s, output t + 1. It is a pure
function of (seed, position), so a row gets the same numbers in any batch and after any interruption.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def random_bits(seeds_B: NDArray[np.uint64], positions_T: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each seed and position [B, T]."""
    with np.errstate(over="ignore"):
        state = seeds_B[:, None] + (positions_T[None, :] + np.uint64(1)) * _GAMMA
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return state ^ (state >> np.uint64(31))


def uniforms(seeds_B: NDArray[np.uint64], start: int, count: int) -> NDArray[np.float64]:
    """Numbers `start` to `start + count` of each stream [B, count], in [0, 1) with 52 bits."""
    positions_T = np.arange(start, start + count, dtype=np.uint64)
    return (random_bits(seeds_B, positions_T) >> np.uint64(12)) * 2.0**-52
