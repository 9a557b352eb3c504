"""Packages whose names are loaded when somebody first asks for one.

Importing such a package costs next to nothing, which matters since ``import sj_ext`` imports all of
them. Its names stand in its module ``public``; what the package itself has is::

    if TYPE_CHECKING:
        from .public import *
    else:
        __getattr__, __dir__ = late(__name__)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["late"]


def late(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that takes its names from its ``public``.

    Args:
        package: the package's full name.
    """
    names = vars(sys.modules[package])

    def load() -> None:
        public = importlib.import_module(f"{package}.public")
        listed = getattr(public, "__all__", None)  # none yet while it is being imported itself
        if listed is not None:
            names.update({name: getattr(public, name) for name in listed}, __all__=listed)

    def get(name: str) -> Any:
        load()
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return names[name]

    def list_names() -> list[str]:
        load()
        return sorted(names)

    return get, list_names
