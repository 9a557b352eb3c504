r"""The branchless supernet: residual blocks of super-kernels, trained with what they cost.

A block of a head and a tail convolution, with whole numbers of spikes between blocks:

.. math::
    h = s(B(W_h * x)), \quad q = s(B(W_t * h)), \qquad y = q + x,

where a head that is cut hands on x, a tail that is cut hands on h, and a block with both cut gives
x alone. The neuron, with one learned threshold :math:`\theta` for the whole network, is

.. math::
    u[t] = 0.2\, u[t-1] (1 - s[t-1]) + z[t], \qquad s[t] = [u[t] > \theta].

Source: Yan et al., "Efficient spiking neural network design via neural architecture search", Neural
Networks 173, 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ... import checks, host
from ...arguments import checked
from ..space import Architecture, Space
from ..space import branchless as branchless_space
from ..superkernel import SuperKernel, same_padding

__all__ = ["Branchless", "FixedKernel", "SharedThresholdNode"]

LEAK = 0.2


class SharedThresholdNode(host.FunctionalNode):
    r"""The supernet's neuron: fires strictly above a learned threshold that all of them share.

    The reset passes gradients on; the surrogate's gradient is 1 where
    :math:`|u - \theta| < 1/2`.

    Args:
        threshold: :math:`\theta`, ``[1]``, of the network.

    Shapes:
        ``[N, *]`` in step mode ``'s'``, ``[T, N, *]`` in ``'m'``; the same out.

    Raises:
        TypeError: ``threshold`` is no parameter.
    """

    def __init__(self, threshold: nn.Parameter):
        super().__init__()
        if not isinstance(threshold, nn.Parameter):
            raise TypeError(f"threshold must be a parameter of the network, got {threshold!r}")
        self.threshold = threshold

    def step(
        self, x: torch.Tensor, states: tuple[Any, ...]
    ) -> tuple[torch.Tensor, tuple[Any, ...]]:
        """The spikes of one step, and what is left of the potential."""
        potential = LEAK * states[0] + x
        spike = _Above.apply(potential - self.threshold)
        return spike, (potential * (1 - spike),)


@checked
class FixedKernel(nn.Module):
    """A convolution of one size, padded as a :class:`~sj_ext.search.SuperKernel` is.

    Args:
        in_channels, out_channels, kernel_size, stride: as PyTorch's ``nn.Conv2d``.

    Shapes:
        ``[N, C, H, W]`` to ``[N, C_out, ceil(H / stride), ceil(W / stride)]``.

    Raises:
        ValueError: a size is out of range.
    """

    skippable = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        checks.sizes(in_channels=in_channels, out_channels=out_channels)
        self.stride = checks.integer("stride", stride, at_least=1)
        size = checks.integer("kernel_size", kernel_size, at_least=1)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, size, size))
        nn.init.kaiming_normal_(self.weight)

    def kernel(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel and its size, ``[1]``."""
        return self.weight, self.weight.new_full((1,), self.weight.shape[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolved(x, self.weight)

    def convolved(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """``x`` convolved with a kernel, ``[N, C, H, W]``."""
        return F.conv2d(same_padding(x, kernel.shape[-1], self.stride), kernel, stride=self.stride)


#: a convolution with a kernel and its size
Kernel = SuperKernel | FixedKernel


class Block(nn.Module):
    """Head and tail, with a shortcut where the shape stays; either may be missing.

    A convolution that a super-kernel has cut counts as missing: nothing of its norm reaches the
    output.
    """

    head: Kernel | None
    tail: Kernel | None

    def __init__(
        self,
        head: Kernel | None,
        tail: Kernel | None,
        channels: int,
        threshold: nn.Parameter,
        skip: bool,
    ):
        super().__init__()
        self.head, self.tail, self.skip = head, tail, skip
        for name, conv in (("head", head), ("tail", tail)):
            if conv is not None:
                self.add_module(f"{name}_bn", _norm(channels))
                self.add_module(f"{name}_neuron", SharedThresholdNode(threshold))

    def counted(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output and its synaptic operations, summed over the batch."""
        after_head, operations = self._stage("head", x)
        # where the shape changes there is no other way than through the head
        h = x if after_head is None and self.skip else after_head
        after_tail, more = self._stage("tail", x if h is None else h)
        y = after_head if after_tail is None else after_tail
        if y is None:
            y = torch.zeros_like(x)
        return (y + x if self.skip else y), operations + more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.counted(x)[0]

    def _stage(self, name: str, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What a convolution's neuron fires, None if it is missing, and its operations."""
        conv = getattr(self, name)
        if conv is None:
            return None, x.new_zeros(())
        kernel, size = conv.kernel()
        y = getattr(self, f"{name}_neuron")(getattr(self, f"{name}_bn")(conv.convolved(x, kernel)))
        operations = x.sum() * kernel.shape[0] * (size / conv.stride).square().sum()
        return (y if bool(kernel.detach().any()) else None), operations


@checked
class Branchless(nn.Module):
    """The supernet, or with ``architecture`` one of its networks.

    Args:
        num_classes: at least 2.
        T: number of steps.
        stem: channels of the stem.
        first: channels of the first block, of plain 3 x 3 convolutions.
        widths: channels of each stage, which begins with stride 2.
        blocks: per stage.
        head: channels of the last convolution.
        in_channels: 3 for images.
        dropout: of the indicators while training, see :class:`~sj_ext.search.SuperKernel`.
        architecture: of :meth:`space`; a convolution it skips is not there, and the block's
            shortcut stays.

    Shapes:
        ``[N, C, H, W]`` to logits ``[T, N, classes]``.

    Raises:
        ValueError: a size is out of range, or the architecture is of another space.
    """

    def __init__(
        self,
        num_classes: int = 10,
        T: int = 3,
        *,
        stem: int = 64,
        first: int = 128,
        widths: Sequence[int] = (128, 256, 512),
        blocks: int = 3,
        head: int = 1024,
        in_channels: int = 3,
        dropout: float = 0.0,
        architecture: Architecture | None = None,
    ):
        super().__init__()
        checks.sizes(num_classes=num_classes, stem=stem, first=first, head=head)
        checks.sizes(in_channels=in_channels)
        self.T = checks.integer("T", T, at_least=1)
        widths = checks.shape("widths", widths)
        self._stages = (len(widths), checks.integer("blocks", blocks, at_least=1))
        genes = None if architecture is None else iter(self.space().valid(architecture).genes)
        self.threshold = nn.Parameter(torch.tensor([0.5]))
        self.stem = FixedKernel(in_channels, stem, 3)
        self.stem_bn = _norm(stem)
        self.stem_neuron = SharedThresholdNode(self.threshold)
        made = [
            Block(
                FixedKernel(stem, first, 3),
                FixedKernel(first, first, 3),
                first,
                self.threshold,
                False,
            )
        ]
        below = first
        for width in widths:
            for i in range(blocks):
                stride = 2 if i == 0 else 1
                head_conv = _convolution(below, width, stride, dropout, genes)
                tail_conv = _convolution(width, width, 1, dropout, genes)
                made.append(Block(head_conv, tail_conv, width, self.threshold, stride == 1))
                below = width
        self.blocks = nn.ModuleList(made)
        self.last = FixedKernel(below, head, 1)
        self.last_bn = _norm(head)
        self.last_neuron = SharedThresholdNode(self.threshold)
        self.pooled_neuron = SharedThresholdNode(self.threshold)
        self.classifier = nn.Linear(head, num_classes)
        self.output_neuron = SharedThresholdNode(self.threshold)

    def space(self) -> Space:
        """The architectures of this supernet."""
        return branchless_space(*self._stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.counted(x)[0]

    def counted(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[T, N, classes]`` and synaptic operations of the batch, both with gradients.

        Every convolution but the stem's counts its input's spikes, times its outputs of each; its
        borders are not corrected.
        """
        checks.tensor("x", x, dims=4)
        logits, operations = zip(*(self._step(x) for _ in range(self.T)), strict=True)
        return torch.stack(logits), torch.stack(operations).sum()

    def decode(self) -> Architecture:
        """The architecture that the thresholds have left."""
        genes = [
            kernel.decode()
            for block in self.blocks
            for kernel in (block.head, block.tail)
            if isinstance(kernel, SuperKernel)
        ]
        return self.space().architecture(*genes)

    def _step(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem_neuron(self.stem_bn(self.stem(x)))
        total = x.new_zeros(())
        for block in self.blocks:
            x, operations = block.counted(x)  # type: ignore[operator]
            total = total + operations
        total = total + x.sum() * self.last.weight.shape[0]
        x = self.last_neuron(self.last_bn(self.last(x)))
        total = total + x.sum()
        x = self.pooled_neuron(x.mean((2, 3)))
        total = total + x.sum() * self.classifier.out_features
        potential = LEAK * self.output_neuron.v + self.classifier(x)
        self.output_neuron(self.classifier(x))
        return potential, total


class _Above(torch.autograd.Function):
    """[x > 0], with a gradient of 1 where |x| < 1/2."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() < 0.5, grad, 0)


def _convolution(below: int, above: int, stride: int, dropout: float, genes: Any) -> Kernel | None:
    if genes is None:
        return SuperKernel(below, above, stride, dropout=dropout)
    gene = next(genes)
    return None if gene == "skip" else FixedKernel(below, above, int(gene[-1]), stride)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
