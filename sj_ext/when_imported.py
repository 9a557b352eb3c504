"""Doing something to a module of somebody else's at the moment when it is first imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["WhenImported"]


class WhenImported(MetaPathFinder):
    """Calls ``then(module)`` once the module ``name`` has been loaded; at once if it has been.

    Until then one entry stands in ``sys.meta_path``, which finds nothing itself.

    Args:
        name: the module's full name.
        then: what to do.
    """

    def __init__(self, name: str, then: Callable[[ModuleType], object]):
        self.name = name
        self.then = then
        if name in sys.modules:
            then(sys.modules[name])
        else:
            sys.meta_path.insert(0, self)

    def forget(self) -> None:
        """Do nothing when the module is imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have for the module, with ``then`` behind its loading."""
        if fullname != self.name:
            return None
        self.forget()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_then(module: ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_and_then  # type: ignore[method-assign]
        return spec
