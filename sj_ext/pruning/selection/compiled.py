"""The pass over one block as one compiled loop, where numba is installed (the extra ``fast``).

NumPy reads the block anew for each of its operations, and threads meet at Python's lock in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

#: from this many weights on, compiling for a second is worth it
LARGE = 1 << 22
#: weights that are compared at once: one bit of a word for each
CHUNK = 32
BITS = np.left_shift(np.uint32(1), np.arange(CHUNK, dtype=np.uint32))
#: the place of a bit in its word, by the remainder of the bit by 37, a prime that tells all apart
PLACES = np.zeros(37, np.int64)
PLACES[BITS % 37] = np.arange(CHUNK)


def scan_block(block, low, high, index, magnitude) -> tuple[int, float, int]:
    """Count and sum the squares of what is at most ``low``; take out what is then at most ``high``.

    NaN counts as below and makes the sum NaN, so that it is noticed.

    Args:
        index, magnitude: where weights inside the bracket are written, in order; as long as the
            block.

    Returns:
        The count below, the sum of their squares, and how many were taken out.
    """
    count, taken, energy = 0, 0, 0.0
    # four bytes wide, as the weights mostly are
    one, none, no_bit, zero = np.int32(1), np.int32(0), np.uint32(0), low * 0
    whole = len(block) // CHUNK * CHUNK
    for start in range(0, whole, CHUNK):
        part = block[start : start + CHUNK]
        below: Any = none
        bits, squares = no_bit, zero
        for j in range(CHUNK):  # without a branch, and of known length: vector instructions
            size = abs(part[j])
            below += none if size > low else one
            bits += BITS[j] if (size > low) & (size <= high) else no_bit
            squares += zero if size > low else size * size
        count += below
        energy += squares
        # the first of the chunk is written in any case and counts if it is one: no guess that the
        # processor can get wrong
        word = np.int64(bits)
        bit = word & -word  # the lowest
        while True:
            j = PLACES[bit % 37]
            index[taken] = start + j
            magnitude[taken] = abs(part[j])
            taken += 1 if bit != 0 else 0
            word ^= bit
            if word == 0:
                break
            bit = word & -word
    for i in range(whole, len(block)):
        size = abs(block[i])
        if not size > low:
            count += 1
            energy += size * size
        elif size <= high:
            index[taken] = i
            magnitude[taken] = size
            taken += 1
    return count, energy, taken


@functools.cache
def scanner() -> Callable[..., Any] | None:
    """:func:`scan_block`, compiled; None where numba is absent or told not to compile."""
    try:
        import numba
    except ImportError:  # also: numba refuses the installed NumPy
        return None
    if getattr(numba.config, "DISABLE_JIT", 0):
        return None
    # sums may be formed in any order, NaN must not be assumed away
    return numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(
        scan_block
    )
