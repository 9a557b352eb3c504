"""Which surrogates' backward pass is one bit per element."""

from __future__ import annotations

from collections.abc import Callable

from ..surrogate import Rect

__all__ = ["rectangular_window"]


def rectangular_window(surrogate_function: Callable[..., object]) -> float | None:
    """``alpha`` of a surrogate whose whole backward pass is a rectangular window, else None.

    The gradient of such a surrogate at ``u - v_threshold`` is ``alpha`` where
    ``|u - v_threshold| < 1 / (2 alpha)`` and 0 elsewhere.
    """
    if type(surrogate_function) is not Rect or not surrogate_function.spiking:
        return None
    return float(surrogate_function.alpha)
