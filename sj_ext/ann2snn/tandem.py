r"""Progressive tandem learning: a trained network becomes spiking layer by layer, while it learns.

The hybrid network carries, beside each value, the ``T`` steps of the spiking path. A layer that is
spiking already hands on its mean output, and the gradient of its activation:

.. math::
    \mathrm{out} = \bar x + (a - \mathrm{stop}(a)), \qquad
    \bar x = \frac{\theta}{T} \sum_t s[t], \quad a = \mathrm{act}(z)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .. import checks, host
from ..arguments import checked, renamed
from .data import Batches
from .graph import activation_nodes, prepare, put_submodule
from .neuron import ConversionIFNode
from .recipe import ComposedRecipe, convert
from .threshold import Fixed, alive

__all__ = ["progressive_tandem"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Tandem(nn.Module):
    """An activation in the hybrid network: ``[(T + 1) N, *]``, the last ``N`` with the gradient."""

    def __init__(self, activation: nn.Module, T: int, q: float):
        super().__init__()
        self.activation, self.T, self.q = activation, T, q
        self.threshold: torch.Tensor | None = None
        self.measuring = False
        self.node = ConversionIFNode(step_mode="m")

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        paths = z.unflatten(0, (self.T + 1, -1))
        a = self.activation(paths[-1])
        if self.measuring:
            self.threshold = torch.quantile(a.detach().flatten()[: 2**24], self.q / 100).view(1)
        if self.threshold is None:
            return self.activation(z)
        with torch.no_grad():
            host.functional.reset_net(self.node)
            sent = self.threshold * self.node(paths[:-1].detach() / self.threshold)
            mean = sent.mean(0)
        return torch.cat((sent, (a + (mean - a).detach()).unsqueeze(0))).flatten(0, 1)


@renamed(net="model")
@checked
def progressive_tandem(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    T: int = 16,
    *,
    patience: int = 6,
    max_epochs: int = 150,
    lr: float = 1e-3,
    weight_decay: float = 1e-5,
    q: float = 99.9,
    loss: Loss = F.cross_entropy,
) -> fx.GraphModule:
    """Convert layer by layer from the input, training what is still to be converted at each stage.

    At each stage one more layer spikes, with the ``q`` percentile of its activation in the present
    hybrid network as the threshold. All layers that are not frozen are trained until the validation
    accuracy has not risen for ``patience`` epochs; the best state is restored, the layer frozen.
    The last layer does not spike and is trained at the end at a tenth of the rate.

    Unlike the published program, layers hand on ``threshold * count / T`` rather than the count, so
    that networks with folded or without batch norms work, and the input is analogue at every step.

    Args:
        model: a trained network, which is left as it is.
        train_loader: batches of input and label, as a recipe takes its data.
        val_loader: batches of input and label.
        T: number of steps.
        patience: epochs without a better validation accuracy before a stage ends.
        max_epochs: most epochs of a stage.
        lr: of Adam.
        weight_decay: of Adam.
        q: percentile for thresholds, in (0, 100].
        loss: from the output and the label to a number.

    Returns:
        The spiking network, as :func:`sj_ext.ann2snn.convert` makes it.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, no labels, or a network that cannot be converted.

    Source: Wu et al., "Progressive Tandem Learning for Pattern Recognition with Deep Spiking Neural
    Networks", TPAMI 2021.
    """
    checks.integer("T", T, at_least=1)
    checks.integer("patience", patience, at_least=1)
    checks.integer("max_epochs", max_epochs, at_least=1)
    checks.number("lr", lr, above=0)
    checks.number("weight_decay", weight_decay, at_least=0)
    checks.number("q", q, above=0, at_most=100)
    hybrid = prepare(model)
    ComposedRecipe(threshold=Fixed({}), T=T)._checked(hybrid)
    device = next(hybrid.parameters()).device
    train, val = Batches(train_loader, device), Batches(val_loader, device)
    tandems = {}
    for name in activation_nodes(hybrid):
        tandems[name] = _Tandem(hybrid.get_submodule(name), T, q)
        put_submodule(hybrid, name, tandems[name])
    fit = _Fit(hybrid, train, val, T, patience, max_epochs, weight_decay, loss)
    for name, tandem in tandems.items():
        fit.measure(tandem, name)
        fit.stage(lr)
        fit.freeze(name)
    fit.stage(0.1 * lr)
    thresholds: dict[str, Any] = {name: tandem.threshold for name, tandem in tandems.items()}
    for name, tandem in tandems.items():
        put_submodule(hybrid, name, tandem.activation)
    for parameter in hybrid.parameters():
        parameter.requires_grad_(True)
    return convert(hybrid, ComposedRecipe(threshold=Fixed(thresholds), v_init=0.0, T=T))


class _Fit:
    """Training of the hybrid network in stages."""

    def __init__(
        self,
        hybrid: fx.GraphModule,
        train: Batches,
        val: Batches,
        T: int,
        patience: int,
        max_epochs: int,
        weight_decay: float,
        loss: Loss,
    ):
        self.hybrid, self.train, self.val, self.T = hybrid, train, val, T
        self.patience, self.max_epochs = patience, max_epochs
        self.weight_decay, self.loss = weight_decay, loss

    def measure(self, tandem: _Tandem, name: str) -> None:
        """Set the threshold of the next layer from the first batch."""
        x, _ = next(self.train.labelled("progressive_tandem"))
        tandem.measuring = True
        with torch.no_grad():
            self._output(x)
        tandem.measuring = False
        assert tandem.threshold is not None
        tandem.threshold = alive(name, tandem.threshold)

    def stage(self, lr: float) -> None:
        """Train what is not frozen, and keep the best."""
        trained = [p for p in self.hybrid.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr, weight_decay=self.weight_decay)
        best, state, waited = self.accuracy(), copy.deepcopy(self.hybrid.state_dict()), 0
        for _ in range(self.max_epochs):
            for x, y in self.train.labelled("progressive_tandem"):
                optimizer.zero_grad()
                self.loss(self._output(x), y).backward()
                optimizer.step()
            accuracy, waited = self.accuracy(), waited + 1
            if accuracy > best:
                best, state, waited = accuracy, copy.deepcopy(self.hybrid.state_dict()), 0
            if waited >= self.patience:
                break
        self.hybrid.load_state_dict(state)

    def accuracy(self) -> float:
        """Share of the validation data that the hybrid network gets right."""
        right = count = 0
        with torch.no_grad():
            for x, y in self.val.labelled("progressive_tandem"):
                right += int((self._output(x).argmax(1) == y).sum())
                count += len(y)
        return right / count

    def freeze(self, name: str) -> None:
        """Freeze all that leads to an activation."""
        for module in self._ancestors(name):
            for parameter in module.parameters():
                parameter.requires_grad_(False)

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        y = self.hybrid(x.repeat(self.T + 1, *[1] * (x.dim() - 1)))
        last: torch.Tensor = y.unflatten(0, (self.T + 1, -1))[-1]
        return last

    def _ancestors(self, name: str) -> Iterator[nn.Module]:
        node = next(n for n in self.hybrid.graph.nodes if n.target == name)
        todo, seen = [node], set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += node.all_input_nodes
                if node.op == "call_module":
                    yield self.hybrid.get_submodule(node.target)
