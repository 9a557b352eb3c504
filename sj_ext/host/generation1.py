"""SpikingJelly 0.0.0.0.14: neurons that change themselves, and kernels for CuPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate

from ..inference import fire
from .backend import BackendContract
from .node import PureNode, States

__all__ = ["FunctionalNode", "HostBackend", "SurrogateFunction"]


class HostBackend(BackendContract):
    """What a subclass of a host neuron inherits for its ``backend``."""

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """The host's own, on kernels that run with today's NumPy."""
        if self._backend == "cupy":
            _give_working_kernels(self, x_seq.dtype)
        return super().multi_step_forward(x_seq)

    def neuronal_fire(self) -> torch.Tensor:
        """The host's own, in inference without its autograd function, which no trace can save."""
        own = super().neuronal_fire
        if own.__func__ is not neuron.BaseNode.neuronal_fire:  # of another neuron, not only H
            return own()
        return fire(self.surrogate_function, self.v - self.v_threshold)


class FunctionalNode(PureNode, neuron.BaseNode):
    """A stateful neuron of this package; a ``BaseNode`` of the host on both generations.

    A subclass registers its memories (``v`` is there already) and defines :meth:`step` and, if
    it can do better than a loop, :meth:`sequence`.
    """

    def materialize_states(
        self, inputs: tuple[torch.Tensor, ...], states: States, step_mode: str
    ) -> States:
        """Tensors of the input's shape in place of the scalars that memories start as."""
        if step_mode == "m" and not len(inputs[0]):
            return states
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        return tuple(
            torch.full_like(x, state) if isinstance(state, float) else state for state in states
        )

    def functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], States]:
        """Forward over explicit states in the present step mode, as 2.x has it."""
        states = self.materialize_states(inputs, states, self.step_mode)
        if self.step_mode == "s":
            return self.single_step_functional_forward(inputs, states, **kwargs)
        return self.multi_step_functional_forward(inputs, states, **kwargs)


class SurrogateFunction(surrogate.SurrogateFunctionBase):
    """A surrogate of this package, with one constant ``alpha``."""


#: neurons that run on generated kernels, and what those depend on besides reset and dtype
_GENERATED = {
    neuron.IFNode: (),
    neuron.LIFNode: ("decay_input",),
    neuron.ParametricLIFNode: ("decay_input",),
}


def _give_working_kernels(node: neuron.BaseNode, dtype: torch.dtype) -> None:
    """Put the kernels into ``node`` that the host would make, with their type check mended.

    The check of 0.0.0.0.14 asks for ``numpy.int``, which NumPy 1.24 removed, so that every
    launch would fail. The host keeps a kernel that it finds in the node; nothing of the host
    itself is changed.
    """
    from spikingjelly.activation_based.auto_cuda import neuron_kernel

    host_class = next((cls for cls in _GENERATED if isinstance(node, cls)), None)
    if host_class is None:
        return
    forward = {name: getattr(node, name) for name in _GENERATED[host_class]}
    forward |= {
        "hard_reset": node.v_reset is not None,
        "dtype": {torch.float32: "float", torch.float16: "half2"}[dtype],
    }
    backward = forward | {
        "surrogate_function": node.surrogate_function.cuda_codes,
        "detach_reset": node.detach_reset,
    }
    for name, suffix, arguments in (
        ("forward_kernel", "FPTTKernel", forward),
        ("backward_kernel", "BPTTKernel", backward),
    ):
        kernel = getattr(node, name)
        if kernel is None or not kernel.check_attributes(**arguments):
            kernel = getattr(neuron_kernel, host_class.__name__ + suffix)(**arguments)
            kernel.check_ctypes = partial(_check_ctypes, kernel)
            setattr(node, name, kernel)


def _check_ctypes(kernel: Any, py_dict: dict[str, Any]) -> None:
    """Whether every array has the type that the kernel declares for it."""
    names = {"float32": "float", "float16": "half2", "int32": "int", "int64": "int"}
    for key, value in py_dict.items():
        declared = kernel.cparams[key].removeprefix("const ")
        given = names.get(str(value.dtype).removeprefix("torch."))
        if given is None or not declared.startswith(given):
            raise TypeError(
                f"{key} of {kernel.kernel_name} is declared {declared}, got {value.dtype}"
            )
