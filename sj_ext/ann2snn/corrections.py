r"""Corrections of a converted network against the trained one, layer by layer.

They all go through the layers in order, run the partly corrected network for ``T`` steps on the
calibration data, compare a layer's mean output :math:`\bar x_l` with the activation :math:`a_l`,
and correct before they go on to the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from .. import checks
from .data import Batches
from .observe import mean_at, sites, watch_activations
from .site import SpikingSite
from .threshold import PER, Groups, channel_axis

__all__ = ["Bias", "Calibration", "Potential", "RateGain"]


class Calibration:
    """A correction of a converted network; a subclass defines :meth:`apply`.

    Args:
        per: ``'layer'``, ``'channel'`` or ``'neuron'``: what shares one correction.

    Raises:
        ValueError: another ``per``.
    """

    #: whether it reads calibration data
    needs_data = True

    def __init__(self, per: str = "channel"):
        self.per = checks.choice("per", per, PER)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Correct ``snn`` in place.

        Args:
            snn: the converted network.
            ann: the trained network, prepared, with activations under the same names.
            data: the calibration data.
            T: number of steps to run.

        Raises:
            NotImplementedError: the class does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply()")

    def _needed(self, data: Batches | None) -> Batches:
        if data is None:
            raise ValueError(f"calibration: {type(self).__name__} needs calibration data, got None")
        return data

    def _layers(
        self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int
    ) -> Iterator[tuple[SpikingSite, torch.Tensor, torch.Tensor]]:
        """Each layer with the mean activation and the mean output, in the shape of ``per``.

        The mean output is that of the network as it is when the layer's turn comes.
        """
        data = self._needed(data)
        layers = sites(snn)
        wanted = {name: _Mean(Groups(self.per, channel_axis(ann, name))) for name in layers}
        watch_activations(ann, data.inputs(), {name: m.add for name, m in wanted.items()})
        with torch.no_grad():
            for name, site in layers.items():
                found = _Mean(wanted[name].groups)
                for x in data.inputs():
                    found.add(mean_at(snn, x, T, site.scaler1))
                yield site, wanted[name].result(), found.result()


class Bias(Calibration):
    r"""Add to each channel's current what its mean output lacks: :math:`\bar a_l - \bar x_l`.

    It is kept in the neuron's constant current, so that a layer that stands in two places, or a
    sum of two, is corrected where it is used; :func:`sj_ext.ann2snn.fold_scales` moves it into the
    bias.

    Args:
        per: ``'layer'``, ``'channel'`` or ``'neuron'``.

    Raises:
        ValueError: another ``per``.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021 (light pipeline).
    """

    def __init__(self, per: str = "channel"):
        super().__init__(per)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Correct the constant currents; see :meth:`Calibration.apply`."""
        for site, wanted, found in self._layers(snn, ann, data, T):
            node = site.if_node
            node.shift = node.shift + (wanted - found) * site.gain / site.threshold


class Potential(Calibration):
    r"""Add to each initial potential what the outputs lack: :math:`T (\bar a_l - \bar x_l)`.

    Args:
        per: ``'neuron'`` as published, which fixes the resolution; ``'channel'`` or ``'layer'``.

    Raises:
        ValueError: another ``per``.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021 (advanced pipeline).
    """

    def __init__(self, per: str = "neuron"):
        super().__init__(per)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Correct the initial potentials; see :meth:`Calibration.apply`."""
        for site, wanted, found in self._layers(snn, ann, data, T):
            node = site.if_node
            corrected = node.v_init + T * (wanted - found) / site.threshold
            if isinstance(node.v_init, nn.Parameter):
                node.v_init = nn.Parameter(corrected)
            else:
                node.v_init = corrected


class RateGain(Calibration):
    r"""Raise each layer's current by what its rate lacks, never lower it.

    .. math::
        g_l = \max\left(1, \frac{\mathrm{mean}(\min(a_l, \theta_l))}{\mathrm{mean}(\bar x_l)}\right)

    The published text names a factor estimated from statistics, its program has none: this
    definition is the package's reading of it.

    Args:
        T: number of steps to estimate at; the recipe's if ``None``.
        per: ``'layer'`` or ``'channel'``.

    Raises:
        ValueError: another ``per``, or ``T`` below 1.

    Source: Hu et al., "Spiking Deep Residual Networks", TNNLS 2021.
    """

    def __init__(self, T: int | None = None, per: str = "layer"):
        super().__init__(per)
        self.T = None if T is None else checks.integer("T", T, at_least=1)

    def apply(self, snn: nn.Module, ann: fx.GraphModule, data: Batches | None, T: int) -> None:
        """Correct the gains; see :meth:`Calibration.apply`."""
        data = self._needed(data)
        T = self.T or T
        with torch.no_grad():
            for name, site in sites(snn).items():
                groups = Groups(self.per, channel_axis(ann, name))
                wanted, found = _Mean(groups), _Mean(groups)

                def clip(a: torch.Tensor, site: SpikingSite = site, to: _Mean = wanted) -> None:
                    to.add(torch.minimum(a, site.threshold))

                watch_activations(ann, data.inputs(), {name: clip})
                for x in data.inputs():
                    found.add(mean_at(snn, x, T, site.scaler1))
                rate = found.result()
                gain = torch.where(rate > 0, wanted.result() / rate, torch.ones_like(rate))
                site.set_gain(gain.clamp(min=1))


class _Mean:
    """Mean of each group over batches of any size."""

    def __init__(self, groups: Groups):
        self.groups, self.total, self.count = groups, torch.zeros(()), 0
        self.like: torch.Tensor | None = None

    def add(self, values: torch.Tensor) -> None:
        rows = self.groups.rows(values)
        self.total = self.total.to(rows) + rows.sum(1)
        self.count += rows.shape[1]
        self.like = values[:1]

    def result(self) -> torch.Tensor:
        assert self.like is not None
        return self.groups.shaped(self.total / self.count, self.like)
