"""Reversible blocks in depth: a sequence of them is trained with the memory of its output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch._compile import _disable_dynamo

from ... import checks, host
from ...arguments import checked
from ...inference import gradient_wanted
from .part import Readers, run_from_rest, split
from .undo import Parts, run_reversibly

__all__ = ["ReversibleSequence"]

MEMORY = ("reversible", "autograd")


@checked
class ReversibleSequence(nn.Module):
    r"""Blocks on two streams, trained with memory that does not grow with their number.

    The channels are split into halves :math:`x_1, x_2`, and every block is

    .. math::
        y_1 = x_1 + F(x_2), \quad y_2 = x_2 + G(y_1) \qquad\Leftrightarrow\qquad
        x_2 = y_2 - G(y_1), \quad x_1 = y_1 - F(x_2).

    With ``memory='reversible'`` all blocks are one node of the autograd graph. It keeps the output
    of the last one, and what those neurons fired that read a stream directly, as bits: 1/32 of a
    float32 stream for each F and G. The backward pass runs every F and G again, on its rebuilt
    input and its recorded spikes, so that the rounding of the inversion cannot flip a spike.
    Running statistics are updated once, random numbers are drawn again as they were, the gradients
    of a module that stands in several places are added up. ``memory='autograd'`` runs the same
    arithmetic on plain autograd.

    F and G see whole sequences. Each call starts them from rest and leaves them at rest: no
    potential is carried from one call to the next. Forward hooks inside them are called again in
    the backward pass.

    Args:
        blocks: pairs (F, G) of modules that keep the shape of a stream; pre-activation, that is
            beginning with a neuron, as the streams are real-valued.
        dim: the axis of the channels.
        memory: ``'reversible'`` or ``'autograd'``.

    Shapes:
        ``[T, N, C, *]`` with an even C; the same out. A stream is ``[T, N, C / 2, *]``. Streams of
        half precision are added up in float32.

    Raises:
        TypeError: a block is no pair of modules.
        ValueError: there are no blocks; the input has no axis ``dim`` or an odd number of channels;
            an F or G changes the shape of its stream; a neuron is in step mode ``'s'``.
        RuntimeError: an F or G depends on a tensor that is no parameter of it; the backward pass
            runs a second time, or is itself differentiated.

    Source: Zhang and Zhang, "Memory-efficient reversible spiking neural networks", AAAI 2024 (arXiv
    2312.07922), after Gomez et al., "The reversible residual network", NeurIPS 2017. The record of
    spikes is this package's.
    """

    def __init__(
        self,
        blocks: Iterable[Sequence[nn.Module]],
        *,
        dim: int = 2,
        memory: str = "reversible",
    ):
        super().__init__()
        pairs = [_pair(i, block) for i, block in enumerate(blocks)]
        if not pairs:
            raise ValueError("blocks must hold at least one pair (F, G), got none")
        self.blocks = nn.ModuleList(nn.ModuleDict({"f": f, "g": g}) for f, g in pairs)
        self.dim = checks.integer("dim", dim)
        self.memory = checks.choice("memory", memory, MEMORY)
        self._readers = Readers()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, memory={self.memory!r}"

    @_disable_dynamo
    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """The output of the last block."""
        self._check(x_seq)
        parts: Parts = [(block["f"], block["g"]) for block in self.blocks]  # type: ignore[index]
        if self.memory == "reversible" and gradient_wanted(x_seq, *self.parameters()):
            return run_reversibly(parts, self._readers, x_seq, self.dim)
        streams = split(x_seq, self.dim)
        for pair in parts:
            for side, part in enumerate(pair):
                x = streams[1 - side].to(x_seq.dtype)
                streams[side] = streams[side] + run_from_rest(part, x)
        return torch.cat(streams, self.dim).to(x_seq.dtype)

    def _check(self, x_seq: torch.Tensor) -> None:
        checks.tensor("x_seq", x_seq)
        if not -x_seq.dim() <= self.dim < x_seq.dim() or x_seq.shape[self.dim] % 2:
            raise ValueError(
                f"x_seq must have an even number of channels on axis dim={self.dim}, got the shape "
                f"{list(x_seq.shape)}"
            )
        for name, module in self.named_modules():
            if isinstance(module, host.base.MemoryModule) and module.step_mode == "s":
                raise ValueError(
                    f"step_mode of {name} must be 'm', since every call starts from rest: use "
                    f"functional.set_step_mode(net, 'm')"
                )


def _pair(i: int, block: Sequence[nn.Module]) -> Sequence[nn.Module]:
    if (
        not isinstance(block, Sequence | nn.ModuleList)
        or len(block) != 2
        or not all(isinstance(part, nn.Module) for part in block)
    ):
        raise TypeError(f"blocks[{i}] must be a pair (F, G) of modules, got {block!r}")
    return block
