"""One style for the commands of the examples.

A script has ``make_parser()``, which returns a :class:`Command`, and ``main(argv=None)``. Help
shows defaults; arguments are checked before anything is made; ``--short`` gives way to what is said
beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Command(argparse.ArgumentParser):
    """A parser whose description is a script's docstring.

    Args:
        text: the docstring.
        short: what ``--short`` sets, by the names of the options; None for no ``--short``.
    """

    def __init__(self, text: str, short: Mapping[str, Any] | None = None):
        super().__init__(description=text.strip().replace("%", "%%"), formatter_class=Help)
        self.short = dict(short or {})
        if short is not None:
            sets = ", ".join(f"{_option(name)} {_shown(value)}" for name, value in short.items())
            self.add_argument(
                "--short",
                action="store_true",
                help=f"a quick run{f': {sets}, unless they are given too' if sets else ''}",
            )

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Arguments; with ``--short``, its values for whatever was not given."""
        found = self.parse_args(argv)
        if getattr(found, "short", False) is True and self.short:
            self.set_defaults(**self.short)
            found = self.parse_args(argv)
        return found

    def also(self, old: str, new: str, kind: Callable[[str], Any]) -> None:
        """Take the former name of an option, which help does not show."""
        name = new.removeprefix("--").replace("-", "_")
        self.add_argument(
            old, dest=name, type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def count(text: str) -> int:
    """A whole number from 1 on."""
    return _number(text, int, lambda value: value >= 1, "a whole number from 1 on")


def whole(text: str) -> int:
    """A whole number from 0 on."""
    return _number(text, int, lambda value: value >= 0, "a whole number from 0 on")


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def _number(text: str, kind: Callable, allowed: Callable[[Any], bool], words: str) -> Any:
    try:
        value = kind(text.replace("_", ""))
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
    return value


def device(text: str) -> str:
    """A device of PyTorch that is there."""
    try:
        found = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"must be a device of PyTorch, got {text!r}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text}: PyTorch finds no CUDA device here")
    return text


def cifar10_folder(text: str) -> Path:
    """A folder with CIFAR-10: torchvision's copy, itself or where it is, or packed files."""
    path = existing_folder(text)
    if path.name == "cifar-10-batches-py":
        return path.parent
    if not any((path / name).exists() for name in ("train.npz", "cifar-10-batches-py")):
        raise argparse.ArgumentTypeError(
            f"{path} holds neither train.npz and test.npz nor torchvision's cifar-10-batches-py"
        )
    return path


def existing_folder(text: str) -> Path:
    """A folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, got {text!r}")
    return path


def existing_file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"must be a file, got {text!r}")
    return path


def new_folder(text: str) -> Path:
    """A folder that is there or can be made."""
    path = Path(text)
    first = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not first.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {str(first)!r} is a file")
    return path


def new_file(text: str) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that is there, got {text!r}")
    return path


DATA = "folder of CIFAR-10: torchvision's cifar-10-batches-py, or train.npz and test.npz"
