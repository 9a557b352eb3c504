"""The host: the one module that knows which generation of SpikingJelly is installed.

Two generations are supported, and everything else in the package is written once against the names
below.

=============== ============ ======================================================================
``GENERATION``  SpikingJelly what differs
=============== ============ ======================================================================
1               0.0.0.0.14   stateful ``neuronal_*`` methods, ``backend`` argument, CuPy kernels
2               2.x          pure functional forward over explicit states, kernels chosen by itself
=============== ============ ======================================================================
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, layer, model, neuron, surrogate

__all__ = [
    "GENERATION",
    "ONLINE_NEURONS",
    "RESTARTS_ON_NEW_SHAPE",
    "VERSION",
    "BackendContract",
    "FunctionalNode",
    "HostBackend",
    "SurrogateFunction",
    "base",
    "functional",
    "layer",
    "model",
    "neuron",
    "surrogate",
]

SUPPORTED = "spikingjelly>=0.0.0.0.14,<3"


def _version() -> str:
    try:
        return importlib.metadata.version("spikingjelly")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


def _generation(version: str, memory_module: type) -> int:
    """1 or 2, from what the host can do; its version string only rules releases out."""
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    too_old = numbers and numbers < (0, 0, 0, 0, 14)
    too_new = numbers >= (3,)
    functional_forward = hasattr(memory_module, "materialize_states")
    backend = hasattr(memory_module, "supported_backends")
    if too_old or too_new or functional_forward == backend:
        raise RuntimeError(
            f"sj_ext supports {SUPPORTED}; the installed SpikingJelly is {version}. "
            "Install a supported release, for example spikingjelly==2.0.0."
        )
    return 2 if functional_forward else 1


VERSION = _version()
GENERATION = _generation(VERSION, base.MemoryModule)

#: whether a potential of another shape than the input's starts afresh; if not, the node raises
RESTARTS_ON_NEW_SHAPE = GENERATION == 2

#: neurons that detach the potential they carry at every step, so that nothing before it learns
ONLINE_NEURONS = tuple(
    getattr(neuron, name) for name in ("OTTTLIFNode", "SLTTLIFNode") if hasattr(neuron, name)
)


#: stands for the neuron of the host that the mixins below are mixed into
_Mixin: Any = object

#: memories of a neuron, in the order in which they are registered
States = tuple[Any, ...]


class _NoBackend(_Mixin):
    """A neuron of a host that chooses its kernels by itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        if "backend" in kwargs:
            raise TypeError(
                f"{type(self).__name__} takes no backend: SpikingJelly {VERSION} chooses its "
                f"kernels by itself; leave the argument out"
            )
        super().__init__(*args, **kwargs)

    def check_backend(self, x: torch.Tensor) -> None:
        """Every input runs."""


