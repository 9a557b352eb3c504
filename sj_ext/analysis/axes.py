"""Where the plot functions get their axes: matplotlib is optional and imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes_or_new(ax: Axes | None = None) -> Axes:
    """Return ``ax``, or the axes of a new figure.

    The new figure belongs to no window and to no global list of figures (``matplotlib.pyplot`` is
    not imported), so that plotting works without a display and leaks nothing;
    ``ax.figure.savefig(path)`` writes it.

    Raises:
        TypeError: ``ax`` is something else.
        RuntimeError: ``ax`` is None and matplotlib is not installed.
    """
    if ax is not None:
        if not hasattr(ax, "plot"):
            raise TypeError(f"ax must be axes of matplotlib or None, got {ax!r}")
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(
            "plotting needs matplotlib, which is not installed: pip install 'sj_ext[plot]'"
        ) from error
    return Figure(layout="constrained").add_subplot()
