"""State dicts of the paper's own program: into T-RevSNN, and out of it again.

The layout ``encode='repeat', norm='bn'`` with ``eps_in='variance'`` is the program's, module by
module, so that a state dict needs other names and nothing else. One table holds the names; it is
read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...arguments import checked
from .model import TRevSNN

__all__ = ["load_published", "published_arguments", "published_state_dict", "published_to_ours"]

#: the program's names and ours; words in braces stand for what both share
_NAMES = (
    ("stem.down1.0.{rest}", "stem.0.{rest}"),
    ("stem.down2.0.{rest}", "stem.1.{rest}"),
    ("stem.{t}.down.0.{rest}", "stem.steps.{t}.{rest}"),
    ("subnet{t}.alpha{l}", "cell.decays.{t}.{l}"),
    (
        "subnet{t}.level{l}.fusion.{way}.encode_conv.{rest}",
        "cell.levels.{t}.{l}.{way}.0.{rest}",
    ),
    ("subnet{t}.level{l}.fusion.{way}.encode_bn.{rest}", "cell.levels.{t}.{l}.{way}.1.{rest}"),
    (
        "subnet{t}.level{l}.blocks.{b}.{kind}conv1.{rest}",
        "cell.levels.{t}.{l}.blocks.{b}.{kind}conv.{rest}",
    ),
    (
        "subnet{t}.level{l}.blocks.0.{kind}conv2.{rest}",
        "cell.levels.{t}.{l}.blocks.0.tail.{kind}conv.{rest}",
    ),
    (
        "subnet{t}.level{l}.blocks.1.{kind}conv2_reuse.{rest}",
        "cell.levels.{t}.{l}.blocks.1.tail.{kind}conv.{rest}",
    ),
    ("subnet{t}.level{l}.blocks.{b}.gamma", "cell.levels.{t}.{l}.blocks.{b}.gamma"),
    ("cls_blocks.{t}.classifier.0.{rest}", "step_heads.{t}.classifier.{rest}"),
)
_IMAGE_HEAD = (
    ("cls_blocks.{last}.classifier1.0.{rest}", "head.classifier1.{rest}"),
    ("cls_blocks.{last}.classifier2.{rest}", "head.classifier2.{rest}"),
)
_EVENT_HEAD = (
    ("cls_blocks.classifier1.0.{rest}", "head.classifier1.{rest}"),
    ("cls_blocks.classifier2.{rest}", "head.classifier2.{rest}"),
)
_WORDS = {"way": "down|up", "kind": "dw|pw", "rest": ".+"}


@checked
def published_to_ours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in the program's names, in the names of :class:`TRevSNN`.

    Args:
        state_dict: of the program's network, for images or events, at any width; a ``module.``
            that distributed training puts before its names is dropped.

    Returns:
        The same tensors under our names, as ``load_state_dict`` of a network with
        ``encode='repeat', norm='bn'`` takes them.

    Shapes:
        Those of the program's parameters, which are those of ours.

    Raises:
        ValueError: a name that the program's network does not have.
    """
    names = [(_pattern(theirs), ours) for theirs, ours in (*_NAMES, *_IMAGE_HEAD, *_EVENT_HEAD)]
    return {_renamed(name.removeprefix("module."), names): v for name, v in state_dict.items()}


@checked
def published_state_dict(model: TRevSNN) -> dict[str, torch.Tensor]:
    """The state dict of ``model`` in the names of the paper's program.

    Args:
        model: a network of the program's layout, ``encode='repeat', norm='bn'``.

    Returns:
        The tensors of ``model.state_dict()`` under the program's names.

    Shapes:
        Those of the program's parameters, which are those of ours.

    Raises:
        TypeError: ``model`` is not a :class:`TRevSNN`.
        ValueError: ``model`` has another layout, or has been re-parameterised.
    """
    _check_layout(model)
    head = _EVENT_HEAD if model.events else _IMAGE_HEAD
    names = [(_pattern(ours), theirs) for theirs, ours in (*_NAMES, *head)]
    last = str(model.num_steps - 1)
    return {_renamed(name, names, last=last): v for name, v in model.state_dict().items()}


