"""Where no gradient is asked for: inference, and graphs that leave Python.

The surrogate gradients and the memory-saving backward passes of this package are autograd functions
in Python. ``torch.jit.trace`` cannot save one, ONNX knows none, and ``torch.export`` looks through
it and forgets its backward pass. So none of them is on the way where nothing asks for a gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["fire", "gradient_wanted", "leaving", "refuse_transforms", "tracing"]

#: where the surrogates are that are a Heaviside step in spiking mode; a user's may be another
_SURROGATES = ("spikingjelly.activation_based.surrogate", "sj_ext.surrogate")
_STEPS = {
    *("ATan", "ClosedRect", "DSpike", "Erf", "FakeNumericalGradient", "LeakyKReLU"),
    *("LogTailedReLU", "NonzeroSignLogAbs", "PiecewiseExp", "PiecewiseLeakyReLU"),
    *("PiecewiseQuadratic", "QPseudoSpike", "Rect", "S2NN", "Sigmoid", "SoftSign"),
    *("SquarewaveFourierSeries", "SuperSpike"),
}

#: since PyTorch 2.7
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def tracing() -> bool:
    """Whether ``torch.jit.trace`` is looking."""
    found: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return found


def leaving() -> bool:
    """Whether a graph is being made that will run without Python."""
    if torch.compiler.is_dynamo_compiling():  # where is_exporting is always true
        return False
    return tracing() or _is_exporting()


def refuse_transforms(name: str) -> None:
    """Raise where a transform of ``torch.func``, such as ``vmap``, runs what has no rule for it."""
    if torch.compiler.is_dynamo_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{name} does not run under torch.vmap and the other transforms of torch.func: give it "
            f"the whole batch instead"
        )


def gradient_wanted(*tensors: torch.Tensor | None) -> bool:
    """Whether one of the tensors is to get a gradient by what is computed now.

    A graph that leaves Python has no gradient of ours. Tracing a network that could be trained is
    told by a warning, since PyTorch would differentiate the trace, and find 0.
    """
    if not torch.is_grad_enabled():
        return False
    if not any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    if tracing():
        warnings.warn(
            "the spikes of a traced network have no gradient: trace it for inference, under "
            "torch.no_grad()",
            torch.jit.TracerWarning,  # type: ignore[attr-defined]
            stacklevel=3,
        )
    return not leaving()


def fire(surrogate_function: Callable[[torch.Tensor], torch.Tensor], above: Any) -> torch.Tensor:
    """The surrogate's spikes at ``above``, a plain comparison where no gradient is asked for.

    Args:
        surrogate_function: a surrogate of the host, of this package or of a user.
        above: the potential less the threshold.
    """
    kind = type(surrogate_function)
    step = kind.__name__ in _STEPS and kind.__module__ in _SURROGATES
    if step and surrogate_function.spiking is True:  # type: ignore[attr-defined]
        own = surrogate_function.parameters() if isinstance(surrogate_function, nn.Module) else ()
        if not gradient_wanted(above, *own):
            return (above >= 0).to(above)
    return surrogate_function(above)
