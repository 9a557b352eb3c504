"""What is cut first: the order of weights, apart from how many are cut and when."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import checks
from .resources import LayerInfo

__all__ = ["Importance", "Magnitude", "Taylor"]


class Importance:
    """Scores of weights; those with the least are cut first.

    A criterion of one's own is a subclass that defines :meth:`scores`, and :meth:`update` where it
    has to look at every step. Zero is the score of a weight that has been cut.
    """

    def update(self, layers: Sequence[LayerInfo]) -> None:
        """Called after each step of the optimizer that counts, before weights are cut.

        Args:
            layers: the pruned layers; their gradients are those that the optimizer used.
        """

    def scores(self, layer: LayerInfo) -> torch.Tensor:
        """A score for each weight, not negative, in the shape of ``layer.parameter``.

        Args:
            layer: one of the pruned layers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define scores(layer)")


class Magnitude(Importance):
    """The absolute value of the weight, :math:`|w|`."""

    def scores(self, layer: LayerInfo) -> torch.Tensor:
        """:math:`|w|`.

        Args:
            layer: one of the pruned layers.
        """
        return layer.parameter.detach().abs()


class Taylor(Importance):
    r"""How much the loss changes to first order if a weight goes, :math:`|w| \cdot \overline{|g|}`.

    :math:`\overline{|g|}` is a running average of the gradient's absolute value. Call
    ``pruner.step()`` before the gradients are set to None.

    Source: "Importance Estimation for Neural Network Pruning", CVPR 2019 (arXiv 1906.10771).

    Args:
        momentum: of the average over steps, in [0, 1).

    Raises:
        TypeError: ``momentum`` is no number.
        ValueError: it is outside [0, 1).
    """

    def __init__(self, momentum: float = 0.9):
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self._gradients: dict[str, torch.Tensor] = {}

    def update(self, layers: Sequence[LayerInfo]) -> None:
        for layer in layers:
            grad = layer.parameter.grad
            if grad is None:
                continue  # the last average stands
            known = self._gradients.get(layer.name)
            now = grad.detach().abs()
            if known is None:
                self._gradients[layer.name] = now.clone()
            else:
                known.mul_(self.momentum).add_(now, alpha=1 - self.momentum)

    def scores(self, layer: LayerInfo) -> torch.Tensor:
        r""":math:`|w| \cdot \overline{|g|}`.

        Args:
            layer: one of the pruned layers.

        Raises:
            RuntimeError: no gradient of the layer was seen.
        """
        if layer.name not in self._gradients:
            raise RuntimeError(
                f"Taylor importance has seen no gradient of layer {layer.name!r}: call "
                "pruner.step() after optimizer.step() and before optimizer.zero_grad()"
            )
        return layer.parameter.detach().abs() * self._gradients[layer.name]