class BackendContract(_NoBackend):
    """``backend`` as a contract: a node runs where it was told to, or raises with the reason."""

    #: dtypes that the CuPy kernels of this node take
    cupy_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16)

    def __init__(self, *args: Any, **kwargs: Any):
        super(_NoBackend, self).__init__(*args, **kwargs)

    @property
    def backend(self) -> str:
        """The backend that runs this node: ``'torch'`` or, where supported, ``'cupy'``."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in self.supported_backends:
            raise ValueError(
                f"backend of {type(self).__name__} in step mode {self.step_mode!r} must be one of "
                f"{self.supported_backends}, got {value!r}"
            )
        if value == "cupy" and importlib.util.find_spec("cupy") is None:
            raise RuntimeError(
                "backend='cupy' needs CuPy, which is not installed: install cupy-cuda12x or "
                "cupy-cuda13x, or use backend='torch'"
            )
        self._backend = value

    def check_backend(self, x: torch.Tensor) -> None:
        """Raise if the chosen backend cannot run ``x``.

        Raises:
            RuntimeError: ``backend='cupy'`` and ``x`` is not on a CUDA device.
            TypeError: ``backend='cupy'`` and the kernels do not take the dtype of ``x``.
        """
        if self._backend != "cupy":
            return
        if not x.is_cuda:
            raise RuntimeError(
                f"backend='cupy' of {type(self).__name__} runs on a CUDA device only, got a tensor "
                f"on {x.device}: move the model and its input with .cuda(), or use backend='torch'"
            )
        if x.dtype not in self.cupy_dtypes:
            raise TypeError(
                f"backend='cupy' of {type(self).__name__} takes {list(self.cupy_dtypes)}, "
                f"got {x.dtype}"
            )


if GENERATION == 2:
    HostBackend = _NoBackend
else:

    class HostBackend(BackendContract):  # type: ignore[no-redef]
        """What a subclass of a host neuron inherits for its ``backend``."""

        def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
            """The host's own, on kernels that run with today's NumPy."""
            if self._backend == "cupy":
                _give_working_kernels(self, x_seq.dtype)
            return super().multi_step_forward(x_seq)

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


class _PureNode(BackendContract):
    """What a neuron of this package defines: pure functions over explicit states."""

    #: NIRTorch looks for this: what NIR has no node for is named, and not traced into
    _is_leaf_module = True

    #: names of the memories, in the order of the ``states`` tuples
    state_names: tuple[str, ...] = ("v",)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The backends that this node has in its present step mode."""
        return ("torch",)

    def step(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """One step: ``x`` ``[N, *]`` and the states before it to the spikes and states after."""
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def sequence(
        self, x_seq: torch.Tensor, states: tuple[torch.Tensor, ...], store_v_seq: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
        """All steps of ``x_seq`` ``[T, N, *]``: spikes, states after, potentials if asked for."""
        spikes, potentials = [], []
        for x in x_seq:
            spike, states = self.step(x, states)
            spikes.append(spike)
            if store_v_seq:
                potentials.append(states[0])
        if not spikes:  # no step: no spikes, and the states as they were
            return torch.empty_like(x_seq), states, x_seq.new_empty(0) if store_v_seq else None
        return torch.stack(spikes), states, torch.stack(potentials) if store_v_seq else None

    def _states(self, inputs: tuple[torch.Tensor, ...], step_mode: str) -> States:
        held = tuple(self._memories[name] for name in self.state_names)
        return self.materialize_states(inputs, held, step_mode)

    def _hold(self, states: States) -> None:
        for name, value in zip(self.state_names, states, strict=True):
            self._memories[name] = value

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_backend(x)
        spike, states = self.step(x, self._states((x,), "s"))
        self._hold(states)
        return spike

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        self.check_backend(x_seq)
        spike_seq, states, v_seq = self.sequence(
            x_seq, self._states((x_seq,), "m"), self.store_v_seq
        )
        self._hold(states)
        if self.store_v_seq:
            self.v_seq = v_seq
        return spike_seq

    def single_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], States]:
        spike, states = self.step(inputs[0], states)
        return (spike,), states

    def multi_step_functional_forward(
        self, inputs: tuple[torch.Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], States]:
        spike_seq, states, _ = self.sequence(inputs[0], states, False)
        return (spike_seq,), states


if GENERATION == 2:

    class FunctionalNode(_PureNode, neuron.BaseNode):
        """A stateful neuron of this package; a ``BaseNode`` of the host on both generations.

        A subclass registers its memories (``v`` is there already) and defines :meth:`step` and, if
        it can do better than a loop, :meth:`sequence`.
        """

        def __init__(
            self,
            v_threshold: float = 1.0,
            v_reset: float | None = 0.0,
            surrogate_function: Callable[..., Any] = surrogate.Sigmoid(),  # noqa: B008
            detach_reset: bool = False,
            step_mode: str = "s",
            backend: str = "torch",
            store_v_seq: bool = False,
        ):
            super().__init__(
                v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq
            )
            self.backend = backend

    class SurrogateFunction(surrogate.SurrogateFunctionBase):
        """A surrogate of this package, with one constant ``alpha``."""

        def __init__(self, alpha: float | torch.Tensor, spiking: bool = True):
            super().__init__(spiking=spiking, alpha=alpha)

else:

    class FunctionalNode(_PureNode, neuron.BaseNode):  # type: ignore[no-redef]
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

    class SurrogateFunction(surrogate.SurrogateFunctionBase):  # type: ignore[no-redef]
        """A surrogate of this package, with one constant ``alpha``."""
