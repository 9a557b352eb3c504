"""The recipe that the parts compose, and the conversion: one call on both hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from .. import checks, host
from ..arguments import checked, renamed
from .corrections import Calibration
from .data import Batches
from .graph import activation_nodes, evaluating, free_name, prepare, put_submodule
from .neuron import ConversionIFNode, checked_negative
from .operations import fix_for, pooling_of, unsupported_nodes
from .site import CountMaxPool, SpikingSite, StepGraph
from .threshold import Percentile, Threshold, all_alive, bound_of
from .two_spike import TwoSpikeNode

__all__ = ["ComposedRecipe", "convert"]

#: where a graph module keeps the trained network during its conversion
_TRAINED = "sj_ext.ann2snn"


@checked
class ComposedRecipe(host.ConversionRecipe):
    r"""How a trained network becomes a spiking one, composed of parts.

    Each activation becomes a neuron whose mean output approaches the activation's value:

    .. math::
        V[0] = u \theta, \quad H[t] = V[t-1] + g z[t] + \delta, \quad
        S[t] = \Theta(H[t] - \theta), \quad V[t] = H[t] - \theta S[t], \quad x[t] = \theta S[t]

    On SpikingJelly 2.x it is one of the host's own recipes, so that the host's
    ``Converter(recipe).convert(net)`` runs it too; :func:`convert` is the same call on both hosts.
    A recipe keeps nothing of a conversion and can be used again.

    Args:
        calibration: data to measure on, as :class:`~sj_ext.ann2snn.data.Batches` takes them: a
            tensor ``[N, *]``, or an iterable of tensors, of tuples ``(input, label)`` or of dicts.
            ``None`` where no part needs them.
        threshold: a rule of :mod:`sj_ext.ann2snn.threshold` for :math:`\theta`.
        v_init: initial potential :math:`u` as a share of the threshold, or ``'learn'``.
        shift_T: number of steps that a constant current :math:`\delta = \theta / (2 T)` is made
            for; ``None`` for no current.
        negative: ``None``; ``'leaky'`` (at LeakyReLU, with its slope) or ``('leaky', slope)``;
            ``'counted'`` or ``('counted', eps)`` (at all other activations); or ``'ignore'``, which
            drops what a LeakyReLU lets through.
        reset: ``'soft'`` or ``'hard'``.
        calibrations: parts of :mod:`sj_ext.ann2snn.calibrate`, which run one after the other.
        T: number of steps that the result is aimed at; calibrations run as many.
        unsupported: ``'raise'`` at what no rate passes through, or ``'keep'`` it as it is.
        maxpool: ``'count'`` (exact in the mean), ``'pre_spike'`` (pools the currents before the
            neuron) or ``'raise'``.
        surrogate_function: of the neurons, for training afterwards.
        coding: ``'rate'``; or, experimental, ``'two_spikes'``, whose neurons are
            :class:`TwoSpikeNode` with a window of ``T`` steps. They have no reset, negative spikes
            or constant current, and nothing is calibrated.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, data missing, a ``shift_T`` that is not ``T``, or
            parts that the coding does not have.

    Source: the parts are those of eleven papers; :mod:`sj_ext.ann2snn.presets` names them.
    """

    def __init__(
        self,
        calibration: Any = None,
        *,
        threshold: Threshold | None = None,
        v_init: float | str = 0.5,
        shift_T: int | None = None,
        negative: str | tuple[str, float] | None = None,
        reset: str = "soft",
        calibrations: Sequence[Calibration] = (),
        T: int = 32,
        unsupported: str = "raise",
        maxpool: str = "count",
        surrogate_function: Any = None,
        coding: str = "rate",
    ):
        self.threshold = Percentile(99.9) if threshold is None else threshold
        if not isinstance(self.threshold, Threshold):
            raise TypeError(f"threshold must be a rule of ann2snn.threshold, got {threshold!r}")
        self.calibrations = tuple(calibrations)
        for part in self.calibrations:
            if not isinstance(part, Calibration):
                raise TypeError(f"calibrations must be parts of ann2snn.calibrate, got {part!r}")
        self.T = checks.integer("T", T, at_least=1)
        if shift_T is not None:
            checks.integer("shift_T", shift_T, at_least=1)
            if shift_T != T:
                raise ValueError(
                    f"shift_T={shift_T} makes a current that is right for {shift_T} steps only, "
                    f"and T={T}: give both the same number"
                )
        self.unsupported = checks.choice("unsupported", unsupported, ("raise", "keep"))
        self.maxpool = checks.choice("maxpool", maxpool, ("count", "pre_spike", "raise"))
        if isinstance(v_init, str) and v_init != "learn":
            raise ValueError(f"v_init must be a number or 'learn', got {v_init!r}")
        if negative not in ("leaky", "ignore"):
            negative = checked_negative(negative)
        if isinstance(calibration, Iterator):  # it could be gone through once only
            calibration = list(calibration)
        self.calibration, self.v_init, self.shift_T = calibration, v_init, shift_T
        self.negative, self.reset = negative, reset
        self.surrogate_function = surrogate_function
        self.coding = checks.choice("coding", coding, ("rate", "two_spikes"))
        if coding == "two_spikes":
            self._check_two_spikes()
        self._node(nn.ReLU())  # raises now if the options do not go together

    def _check_two_spikes(self) -> None:
        """Raise at parts that only a rate has."""
        settles = type(self.threshold).settle is not Threshold.settle
        for name, given, why in (
            ("negative", self.negative, self.negative is not None),
            ("reset", self.reset, self.reset != "soft"),
            ("shift_T", self.shift_T, self.shift_T is not None),
            ("v_init", self.v_init, isinstance(self.v_init, str)),
            ("maxpool", self.maxpool, self.maxpool == "pre_spike"),
            ("threshold", type(self.threshold).__name__, settles),
            ("calibrations", [type(c).__name__ for c in self.calibrations], self.calibrations),
        ):
            if why:
                raise ValueError(f"{name}={given!r} does not go together with coding='two_spikes'")

    # the host's template, in its order ------------------------------------------------------------

    def validate(self, converter: Any) -> None:
        """Raise if a part needs calibration data and there are none."""
        parts: list[Any] = [self.threshold, *self.calibrations]
        needs = [part for part in parts if part.needs_data]
        if needs and self.calibration is None:
            names = ", ".join(type(part).__name__ for part in needs)
            raise ValueError(f"calibration: {names} needs calibration data, got None")

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """The network traced and prepared by this package, in a shell that the host can trace."""
        return _Shell(prepare(ann))

    def after_trace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """The prepared network out of its shell; raises at what cannot be converted."""
        graph = fx_model.get_submodule("body")
        assert isinstance(graph, fx.GraphModule)
        return self._checked(graph)

    def insert_observers(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Nothing: :meth:`calibrate` looks through hooks that it takes away again."""
        return fx_model

    def calibrate(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """The thresholds, which the module's ``meta`` carries to :meth:`replace`."""
        thresholds = self.threshold.measure(fx_model, self._data(converter.device))
        fx_model.meta[_TRAINED] = all_alive(thresholds)
        return fx_model

    def replace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Neurons in the place of activations, and steps for the graph."""
        trained = prepare(fx_model)
        snn = self._replaced(fx_model, fx_model.meta.pop(_TRAINED))
        snn.meta[_TRAINED] = trained
        return snn

    def finalize(self, converter: Any, fx_model: fx.GraphModule) -> nn.Module:
        """The calibrations, each with the trained network beside it."""
        trained = fx_model.meta.pop(_TRAINED)
        data = self._data(converter.device)
        self.threshold.settle(fx_model, data)
        for part in self.calibrations:
            with torch.enable_grad():
                part.apply(fx_model, trained, data, self.T)
        host.functional.reset_net(fx_model)
        return fx_model.eval()

    # ----------------------------------------------------------------------------------------------

    def _data(self, device: Any) -> Batches | None:
        return None if self.calibration is None else Batches(self.calibration, device)

    def _checked(self, graph: fx.GraphModule) -> fx.GraphModule:
        if not activation_nodes(graph):
            raise ValueError(
                "model has no activation to convert: no ReLU, ReLU6, LeakyReLU, clamp from 0 or "
                "QuantizedClip was found, neither as a module nor as a call"
            )
        problems = [
            f"node {node.name!r} ({what}): {fix_for(what)}"
            for node, what in unsupported_nodes(graph)
        ]
        for name in activation_nodes(graph):
            if isinstance(graph.get_submodule(name), nn.LeakyReLU) and not self._signed():
                problems.append(
                    f"node {name!r} (LeakyReLU): negative='leaky' keeps its negative side, "
                    f"negative='ignore' drops it"
                )
        for node in graph.graph.nodes:
            if self.maxpool == "raise" and pooling_of(graph, node) is not None:
                problems.append(
                    f"node {node.name!r} (max pooling): maxpool='count' or 'pre_spike', or train "
                    f"with average pooling"
                )
            if self.coding == "two_spikes" and _pools_other_than_switches(graph, node):
                problems.append(
                    f"node {node.name!r} (max pooling): with coding='two_spikes' it must follow an "
                    f"activation"
                )
        if problems and self.unsupported == "raise":
            raise ValueError(
                "model cannot be converted as it is: "
                + "; ".join(problems)
                + ". unsupported='keep' "
                "leaves such nodes as they are"
            )
        return graph

    def _signed(self) -> bool:
        return self.negative == "ignore" or (
            self.negative is not None and self.negative[0] in ("l", "leaky")
        )

    def _node(self, activation: Any) -> ConversionIFNode | TwoSpikeNode:
        options: dict[str, Any] = {}
        if self.surrogate_function is not None:
            options["surrogate_function"] = self.surrogate_function
        if self.coding == "two_spikes":
            start: Any = self.v_init
            return TwoSpikeNode(self.T, v_init=start, **options)
        negative: Any = None
        leaky = isinstance(activation, nn.LeakyReLU)
        if leaky and self.negative == "leaky":
            negative = ("leaky", float(activation.negative_slope))
        elif isinstance(self.negative, tuple) and (self.negative[0] == "leaky") == leaky:
            negative = self.negative
        return ConversionIFNode(
            v_init=self.v_init,
            reset=self.reset,
            negative=negative,
            shift=0.0 if self.shift_T is None else 0.5 / self.shift_T,
            **options,
        )

    def _replaced(
        self, graph: fx.GraphModule, thresholds: Mapping[str, torch.Tensor]
    ) -> fx.GraphModule:
        if self.maxpool == "pre_spike":
            _pool_before_activations(graph)
        steps = StepGraph(graph)
        like = next((p for p in graph.parameters()), torch.zeros(()))
        for name, node in activation_nodes(graph).items():
            activation = graph.get_submodule(name)
            threshold = thresholds[name].to(like.device, like.dtype)
            site = SpikingSite(threshold, self._node(activation), bound_of(activation))
            put_submodule(graph, name, site.to(like.device, like.dtype))
            steps.put(node, [f"{name}.{part}" for part in ("scaler0", "if_node", "scaler1")])
        for node in list(graph.graph.nodes):
            pool = pooling_of(graph, node)
            if pool is not None and self.maxpool == "count" and self.coding == "rate":
                name = free_name(graph, f"{node.name}_count")
                put_submodule(graph, name, CountMaxPool(pool))
                steps.put(node, [name])
        graph.graph.lint()
        graph.delete_all_unused_submodules()
        graph.recompile()
        host.structure_changed(graph)
        return graph


@renamed(net="model")
@checked
def convert(
    model: nn.Module,
    recipe: ComposedRecipe,
    *,
    leaf_modules: Sequence[type] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    r"""A spiking network from a trained one, on either host.

    Its output at one step means little; the mean over the steps approaches the network's output,

    .. math::
        \frac{1}{T} \sum_t y[t] \to y_{\mathrm{ANN}},

    for scores as well as for the values of a regression or of boxes, since the last layer does not
    spike. The network itself is left as it is.

    Args:
        model: a trained network, or its ``torch.fx.GraphModule``.
        recipe: how; see :mod:`sj_ext.ann2snn.presets` for those with a name.
        leaf_modules: module classes that tracing does not go into.
        concrete_args: fixed arguments of ``forward``, as in ``torch.fx``.

    Returns:
        A graph module in step mode ``'s'``; ``functional.set_step_mode(snn, 'm')`` makes it take
        ``[T, N, *]``, and ``functional.reset_net(snn)`` starts the next input.

    Raises:
        TypeError: ``model`` is no module or ``recipe`` no :class:`ComposedRecipe`.
        ValueError: the network cannot be traced or converted (the nodes are named, with what to
            do), or the recipe lacks data.
    """
    if not isinstance(recipe, ComposedRecipe):
        raise TypeError(f"recipe must be a ComposedRecipe, got {recipe!r}")
    template = _Template(model)
    recipe.validate(template)
    with torch.no_grad():
        graph = recipe._checked(prepare(model, leaf_modules, concrete_args))
        fixed = dict(concrete_args or {})
        _check_folded(model, graph, recipe._data(template.device), fixed)
        graph = recipe.calibrate(template, recipe.insert_observers(template, graph))
        snn = recipe.finalize(template, recipe.replace(template, graph))
    assert isinstance(snn, fx.GraphModule)
    return snn


class _Template:
    """What the steps of a recipe ask the host's converter for."""

    def __init__(self, net: Any):
        parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
        first = next(parameters, None)
        self.device = torch.device("cpu") if first is None else first.device


class _Shell(nn.Module):
    """A network that the host's tracer sees as one call, since it is said to be torch's own."""

    def __init__(self, body: fx.GraphModule):
        super().__init__()
        object.__setattr__(body, "__module__", "torch.nn.traced")
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y


def _check_folded(
    model: nn.Module, graph: fx.GraphModule, data: Batches | None, fixed: dict[str, Any]
) -> None:
    """Raise if the prepared network is not the network, for example by a norm over another axis."""
    if data is None:
        return
    x = next(iter(data.inputs()))[:2]
    try:
        with evaluating(model):
            wanted, found = model(x, **fixed), graph(x)
    except RuntimeError as error:
        raise ValueError(
            f"calibration: an input of shape {tuple(x.shape)} and {x.dtype} does not run through "
            f"model ({error})"
        ) from error
    if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
        scale = wanted.abs().max().clamp(min=1e-12)
        if not bool(((wanted - found).abs().max() / scale) < 1e-2):
            raise ValueError(
                "model: after tracing and folding of batch norms it gives other outputs; a batch "
                "norm over another axis than the layer's before it, or control flow that tracing "
                "fixed, can be the reason"
            )


def _pools_other_than_switches(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node pools something else than an activation.

    Switches of one window go on together, so that the largest of them at each step is the switch of
    the largest value; of sums that is not so.
    """
    if pooling_of(graph, node) is None:
        return False
    return (node.args[0] if node.args else None) not in activation_nodes(graph).values()


def _pool_before_activations(graph: fx.GraphModule) -> None:
    """Exchange activation and max pooling where one follows the other, which commute."""
    for node in list(graph.graph.nodes):
        pool = pooling_of(graph, node)
        before: Any = node.args[0] if node.args else None
        if pool is None or before not in activation_nodes(graph).values():
            continue
        if len(before.users) > 1:
            raise ValueError(
                f"model: the activation {str(before.target)!r} goes to max pooling and elsewhere; "
                f"maxpool='pre_spike' needs it to go to the pooling only, maxpool='count' does not"
            )
        node.replace_all_uses_with(before)
        node.args = (before.args[0], *node.args[1:])
        before.args = (node,)
        node.append(before)
