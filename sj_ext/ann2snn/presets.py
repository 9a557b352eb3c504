"""The published methods as recipes of parts.

Each function returns a :class:`~sj_ext.ann2snn.ComposedRecipe`; keywords go on to it, over what the
method says. Published accuracies are the papers'; what this package measured is on the page of
results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import checks
from ..arguments import checked
from .calibrate import Bias, Potential, ProxyFineTuning, RateGain, Weights
from .recipe import ComposedRecipe
from .threshold import Bound, Maximum, MeanSquare, Percentile, RunTime

__all__ = [
    "calibration_advanced",
    "calibration_light",
    "cq",
    "fast_snn",
    "low_latency",
    "optimal_potential",
    "optimal_shift",
    "qcfs",
    "residual_compensation",
    "rmp",
    "spike_norm",
    "spiking_yolo",
    "tsc",
]

Encoder = Callable[[Any], Any] | None


def _recipe(calibration: Any, defaults: dict[str, Any], options: dict[str, Any]) -> ComposedRecipe:
    return ComposedRecipe(calibration, **{**defaults, **options})


@checked
def spike_norm(
    calibration: Any,
    T: int = 2500,
    *,
    reset: str = "hard",
    encoder: Encoder = None,
    **options: Any,
) -> ComposedRecipe:
    """Spike-Norm: thresholds are the largest currents met while the layers before spike.

    The paper feeds Poisson spikes and needs thousands of steps; here the input is analogue unless
    an ``encoder`` is given. That residual networks need a ReLU at every junction rests on memory of
    the paper.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: steps to measure for.
        reset: ``'hard'`` as in the paper, or ``'soft'``.
        encoder: from the input to that of one step.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Sengupta et al., Front. Neurosci. 13:95, 2019.
    """
    rule = RunTime(T, reset=reset, encoder=encoder)
    return _recipe(calibration, {"threshold": rule, "v_init": 0.0, "reset": reset}, options)


@checked
def rmp(
    calibration: Any,
    T: int = 2500,
    *,
    alpha: float = 0.8,
    encoder: Encoder = None,
    **options: Any,
) -> ComposedRecipe:
    """Residual membrane potential: soft reset, and run-time thresholds times ``alpha``.

    That the paper's thresholds are one factor times the run-time maxima rests on memory of it.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: steps to measure for.
        alpha: factor in (0, 1]; smaller is faster and less exact.
        encoder: from the input to that of one step.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Han et al., "RMP-SNN", CVPR 2020.
    """
    checks.number("alpha", alpha, above=0, at_most=1)
    rule = RunTime(T, alpha, "soft", encoder)
    return _recipe(calibration, {"threshold": rule, "v_init": 0.0}, options)


def tsc(calibration: Any, T: int, q: float = 99.9, **options: Any) -> ComposedRecipe:
    r"""Temporal switch coding: each value is the distance of two spikes. Experimental.

    .. warning:: Experimental. The published neuron's rule was not at hand; see
        :class:`~sj_ext.ann2snn.TwoSpikeNode` for the reading that is built here, and no published
        accuracy is claimed. Any threshold rule goes that needs no converted network.

    Layers work one window after the other, so that the network is exactly the one whose activations
    are :math:`\theta \, \mathrm{clip}(\lfloor T z / \theta \rfloor, 0, T) / T`, and its answer
    takes a window for each layer: :func:`~sj_ext.ann2snn.latency` steps, which ``evaluate`` runs
    before it takes the mean of the steps after them.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: steps of a window.
        q: percentile for the thresholds, in (0, 100].
        **options: of the recipe; ``v_init=0.5`` rounds in place of rounding down.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Han and Roy, "Deep Spiking Neural Network: Energy Efficiency Through Time Based Coding",
    ECCV 2020.
    """
    defaults = {"threshold": Percentile(q), "v_init": 0.0, "T": T, "coding": "two_spikes"}
    return _recipe(calibration, defaults, options)


def spiking_yolo(calibration: Any, q: float = 99.9, **options: Any) -> ComposedRecipe:
    """Thresholds per channel, and negative spikes with an imbalanced threshold at LeakyReLU.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        q: percentile of a channel's activation, in (0, 100].
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Kim et al., "Spiking-YOLO", AAAI 2020.
    """
    rule = Percentile(q, per="channel")
    return _recipe(calibration, {"threshold": rule, "v_init": 0.0, "negative": "leaky"}, options)


def optimal_shift(calibration: Any, T: int, **options: Any) -> ComposedRecipe:
    """Maximum activations as thresholds, and a constant current of half a threshold in ``T`` steps.

    For a network trained with ``QuantizedClip.relu1()`` or ``relu2()``; the result is made for
    ``T`` steps.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: number of steps that it is simulated for.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Deng and Gu, "Optimal Conversion of Conventional Artificial Neural Networks to Spiking
    Neural Networks", ICLR 2021.
    """
    defaults = {"threshold": Maximum(), "v_init": 0.0, "shift_T": T, "T": T}
    return _recipe(calibration, defaults, options)


def calibration_light(calibration: Any, T: int, **options: Any) -> ComposedRecipe:
    """Thresholds of least square error at ``T`` steps, the half-step current, biases corrected.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: number of steps that it is simulated for.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021 (light pipeline).
    """
    defaults = {
        "threshold": MeanSquare(T), "v_init": 0.0, "shift_T": T, "T": T, "calibrations": [Bias()]
    }  # fmt: skip
    return _recipe(calibration, defaults, options)


@checked
def calibration_advanced(
    calibration: Any, T: int, *, weights: bool = False, **options: Any
) -> ComposedRecipe:
    """As the light pipeline, with initial potentials corrected in place of biases.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: number of steps that it is simulated for.
        weights: whether the weights are calibrated before; the published program leaves it out on
            small images.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Li et al., "A Free Lunch From ANN", ICML 2021 (advanced pipeline).
    """
    parts = [*([Weights()] if weights else []), Potential()]
    defaults = {
        "threshold": MeanSquare(T), "v_init": 0.0, "shift_T": T, "T": T, "calibrations": parts
    }  # fmt: skip
    return _recipe(calibration, defaults, options)


def low_latency(calibration: Any, T: int, **options: Any) -> ComposedRecipe:
    """Parts that the papers used apart, for few steps and without training: this package's own.

    Thresholds per channel of least square error for ``T`` rounded steps, neurons that start from
    half of them, counted negative spikes, and initial potentials corrected per neuron.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: number of steps that it is simulated for.
        **options: of the recipe; ``calibrations=[Potential("channel")]`` leaves the resolution
            free.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.
    """
    defaults = {
        "threshold": MeanSquare(T, per="channel", shift=0.5),
        "v_init": 0.5,
        "negative": "counted",
        "calibrations": [Potential()],
        "T": T,
    }
    return _recipe(calibration, defaults, options)


def optimal_potential(
    calibration: Any = None, q: float | None = 99.9, **options: Any
) -> ComposedRecipe:
    """Neurons that start from half their threshold.

    Args:
        calibration: data; not needed where ``q`` is ``None``.
        q: percentile for the thresholds, in (0, 100]; ``None`` for the bounds of a trained clip.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Bu et al., "Optimized Potential Initialization for Low-latency Spiking Neural Networks",
    AAAI 2022.
    """
    rule = Bound() if q is None else Percentile(q)
    return _recipe(calibration, {"threshold": rule, "v_init": 0.5}, options)


def cq(calibration: Any = None, **options: Any) -> ComposedRecipe:
    """Clamp and quantise: bounds as thresholds, from 0; for ``QuantizedClip.cq(levels)``.

    As in the published program the thresholds are 0.9999 times the bounds, since a sum that equals
    the threshold must fire.

    Args:
        calibration: not needed.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Yan et al., "Near Lossless Transfer Learning for Spiking Neural Networks", AAAI 2021.
    """
    return _recipe(calibration, {"threshold": Bound(0.9999), "v_init": 0.0}, options)


@checked
def fast_snn(
    calibration: Any = None,
    bits: int = 3,
    *,
    signed: bool = True,
    fine_tuning: ProxyFineTuning | None = None,
    **options: Any,
) -> ComposedRecipe:
    """Few levels, few steps: counted negative spikes; for ``QuantizedClip.bits(bits)``.

    Args:
        calibration: data with labels where ``fine_tuning`` is given; else not needed.
        bits: bits of the activations; the result is made for ``2 ** bits - 1`` steps.
        signed: whether neurons take spikes back.
        fine_tuning: the layer-wise fine-tuning, if wanted.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Hu et al., "Fast-SNN", TPAMI 45(12), 2023.
    """
    checks.integer("bits", bits, at_least=1)
    defaults = {
        "threshold": Bound(),
        "v_init": 0.5,
        "negative": "counted" if signed else None,
        "T": 2**bits - 1,
        "calibrations": [] if fine_tuning is None else [fine_tuning],
    }
    return _recipe(calibration, defaults, options)


def qcfs(calibration: Any = None, **options: Any) -> ComposedRecipe:
    """Bounds as thresholds, from half of them; for ``QuantizedClip.qcfs(levels)``.

    Args:
        calibration: not needed.
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking
    Neural Networks", ICLR 2022.
    """
    return _recipe(calibration, {"threshold": Bound(), "v_init": 0.5}, options)


def residual_compensation(
    calibration: Any, T: int = 32, q: float = 99.9, **options: Any
) -> ComposedRecipe:
    """Percentile thresholds, from half of them, and rates that are lost with depth made good.

    The factor of the text is read as in :class:`~sj_ext.ann2snn.calibrate.RateGain`; the published
    program has only the initial potential.

    Args:
        calibration: data, as :class:`~sj_ext.ann2snn.ComposedRecipe` takes them.
        T: number of steps to estimate the gains at.
        q: percentile for the thresholds, in (0, 100].
        **options: of the recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: an argument out of range.

    Source: Hu et al., "Spiking Deep Residual Networks", TNNLS 2021.
    """
    defaults = {"threshold": Percentile(q), "v_init": 0.5, "T": T, "calibrations": [RateGain()]}
    return _recipe(calibration, defaults, options)
