"""Checkpoints: files that are whole at every moment, and that are read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .arguments import checked

__all__ = ["load_checkpoint", "save_checkpoint"]


@checked
def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Save ``state`` such that ``path`` holds a whole checkpoint at every moment.

    The state is written to ``path`` with ``.partial`` behind its name, brought to the disk, and
    only then moved to ``path``. A process that is killed, a disk that is full or a machine that
    loses power during the write leaves what was there before.

    Args:
        state: what :func:`load_checkpoint` is to give back: tensors, numbers, strings, and
            dictionaries, lists and tuples of them, as the ``state_dict()`` of modules, optimizers
            and of :class:`~sj_ext.pruning.MinimaxPruner` are.
        path: the file; its folder must exist.

    Raises:
        TypeError: ``state`` is not a mapping, or holds what :func:`load_checkpoint` would refuse.
        OSError: the file cannot be written; the message names the reason and what is still there.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names, got {type(state).__name__}")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        _check_readable(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        left = "the one before it is still whole" if path.exists() else "there is none yet"
        message = f"the checkpoint could not be written ({cause.strerror}); {left}"
        raise OSError(cause.errno, message, str(path)) from error


@checked
def load_checkpoint(
    path: str | os.PathLike[str], *, map_location: torch.device | str | None = None
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, with ``weights_only=True``: no code is run.

    Args:
        path: the file.
        map_location: the device for its tensors; by default the one that each was on.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is cut short or damaged, is no checkpoint, or holds objects that
            could run code.
    """
    with open(path, "rb") as file:  # a file that is not there or may not be read says so itself
        damage = _damage(file)
        if damage is None:
            file.seek(0)
            try:
                state = torch.load(file, map_location=map_location, weights_only=True)
            except pickle.UnpicklingError as error:
                raise RuntimeError(
                    f"{path} holds more than tensors, numbers, strings and collections of them, "
                    "and reading such objects could run code; it is not loaded"
                ) from error
            except RuntimeError as error:  # of the reader, or of a device that is not there
                if "PytorchStreamReader" not in str(error):
                    raise
                damage = error
    if damage is not None:
        raise RuntimeError(
            f"{path} is cut short or damaged, or no checkpoint of PyTorch ({damage}); restore it "
            "from a copy, or remove it to start anew"
        ) from damage
    if not isinstance(state, dict):
        raise RuntimeError(
            f"{path} holds a {type(state).__name__}, not the dictionary that save_checkpoint wrote"
        )
    return state


def _check_readable(path: Path) -> None:
    """Raise if what was written would not be read again; its tensors are not read for that."""
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error))
        raise TypeError(
            "state must hold tensors, numbers, strings and collections of them, which are read "
            f"without running code; load_checkpoint would refuse it ({reason.strip()})"
        ) from error


def _damage(file: BinaryIO) -> Exception | None:
    """What is wrong with an archive: its checksums are compared, which PyTorch does not do."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
    except Exception as error:  # what a wrong byte leads to is anything
        return error
    return None


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error; PyTorch's writer puts one of its own in front."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