@checked
def published_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments with which :class:`TRevSNN` makes the network that a state dict is of.

    Args:
        state_dict: in the program's names, as :func:`published_to_ours` takes it.

    Shapes:
        Those of the program's parameters, which are those of ours.

    Raises:
        ValueError: a name that the program's network does not have, or a part that is missing.
    """
    return _arguments(published_to_ours(state_dict))


@checked
def load_published(model: TRevSNN, state_dict: Mapping[str, torch.Tensor]) -> TRevSNN:
    """Load a state dict of the paper's program into a network of the same sizes.

    ::

        model = TRevSNN(**published_arguments(state_dict))
        load_published(model, state_dict)

    Args:
        model: with ``encode='repeat', norm='bn'`` and ``eps_in='variance'`` (which is what
            ``norm='bn'`` gives), so that it computes what the program's network does.
        state_dict: in the program's names, as :func:`published_to_ours` takes it.

    Returns:
        ``model``.

    Shapes:
        Those of the program's parameters, which are those of ours.

    Raises:
        TypeError: ``model`` is not a :class:`TRevSNN`.
        ValueError: ``model`` has another layout or other sizes than the network that the state
            dict is of; a name is missing or not the program's.
    """
    _check_layout(model)
    state = published_to_ours(state_dict)
    wanted = _arguments(state)
    for name, mine in _arguments(model.state_dict()).items():
        if mine != wanted[name]:
            raise ValueError(
                f"state_dict is of a network with {name}={wanted[name]!r}, but model has {mine!r}"
            )
    own = model.state_dict()
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or unknown:
        raise ValueError(
            f"state_dict lacks {sorted(missing)} and has {sorted(unknown)}, which model has not"
        )
    model.load_state_dict(state)
    return model


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression, whose groups are the words in braces."""
    parts = re.split(r"\{(\w+)\}", template)
    for index, part in enumerate(parts):
        parts[index] = f"(?P<{part}>{_WORDS.get(part, '[0-9]+')})" if index % 2 else re.escape(part)
    return re.compile("".join(parts))


def _renamed(name: str, names: list[tuple[re.Pattern[str], str]], **more: str) -> str:
    for pattern, target in names:
        found = pattern.fullmatch(name)
        if found:
            return target.format(**more, **found.groupdict())
    raise ValueError(f"state_dict has {name!r}, which is no name of the published T-RevSNN")


def _arguments(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Sizes of a network of the program's layout, from its state dict in our names."""
    try:
        channels = tuple(state[f"cell.decays.0.{level}"].shape[1] for level in range(4))
        num_classes = len(state["head.classifier2.bias"])
        kernel_size = state["cell.levels.0.0.blocks.0.dwconv.weight"].shape[-1]
    except KeyError as missing:
        raise ValueError(f"state_dict has nothing for {missing}") from None
    return {
        "channels": channels,
        "num_classes": num_classes,
        "num_steps": 1 + max(_steps(state)),
        "kernel_size": kernel_size,
        "encode": "repeat",
        "norm": "bn",
        "events": any(name.startswith("stem.steps.") for name in state),
    }


def _steps(state: Mapping[str, torch.Tensor]) -> Iterator[int]:
    return (int(name.split(".")[2]) for name in state if name.startswith("cell.decays."))


def _check_layout(model: TRevSNN) -> None:
    if not isinstance(model, TRevSNN):
        raise TypeError(f"model must be a TRevSNN, got {type(model).__name__}")
    encode = "repeat" if model.events else model.encode  # events have a stem per step either way
    have = {"encode": encode, "norm": model.norm, "eps_in": model.eps_in}
    wanted = {"encode": "repeat", "norm": "bn", "eps_in": "variance"}
    if have != wanted:
        raise ValueError(f"model must have the program's layout, {wanted}, got {have}")
