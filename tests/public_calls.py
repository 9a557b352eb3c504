"""Every public function and constructor, and one small call of each that is right.

A name that needs no argument is its own call. The rest is in ``CALLS``; the test of bad input
changes one argument at a time. What several names share stands in ``SHARED``.
"""

import ast
import importlib
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sj_ext import analysis, ann2snn, host, model, pruning, search, surrogate
from sj_ext.ann2snn import presets
from sj_ext.model.transformer import spikformer
from sj_ext.neuron import IMPIFNode
from sj_ext.search.network.autosnn import Sizes
from sj_ext.search.space.autost import Candidate

neuron = host.neuron
RNG = random.Random(0)
#: where the modules are listed whose ``__all__`` is public
LIST = Path(__file__).parents[1] / "docs" / "_extensions" / "complete.py"


def modules() -> list[str]:
    """The modules whose names are public, as the documentation has them."""
    for node in ast.parse(LIST.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{LIST} lists no MODULES")


def public() -> dict[str, Callable[..., Any]]:
    """Each public function and class once, by its first public name, without ``sj_ext.``.

    Functions that one maker makes from sizes share their code, and are one.
    """
    found: dict[Any, tuple[str, Any]] = {}
    for place in modules():
        module = importlib.import_module(place)
        for each in module.__all__:
            thing = getattr(module, each)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            if thing.__module__.startswith("sj_ext") and not plain_record(thing):
                name = f"{place}.{each}".removeprefix("sj_ext.")
                found.setdefault(getattr(thing, "__code__", thing), (name, thing))
    return dict(found.values())


def plain_record(thing: Any) -> bool:
    """Whether it only holds what it is given: a dataclass or named tuple that checks nothing."""
    record = hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__")
    return record and not hasattr(thing, "__post_init__")


def example(name: str, thing: Any) -> dict[str, Any]:
    """Arguments of a call that is right.

    Raises:
        AssertionError: the name needs some, and nobody has said which.
    """
    if name in CALLS:
        return CALLS[name]()
    parameters = inspect.signature(thing).parameters.values()
    various = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in various]
    assert not needed, f"{name} needs a call in CALLS of public_calls.py, with {needed}"
    if name.startswith("model."):
        return {p.name: SIZES[p.name] for p in parameters if p.name in SIZES}
    return {}


def ann() -> nn.Module:
    """A trained network, as far as it matters."""
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def clipped() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), ann2snn.QuantizedClip(), nn.Linear(4, 3))


def small_sizes() -> dict[str, Any]:
    return {"num_classes": 3, "T": 2, "dim": 16, "num_heads": 2, "mlp_ratio": 2, "in_channels": 3}


def snn() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), neuron.LIFNode(), nn.Linear(4, 3)).eval()


def converted() -> nn.Module:
    return ann2snn.convert(ann(), presets.optimal_potential(x()))


def x() -> torch.Tensor:
    return torch.rand(2, 4)


def y_seq() -> dict[str, Any]:
    return {"y_seq": torch.rand(2, 2, 3), "target": torch.tensor([0, 1])}


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x(), torch.tensor([0, 1]))]


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def trevsnn(**arguments: Any) -> nn.Module:
    return model.TRevSNN((4, 4, 4, 4), 3, 1, **arguments)


def pruner() -> dict[str, Any]:
    return {"model": wide(), "budget": 0.5}


def value(architecture: Any) -> float:
    return float(sum(map(len, map(str, architecture))))


def trials() -> dict[str, Any]:
    return {"space": search.autosnn(), "evaluate": value, "seed": 0}


def conv() -> dict[str, Any]:
    return {"in_channels": 4, "out_channels": 4}


SIZES = {
    "num_classes": 3,
    "T": 2,
    "dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 4,
    "in_channels": 3,
    "image_size": 32,
    "img_size": 16,
    "channels": (4, 4, 4, 4),
    "widths": (4, 8, 8, 8),
}

