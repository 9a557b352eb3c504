"""Which generation of SpikingJelly is installed.

=============== ============ ======================================================================
``GENERATION``  SpikingJelly what differs
=============== ============ ======================================================================
1               0.0.0.0.14   stateful ``neuronal_*`` methods, ``backend`` argument, CuPy kernels
2               2.x          pure functional forward over explicit states, kernels chosen by itself
=============== ============ ======================================================================
"""

from __future__ import annotations

import importlib.metadata

from spikingjelly.activation_based import base

__all__ = ["GENERATION", "SUPPORTED", "VERSION", "generation_of"]

SUPPORTED = "spikingjelly>=0.0.0.0.14,<3"

#: what only one generation's ``base.MemoryModule`` has, by generation
MARKS = {1: "supported_backends", 2: "materialize_states"}


def generation_of(version: str, memory_module: type) -> int:
    """1 or 2, from what the host can do; its version string only rules releases out.

    Args:
        version: as the installed distribution tells it, ``'unknown'`` for a source tree.
        memory_module: the host's ``base.MemoryModule``.

    Raises:
        RuntimeError: the release is too old or too new, or the host is neither generation, as a
            source tree between the two is.
    """
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if (numbers and numbers < (0, 0, 0, 0, 14)) or numbers >= (3,):
        raise RuntimeError(
            f"sj_ext supports {SUPPORTED}; the installed SpikingJelly is {version}. "
            "Install a supported release, for example spikingjelly==2.0.0."
        )
    found = [generation for generation, mark in MARKS.items() if hasattr(memory_module, mark)]
    if len(found) != 1:
        has = f"both {MARKS[1]} and {MARKS[2]}" if found else f"no {MARKS[1]} and no {MARKS[2]}"
        raise RuntimeError(
            f"sj_ext supports the releases {SUPPORTED}, and this SpikingJelly, which calls itself "
            f"{version}, is none of them: its base.MemoryModule has {has}, where 0.0.0.0.14 has "
            f"the one and 2.x the other. Is a source tree from between the releases on the path? "
            "Take it off, or install a release, for example spikingjelly==2.0.0."
        )
    return found[0]


def _version() -> str:
    try:
        return importlib.metadata.version("spikingjelly")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


VERSION = _version()
GENERATION = generation_of(VERSION, base.MemoryModule)