#: arguments of a call, by name; each entry is made anew for each call
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "nir.export_to_nir": lambda: {
        "model": nn.Sequential(nn.Linear(4, 3)),
        "example_input": torch.rand(2, 4),
    },
    "ExplicitState": lambda: {"model": snn(), "example_inputs": (x(),)},
    "materialize": lambda: {"model": snn(), "example_inputs": (x(),)},
    "no_weight_decay": lambda: {"model": snn()},
    "parameter_groups": lambda: {"model": snn(), "weight_decay": 0.1},
    "swap_neurons": lambda: {"model": snn(), "mapping": {neuron.LIFNode: IMPIFNode}},
    "analysis.SynapticOperations": lambda: {"layers": ()},
    "analysis.activation_memory": lambda: {"fn": lambda: snn()(x())},
    "analysis.firing_patterns": lambda: {"current": 0.5},
    "analysis.gradient_similarity": lambda: {
        "model": (net := snn()),
        "loss": lambda: net(x()).sum(),
        "dropped": ["1"],
    },
    "analysis.layer_inputs": lambda: {"model": snn(), "x": x()},
    "analysis.pattern_mapping": lambda: {"v_init": [0.0], "weights": [1.0], "num_steps": 2},
    "analysis.per_step_accuracy": lambda: {
        "outputs": torch.rand(2, 2, 3),
        "targets": torch.tensor([0, 1]),
    },
    "analysis.plot_activation_memory": lambda: {"measured": {"a": analysis.ActivationMemory(1, 2)}},
    "analysis.plot_firing_patterns": lambda: {"patterns": torch.ones(2, 2, dtype=torch.bool)},
    "analysis.plot_pattern_mapping": lambda: {"reachable": torch.ones(4, 4, dtype=torch.bool)},
    "analysis.plot_per_step_accuracy": lambda: {"accuracies": {"a": torch.rand(3)}},
    "analysis.synaptic_operations": lambda: {"model": snn(), "x": x()},
    "ann2snn.CountMaxPool": lambda: {"pool": nn.MaxPool2d(2)},
    "ann2snn.Scaler": lambda: {"scale": torch.ones(1)},
    "ann2snn.SpikingSite": lambda: {
        "threshold": torch.ones(1),
        "if_node": ann2snn.ConversionIFNode(),
    },
    "ann2snn.convert": lambda: {"model": ann(), "recipe": presets.optimal_potential(x())},
    "ann2snn.evaluate": lambda: {"snn": converted(), "loader": loader(), "T": (1, 2)},
    "ann2snn.fold_scales": lambda: {"snn": converted()},
    "ann2snn.progressive_tandem": lambda: {
        "model": ann(),
        "train_loader": loader(),
        "val_loader": loader(),
        "T": 2,
        "patience": 1,
        "max_epochs": 1,
    },
    "ann2snn.refine": lambda: {
        "snn": ann2snn.convert(net := ann(), presets.optimal_potential(x())),
        "calibrations": [],
        "ann": net,
    },
    "ann2snn.replace_activations": lambda: {
        "model": ann(),
        "kinds": nn.ReLU,
        "factory": ann2snn.QuantizedClip,
    },
    "ann2snn.report": lambda: {"snn": converted()},
    "ann2snn.TwoSpikeNode": lambda: {"T": 4},
    "ann2snn.latency": lambda: {"snn": converted()},
    "ann2snn.activation.bound_group": lambda: {"model": clipped()},
    "ann2snn.activation.quantized_clip": lambda: {"x": x(), "bound": torch.tensor(1.0)},
    **{
        f"ann2snn.presets.{name}": lambda: {"calibration": x(), "T": 8}
        for name in (
            "calibration_advanced",
            "calibration_light",
            "low_latency",
            "optimal_shift",
            "tsc",
        )
    },
    **{
        f"ann2snn.presets.{name}": lambda: {"calibration": x()}
        for name in ("residual_compensation", "rmp", "spike_norm", "spiking_yolo")
    },
    "ann2snn.threshold.Fixed": lambda: {"thresholds": {"1": torch.ones(1)}},
    "ann2snn.threshold.MeanSquare": lambda: {"T": 8},
    "checkpoint.load_checkpoint": lambda: {"path": "no/such/checkpoint.pt"},
    "checkpoint.save_checkpoint": lambda: {"state": {}, "path": "no/such/checkpoint.pt"},
    **{f"functional.{name}_cross_entropy": y_seq for name in ("lts", "sdt", "tet", "tet_s")},
    "functional.multi_level_firing_step": lambda: {
        "x": x(),
        "v": torch.zeros(3, 2, 4),
        "tau": 2.0,
        "decay_input": True,
        "thresholds": (1.0, 2.0, 3.0),
        "v_reset": 0.0,
        "surrogate_function": surrogate.ClosedRect(),
    },
    **{
        f"layer.{name}": lambda: {"dim": 8, "num_heads": 2}
        for name in ("DSSA", "SDSA3", "SSA", "DISTAttention", "LocalSSA")
    },
    "layer.GWFFN": lambda: {"dim": 64},
    "layer.SCS": lambda: {"in_channels": 3, "widths": (4, 8)},
    "layer.SDSA1": lambda: {"dim": 8},
    "layer.STSA": lambda: {"dim": 8, "num_heads": 2, "steps": 2, "height": 2, "width": 2},
    "layer.ConvStem": lambda: {"in_channels": 3, "widths": (4, 8), "stages": ("CP", "NC")},
    "layer.ConvTokenizer": lambda: {"in_channels": 3, "dim": 8, "strides": (2, 1)},
    **{
        f"layer.{name}": conv
        for name in ("ConvBN", "Downsampling", "FiringConv", "RepConv", "RepConvBN", "SEWBlock")
    },
    "layer.ScaledWSConv2d": lambda: {**conv(), "kernel_size": 3},
    "layer.FrequencyMixer": lambda: {"channels": 8},
    "layer.LinearMixer": lambda: {"channels": 8},
    "layer.LocalBlock": lambda: {"dim": 8},
    "layer.ResidualBlock": lambda: {"branches": {"mlp": nn.Identity()}},
    "layer.ReversibleSequence": lambda: {"blocks": [(nn.Linear(2, 2), nn.Linear(2, 2))]},
    "layer.SepConv": lambda: {"dim": 8},
    "layer.SpikingMLP": lambda: {"dim": 8, "hidden": 8},
    "layer.TemporalReversible": lambda: {"levels": [nn.Linear(2, 2)], "decays": [0.5]},
    "layer.fuse": lambda: {"model": snn()},
    "layer.attention.SoftmaxAttention": lambda: {"dim": 8, "num_heads": 2},
    "layer.attention.SpaceTimeBlock": lambda: {"dim": 8, "num_heads": 2},
    "layer.attention.SpikeProduct": lambda: {"heads": 2, "scale": 0.5},
    "layer.attention.TemporalProduct": lambda: {
        "num_heads": 2,
        "steps": 2,
        "height": 2,
        "width": 2,
    },
    "layer.attention.WindowedConvBN": lambda: {"channels": 8},
    "memory.compact": lambda: {"model": snn(), "example_input": torch.rand(1, 2, 4)},
    "model.TRevSNN": lambda: {"channels": (4, 4, 4, 4)},
    "model.map_inputs": lambda: {"model": trevsnn(), "x": torch.rand(1, 1, 3, 32, 32)},
    "model.reparameterize": lambda: {"model": trevsnn().eval()},
    "model.revsnn.load_published": lambda: {
        "model": model.revsnn.revsresnet(3, 1, channels=(4, 4), depths=(1, 1)),
        "state_dict": {},
    },
    "model.transformer.autost.autost": lambda: {
        "dim": 16,
        "num_heads": (2, 4),
        "mlp_ratios": (2, 1),
    },
    "model.transformer.sglformer.sglformer_imagenet": lambda: {**small_sizes(), "depth": 3},
    "model.transformer.spiking_resformer.spiking_resformer": lambda: {
        "num_classes": 3,
        "T": 2,
        "widths": (4, 8),
        "num_heads": (1, 2),
        "patch_sizes": (2, 1),
        "layers": 2 * (("DSSA", "GWFFN"),),
        "group_size": 4,
    },
    "model.transformer.meta_spikeformer.meta_spikeformer": lambda: {
        **{"num_classes": 3, "widths": (4, 8, 16, 16), "depths": (1, 1), "num_heads": 2},
    },
    "model.transformer.Head": lambda: {"channels": 8, "num_classes": 3},
    "model.transformer.SpikingTransformer": lambda: {
        "stem": nn.Identity(),
        "body": nn.Identity(),
        "head": nn.Identity(),
    },
    "model.transformer.PublishedNames": lambda: {"program": "a", "rules": ()},
    "model.transformer.load_published": lambda: {"model": small(), "state_dict": {}},
    "model.transformer.published_names": lambda: {"model": small(), "state_dict": {}},
    "model.transformer.sglformer.BatchMixingSSA": lambda: {"dim": 8, "num_heads": 2},
    "model.transformer.sglformer.FullSizeHead": lambda: {
        "channels": 8,
        "tokens": 4,
        "steps": 2,
        "num_classes": 3,
    },
    "model.transformer.spikformer.spikformer_stem": lambda: {"dim": 16},
    "model.transformer.spikingformer.spikingformer_stem": lambda: {"dim": 16},
    "model.trevsnn.load_published": lambda: {"model": trevsnn(), "state_dict": {}},
    "model.trevsnn.published_arguments": lambda: {"state_dict": {}},
    "model.trevsnn.published_state_dict": lambda: {"model": trevsnn()},
    "model.trevsnn.published_to_ours": lambda: {"state_dict": {}},
    "neuron.with_learnable_imp": lambda: {"node_class": neuron.LIFNode},
    "neuron.published.published_to_ours": lambda: {"model": snn(), "state_dict": {}},
    **{
        f"pruning.{name}": pruner
        for name in (
            "GlobalMagnitudePruner",
            "IterativeMagnitudePruner",
            "LayerMagnitudePruner",
            "MinimaxPruner",
        )
    },
    "pruning.History": lambda: {"layers": ["a"]},
    "pruning.LatencyTable": lambda: {
        "device": "cpu",
        "densities": [0.5, 1.0],
        "seconds": {"a": [1.0, 2.0]},
    },
    "pruning.Pruner": pruner,
    "pruning.Schedule": lambda: {"stages": (pruning.Stage(0.5, 1, 1),)},
    "pruning.Stage": lambda: {"level": 0.5, "compress_steps": 1, "finetune_steps": 1},
    "pruning.carry_over": lambda: {
        "optimizer": torch.optim.SGD((net := wide()).parameters(), 0.1),
        "model": net,
        "small": ann(),
    },
    "pruning.compress_then_finetune": lambda: {
        **pruner(),
        "compress_steps": 1,
        "finetune_steps": 1,
    },
    "pruning.density": lambda: {"model": wide()},
    "pruning.export_csr": lambda: {"model": wide()},
    "pruning.hand_over": lambda: {"model": wide(), "average": wide()},
    "pruning.hold_masks": lambda: {
        "model": wide(),
        "masks": {"0.weight": torch.ones(64, 4, dtype=torch.bool)},
    },
    "pruning.make_permanent": lambda: {"model": wide()},
    "pruning.measure_latency": lambda: {
        "model": snn(),
        "example_input": x(),
        "densities": (0.5,),
        "repeats": 1,
    },
    "pruning.plain_state_dict": lambda: {"state": {}},
    "pruning.resource": lambda: {"which": "params"},
    "pruning.shrink": lambda: {"model": wide(), "example_input": x()},
    "pruning.resources.flops": lambda: {"example_input": x()},
    "pruning.resources.latency": lambda: {
        "table": pruning.LatencyTable("cpu", [0.5, 1.0], {"a": [1.0, 2.0]})
    },
    "pruning.resources.layer_positions": lambda: {"model": wide(), "example_input": x()},
    "search.Choice": lambda: {"options": ("a", "b")},
    "search.Constraint": lambda: {"cost": value, "limit": 1.0},
    "search.Evaluations": lambda: {"space": search.autosnn(), "evaluate": value},
    "search.OneShot": lambda: {"model": nn.Sequential(search.Slot({"a": nn.Identity()}))},
    "search.Slot": lambda: {"candidates": {"a": nn.Identity()}},
    "search.Space": lambda: {"name": "a", "slots": {"b": search.Choice(("c", "d"))}},
    "search.SuperKernel": conv,
    "search.evolution_as_published": lambda: {
        **trials(),
        **{"generations": 1, "pool": 2, "parents": 2, "mutants": 1, "children": 1},
    },
    "search.fittest": lambda: {
        "pool": [search.autosnn().sample(RNG)],
        "evaluate": value,
        "count": 1,
    },
    "search.optuna_search": lambda: {**trials(), "trials": 1},
    "search.random_search": lambda: {**trials(), "trials": 1},
    "search.spike_aware": lambda: {"accuracy": 0.5, "spikes": 1.0, "reference": 1.0},
    **{
        f"search.cost.{name}": lambda: {"model": snn(), "batch": x()}
        for name in ("energy", "flops", "spikes", "synops")
    },
    "search.cost.parameters": lambda: {"model": snn()},
    "search.cost.synops_penalty": lambda: {"operations": torch.ones(1), "samples": 1},
    "search.network.autosnn.AutoSNN": lambda: {
        "slots": [nn.Identity()] * 8,
        "sizes": Sizes(4),
        "spiking_neuron": neuron.LIFNode,
    },
    "search.network.autosnn.child": lambda: {"architecture": search.autosnn().sample(RNG)},
    "search.network.autosnn.supernet": lambda: {"pooled": (False,) * 8, "sizes": Sizes(4)},
    "search.network.autost.operations": lambda: {"candidate": Candidate((2,), (2,), 16)},
    "search.network.autost.parameters": lambda: {"candidate": Candidate((2,), (2,), 16)},
    "search.network.branchless.FixedKernel": lambda: {**conv(), "kernel_size": 3},
    "search.network.branchless.SharedThresholdNode": lambda: {
        "threshold": nn.Parameter(torch.ones(()))
    },
    "search.network.snasnet.Cell": lambda: {
        "channels": 4,
        "rows": ((0, 0, 0, 0),) * 4,
        "spiking_neuron": neuron.LIFNode,
    },
    "search.network.snasnet.SNASNet": lambda: {
        "architecture": search.snasnet().sample(RNG),
        "channels": 4,
    },
    "search.network.snasnet.child": lambda: {"architecture": search.snasnet().sample(RNG)},
    "search.score.autost_score": lambda: {"candidate": Candidate((2,), (2,), 16)},
    **{
        f"search.score.{name}": lambda: {"model": snn(), "batch": x()}
        for name in ("hamming", "pattern_kernel", "spike_patterns")
    },
}


def small() -> nn.Module:
    return spikformer.spikformer(3, 2, dim=16, depth=1, num_heads=2, mlp_ratio=2, patch_size=4)
