"""Which method of the field is where: the one table behind docs/survey.md and test_survey.py.

Each name says on which hosts it is, and how to build and run it. A name that is said to be on one
host only is looked for on the other, where it must not be found.
"""

from __future__ import annotations

import argparse
import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sj_ext import ann2snn, host, search

BOTH, NEW, OLD, OURS = (1, 2), (2,), (1,), "sj_ext"
T = 4


@dataclass(frozen=True)
class Name:
    """A public name, where it is, and a function that runs it forward on the object it names."""

    path: str
    where: tuple[int, ...] | str
    run: Callable[..., torch.Tensor]
    #: hosts that have it, where it raises when it is built or run
    broken: tuple[int, ...] = ()

    def resolve(self):
        """The object, from SpikingJelly's ``activation_based`` or from ``sj_ext``."""
        root = OURS if self.where == OURS else "spikingjelly.activation_based"
        module, parts = importlib.import_module(root), self.path.split(".")
        for i, part in enumerate(parts):
            if not hasattr(module, part):
                importlib.import_module(".".join([root, *parts[: i + 1]]))
            module = getattr(module, part)
        return module


@dataclass(frozen=True)
class Method:
    """A row of the table; without names the method is in none of the three."""

    group: str
    title: str
    names: tuple[Name, ...] = ()
    note: str = ""


def spiking(path: str, where=BOTH, **arguments) -> Name:
    """A neuron over T steps of a ``[T, N, C]`` sequence."""

    def run(node_class):
        node = node_class(**arguments)
        if "m" in node.supported_step_mode():
            node.step_mode = "m"
            return node(torch.rand(T, 2, 5))
        return torch.stack([node(x) for x in torch.rand(T, 2, 5)])

    return Name(path, where, run)


def normalising(path: str, where, *arguments, broken: tuple[int, ...] = ()) -> Name:
    """A normalisation of ``[T, N, C, H, W]``."""

    def run(norm_class):
        norm = norm_class(*arguments)
        host.functional.set_step_mode(norm, "m")
        return norm(torch.rand(T, 2, 3, 6, 6))

    return Name(path, where, run, broken)


def attending(path: str) -> Name:
    """Self-attention over 6 tokens of 8 channels."""

    def run(attention_class):
        attention = attention_class(8, 2)
        host.functional.set_step_mode(attention, "m")
        shape = (T, 2, 8, 6) if "Driven" not in path else (T, 2, 8, 2, 3)
        return attention(torch.rand(shape))

    return Name(path, NEW, run)


def losing(path: str, where) -> Name:
    """A loss of logits ``[T, N, C]`` and labels."""
    return Name(path, where, lambda loss: loss(torch.rand(T, 2, 5), torch.tensor([0, 3])))


def _cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _calibration() -> list:
    return [(torch.rand(4, 1, 6, 6), torch.zeros(4)) for _ in range(2)]


def _run_converted(converted: nn.Module, x: torch.Tensor) -> torch.Tensor:
    host.functional.set_step_mode(converted, "s")
    with torch.no_grad():
        return torch.stack([converted.eval()(x) for _ in range(T)])


def _convert_by_rate(converter_class):
    if host.GENERATION == 1:
        converted = converter_class(_calibration(), mode="99.9%")(_cnn().eval())
        return _run_converted(converted, torch.rand(2, 1, 6, 6))
    from spikingjelly.activation_based.ann2snn import RateCodingRecipe

    return _convert(RateCodingRecipe, mode="99.9%")


def _convert(recipe_class, **arguments):
    from spikingjelly.activation_based.ann2snn import Converter

    recipe = recipe_class(_calibration(), **arguments)
    converted = Converter(recipe=recipe).convert(_cnn().eval())
    return _run_converted(converted, torch.rand(2, 1, 6, 6))


def _convert_transformer(recipe_class):
    from spikingjelly.activation_based.ann2snn import Converter

    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).eval()
    converted = Converter(recipe=recipe_class(time_steps=T)).convert(model)
    return _run_converted(converted, torch.rand(2, 5, 6))


def _ours(preset, **arguments):
    return _run_by_ours(_cnn().eval(), preset(_calibration(), **arguments))


def _ours_with_bounds(preset):
    net = _cnn()
    ann2snn.replace_activations(net, nn.ReLU, lambda: ann2snn.QuantizedClip(2.0, T))
    return _run_by_ours(net.eval(), preset())


def _run_by_ours(net, recipe):
    return _run_converted(ann2snn.convert(net, recipe), torch.rand(2, 1, 6, 6))


def _labelled() -> list:
    return [(torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]


def _proxy(part_class):
    recipe = ann2snn.ComposedRecipe(_labelled(), calibrations=[part_class()], T=T)
    return _run_by_ours(_cnn().eval(), recipe)


def _tandem(train):
    converted = train(_cnn().eval(), _labelled(), _labelled(), T, patience=1, max_epochs=1)
    return _run_converted(converted, torch.rand(2, 1, 6, 6))


def _half(node_class):
    return torch.stack([node_class()(torch.rand(2, 5))])


def _qcfs(encoder_class):
    return encoder_class(torch.full((5,), 0.25), T)(torch.randn(2, 5))


def _spikezip(recipe_class):
    from spikingjelly.activation_based.ann2snn import ModuleConverter
    from spikingjelly.activation_based.ann2snn.examples import (
        roberta_spikezip_qann_synthetic as toy,
    )

    model = toy.TinyQRobertaClassifier().eval()
    recipe = recipe_class(time_steps=T, model_family="roberta")
    converted = ModuleConverter(recipe=recipe).convert(model)
    return _run_converted(converted, torch.randint(0, 32, (2, 6)))


def _bptt(node_class):
    node, x = node_class(step_mode="m"), torch.rand(T, 2, 5, requires_grad=True)
    node(x).sum().backward()
    return x.grad


def _ottt_node(node_class):
    node = node_class()
    spikes, traces = zip(*[node(x) for x in torch.rand(T, 2, 5)], strict=True)
    return torch.stack([*spikes, *traces])


def _ottt(container):
    net = container(nn.Linear(5, 4), host.neuron.OTTTLIFNode(), nn.Linear(4, 3))
    return torch.stack([net(x) for x in torch.rand(T, 2, 5)])


def _liaf(node_class):
    return node_class(torch.relu, True)(torch.rand(2, 5))


def _reversible_in_depth(sequence_class):
    sequence = sequence_class([(nn.Conv1d(2, 2, 1), nn.Identity())], dim=1)
    return sequence(torch.rand(2, 4, 6))


def _autosnn(supernet):
    sizes = search.network.autosnn.Sizes(
        channels=(4, 4), strides=(1, 2), stem=4, image_size=8, T=T, num_classes=3
    )
    return supernet((False, True), sizes)(torch.rand(2, 3, 8, 8))


def _branchless(model_class):
    model = model_class(3, T, stem=3, first=4, widths=(4,), blocks=2, head=5)
    return model(torch.rand(2, 3, 8, 8))


def _searched_snasnet(model_class):
    architecture = search.snasnet("forward").sample(random.Random(0))
    model = model_class(architecture, 3, T, channels=4, image_size=8, hidden=8, cluster=2)
    return model(torch.rand(2, 3, 8, 8))


def _snas(model_class):
    arguments = argparse.Namespace(
        timestep=2,
        second_avgpooling=2,
        dataset="cifar10",
        celltype="forward",
        threshold=1.0,
        tau=4.0 / 3.0,
    )
    connections = torch.zeros(4, 4)
    connections[0, 1:] = connections[1, 2] = connections[2, 3] = 1
    with torch.no_grad():
        return model_class(arguments, connections).eval()(torch.rand(1, 3, 32, 32))


def _reversible(cell_class):
    class Level(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, below, above):
            return self.linear(below)

    return cell_class([Level(), Level()], [0.5, 0.5])(torch.rand(T, 2, 5))


def _compacted(compact):
    net = nn.Sequential(host.layer.Linear(5, 5), host.neuron.LIFNode())
    host.functional.set_step_mode(net, "m")
    return compact(net, torch.rand(T, 2, 5))(torch.rand(T, 2, 5))


def _prune(pruner_class, **arguments):
    net = nn.Linear(20, 10)
    pruner = pruner_class(net, budget=0.2, schedule=8, first=True, **arguments)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    while not pruner.finished:
        optimizer.zero_grad()
        net(torch.rand(4, 20)).sum().backward()
        optimizer.step()
        pruner.step()
    return net(torch.rand(4, 20))


def _imp(swap):
    net = nn.Sequential(host.neuron.LIFNode(step_mode="m"))
    swap(net, {host.neuron.LIFNode: host.neuron.IMPLIFNode}, imp_shape="neuron")
    return net(torch.rand(T, 2, 5))


def _model(path: str, where, side: int, in_time: bool = True, lif: bool = False, **arguments):
    """A vision model on small images, repeated over T steps unless it repeats them itself."""

    def run(make):
        with_lif = {"spiking_neuron": host.neuron.LIFNode} if lif else {}
        net = make(**arguments, **with_lif)
        host.functional.set_step_mode(net, "m")
        x = torch.rand(2, 3, side, side)
        with torch.no_grad():
            return net.eval()(x.expand(T, *x.shape) if in_time else x)

    return Name(path, where, run)


def _transformer(path: str, side: int = 16, channels: int = 3, **arguments) -> Name:
    """A spiking transformer of ours on small images."""

    def run(make):
        net = make(num_classes=5, T=T, **arguments)
        with torch.no_grad():
            return net.eval()(torch.rand(2, channels, side, side))

    return Name(f"model.transformer.{path}", OURS, run)


METHODS = (
    Method(
        "conversion",
        "ReLU network to IF neurons: weights normalised or thresholds balanced by maximum or "
        "percentile, soft reset, per layer",
        (Name("ann2snn.Converter", BOTH, _convert_by_rate),),
        "2.x: with `RateCodingRecipe`",
    ),
    Method(
        "conversion",
        "the same per channel",
        (Name("ann2snn.RateCodingRecipe", NEW, partial(_convert, channel_wise=True)),),
        "`channel_wise=True`",
    ),
    Method(
        "conversion",
        "local threshold balancing",
        (Name("ann2snn.LocalThresholdBalancingRecipe", NEW, _convert),),
    ),
    Method(
        "conversion",
        "clip-floor-shift activations (QCFS)",
        (
            Name("ann2snn.presets.qcfs", OURS, _ours_with_bounds),
            Name("ann2snn.SignedQCFSSequenceEncoder", NEW, _qcfs),
        ),
        "ours: trained with `QuantizedClip.qcfs(levels)`; 2.x: the encoder of a sequence only",
    ),
    Method(
        "conversion",
        "mapping of a quantised Transformer (SpikeZIP)",
        (Name("ann2snn.SpikeZIPTFQANNRecipe", NEW, _spikezip),),
    ),
    Method(
        "conversion",
        "spatio-temporal approximation of Transformers (STA)",
        (Name("ann2snn.STATransformerRecipe", NEW, _convert_transformer),),
    ),
    Method(
        "conversion",
        "thresholds from the currents met at run time (Spike-Norm)",
        (Name("ann2snn.presets.spike_norm", OURS, partial(_ours, T=8)),),
    ),
    Method(
        "conversion",
        "run-time thresholds scaled, soft reset (RMP)",
        (Name("ann2snn.presets.rmp", OURS, partial(_ours, T=8)),),
    ),
    Method(
        "conversion",
        "coding by the distance of two spikes (TSC)",
        (Name("ann2snn.presets.tsc", OURS, partial(_ours, T=T)),),
        "experimental: the published neuron's rule was not at hand",
    ),
    Method(
        "conversion",
        "signed spikes for negative activations, thresholds per channel (Spiking-YOLO)",
        (Name("ann2snn.presets.spiking_yolo", OURS, _ours),),
    ),
    Method(
        "conversion",
        "truncated ReLU (ReLU1, ReLU2) with shift",
        (Name("ann2snn.presets.optimal_shift", OURS, partial(_ours, T=T)),),
        "trained with `QuantizedClip.relu1()`, `.relu2()`",
    ),
    Method(
        "conversion",
        "layer-wise calibration of biases, potentials and weights",
        (
            Name("ann2snn.presets.calibration_light", OURS, partial(_ours, T=T)),
            Name("ann2snn.presets.calibration_advanced", OURS, partial(_ours, T=T)),
        ),
    ),
    Method(
        "conversion",
        "optimised initial potential for conversion",
        (
            Name("ann2snn.presets.optimal_potential", OURS, _ours),
            Name("neuron.HalfThresholdIFNode", NEW, _half),
        ),
        "2.x: half the threshold, in `RateCodingRecipe(channel_wise=True, half_threshold=True)`; "
        "ours also per layer, per neuron, calibrated and learned",
    ),
    Method(
        "conversion",
        "residual-potential-aware fine-tuning (clamp and quantise)",
        (Name("ann2snn.presets.cq", OURS, _ours_with_bounds),),
        "trained with `QuantizedClip.cq(levels)`",
    ),
    Method(
        "conversion",
        "signed IF with layer-wise fine-tuning (Fast-SNN)",
        (
            Name("ann2snn.presets.fast_snn", OURS, _ours_with_bounds),
            Name("ann2snn.calibrate.ProxyFineTuning", OURS, _proxy),
        ),
        "trained with `QuantizedClip.bits(bits)`",
    ),
    Method(
        "conversion",
        "progressive tandem learning",
        (Name("ann2snn.progressive_tandem", OURS, _tandem),),
    ),
    Method(
        "conversion",
        "residual networks with compensated rates",
        (Name("ann2snn.presets.residual_compensation", OURS, partial(_ours, T=T)),),
        "the gain as this package reads the text; the public program has none",
    ),
    Method(
        "conversion",
        "per channel, half, counted negative spikes and calibrated potentials together",
        (Name("ann2snn.presets.low_latency", OURS, partial(_ours, T=T)),),
    ),
    Method(
        "direct training",
        "backpropagation through time with surrogate gradients (STBP)",
        (Name("neuron.LIFNode", BOTH, _bptt),),
    ),
    Method(
        "direct training",
        "online training through time (OTTT)",
        (
            Name("neuron.OTTTLIFNode", NEW, _ottt_node),
            Name("layer.OTTTSequential", NEW, _ottt),
        ),
    ),
    Method(
        "direct training",
        "spatial learning through time (SLTT)",
        (spiking("neuron.SLTTLIFNode", NEW),),
    ),
    Method(
        "direct training",
        "temporally reversible blocks (T-RevSNN)",
        (Name("layer.TemporalReversible", OURS, _reversible),),
    ),
    Method(
        "direct training",
        "recomputation from recorded spikes, for any network",
        (Name("memory.compact", OURS, _compacted),),
    ),
    Method(
        "direct training",
        "spatially reversible blocks (RevSNN)",
        (
            Name("layer.ReversibleSequence", OURS, _reversible_in_depth),
            _model(
                "model.revsnn.revsresnet",
                OURS,
                16,
                in_time=False,
                T=T,
                channels=(4, 6),
                depths=(1, 1),
            ),
            _model("model.revsnn.revsformer", OURS, 16, in_time=False, T=T, dim=16, num_heads=2),
        ),
    ),
    Method("losses", "SDT", (losing("functional.sdt_cross_entropy", OURS),)),
    Method(
        "losses",
        "TET",
        (
            losing("functional.temporal_efficient_training_cross_entropy", BOTH),
            losing("functional.tet_cross_entropy", OURS),
        ),
        "the host's has no mean-square term",
    ),
    Method(
        "losses",
        "TET-S, LTS",
        (
            losing("functional.tet_s_cross_entropy", OURS),
            losing("functional.lts_cross_entropy", OURS),
        ),
    ),
    Method(
        "normalisation",
        "threshold-dependent batch normalisation (tdBN)",
        (normalising("layer.ThresholdDependentBatchNorm2d", BOTH, 1.0, 1.0, 3, broken=OLD),),
        "0.0.0.0.14: raises on PyTorch 2.11, whose `_check_input_dim` it does not define",
    ),
    Method("normalisation", "NeuNorm", (normalising("layer.NeuNorm", BOTH, 3, 6, 6),)),
    Method(
        "normalisation",
        "temporal effective batch normalisation (TEBN)",
        (normalising("layer.TemporalEffectiveBatchNorm2d", NEW, T, 3),),
    ),
    Method(
        "normalisation",
        "batch normalisation through time (BNTT)",
        (normalising("layer.BatchNormThroughTime2d", NEW, T, 3),),
    ),
    Method(
        "normalisation",
        "membrane-potential batch normalisation (MPBN)",
        (spiking("neuron.MPBNLIFNode", NEW, out_features=5),),
    ),
    Method(
        "neurons",
        "IF, LIF, PLIF",
        (
            spiking("neuron.IFNode"),
            spiking("neuron.LIFNode"),
            spiking("neuron.ParametricLIFNode"),
        ),
    ),
    Method(
        "neurons",
        "QIF, EIF, Izhikevich",
        (
            spiking("neuron.QIFNode"),
            spiking("neuron.EIFNode"),
            spiking("neuron.IzhikevichNode"),
        ),
    ),
    Method("neurons", "KLIF", (spiking("neuron.KLIFNode"),)),
    Method(
        "neurons",
        "LIAF",
        (Name("neuron.LIAFNode", BOTH, _liaf, OLD),),
        "0.0.0.0.14: its constructor raises",
    ),
    Method("neurons", "gated LIF (GLIF)", (spiking("neuron.GatedLIFNode", NEW, T=T),)),
    Method(
        "neurons",
        "parallel spiking neurons (PSN, masked, sliding)",
        (
            spiking("neuron.PSN", NEW, T=T),
            spiking("neuron.MaskedPSN", NEW, k=2, T=T),
            spiking("neuron.SlidingPSN", NEW, k=2),
        ),
    ),
    Method("neurons", "complementary LIF (CLIF)", (spiking("neuron.ComplementaryLIFNode", NEW),)),
    Method("neurons", "integer LIF (I-LIF)", (spiking("neuron.ILIFNode", NEW),)),
    Method(
        "neurons",
        "differentiation on spike representation (DSR)",
        (spiking("neuron.DSRIFNode", NEW, T=T), spiking("neuron.DSRLIFNode", NEW, T=T)),
    ),
    Method("neurons", "multi-level firing (MLF)", (spiking("neuron.MultiLevelFiringNode", OURS),)),
    Method(
        "neurons",
        "learnable initial potential (IMP)",
        (
            spiking("neuron.IMPIFNode", OURS),
            spiking("neuron.IMPLIFNode", OURS),
            spiking("neuron.IMPParametricLIFNode", OURS),
            Name("swap_neurons", OURS, _imp),
        ),
    ),
    Method(
        "neurons",
        "turn-off, turn-on",
        (spiking("neuron.TurnOffNode", OURS), spiking("neuron.TurnOnNode", OURS)),
    ),
    Method(
        "convolutional",
        "spiking ResNet",
        (_model("model.spiking_resnet.spiking_resnet18", BOTH, 32, lif=True, num_classes=5),),
    ),
    Method(
        "convolutional",
        "SEW-ResNet",
        (_model("model.sew_resnet.sew_resnet18", BOTH, 32, lif=True, num_classes=5, cnf="ADD"),),
    ),
    Method(
        "convolutional",
        "MS-ResNet",
        (_model("model.ms_resnet.ms_resnet18", NEW, 32, in_time=False, T=T, num_classes=5),),
    ),
    Method(
        "convolutional",
        "SNASNet",
        (
            Name("model.snas_net.SNASNet", NEW, _snas),
            Name("search.network.snasnet.SNASNet", OURS, _searched_snasnet),
        ),
        note="the model; its search is `search.snasnet` and `search.score.spike_patterns`",
    ),
    Method(
        "convolutional",
        "T-RevSNN",
        (_model("model.trevsnn_tiny", OURS, 32, in_time=False, num_classes=5),),
    ),
    Method(
        "convolutional",
        "AutoSNN",
        (Name("search.network.autosnn.supernet", OURS, _autosnn),),
        note="with `search.autosnn` and `search.evolution_as_published`",
    ),
    Method(
        "convolutional",
        "branchless spiking supernet with synaptic-operation-aware search",
        (Name("search.network.branchless.Branchless", OURS, _branchless),),
    ),
    Method(
        "transformers",
        "Spikformer (spiking self-attention)",
        (
            attending("layer.SpikingSelfAttention"),
            _model("model.spikformer.spikformer_cifar10", NEW, 32, in_time=False, T=T),
        ),
    ),
    Method(
        "transformers",
        "spike-driven Transformer (SDSA)",
        (
            attending("layer.SpikeDrivenSelfAttention"),
            _model(
                "model.spike_driven_transformer.SpikeDrivenTransformer",
                NEW,
                32,
                in_time=False,
                T=T,
                num_classes=5,
                embed_dims=64,
                depths=1,
            ),
        ),
    ),
    Method(
        "transformers",
        "QKFormer (Q-K attention)",
        (
            attending("layer.TokenQKAttention"),
            attending("layer.ChannelQKAttention"),
            _model(
                "model.qkformer.QKFormer",
                NEW,
                32,
                in_time=False,
                T=T,
                num_classes=5,
                embed_dims=96,
                depths=(1, 1, 1),
            ),
        ),
    ),
    Method(
        "transformers",
        "MaxFormer",
        (_model("model.maxformer.maxformer_cifar", NEW, 32, in_time=False, T=T, num_classes=5),),
    ),
    Method(
        "transformers",
        "Spikingformer (membrane shortcut)",
        (_transformer("spikingformer.spikingformer", patch_size=4, dim=16, depth=1),),
    ),
    Method(
        "transformers",
        "ConvBN-MaxPool-LIF downsampling (CML)",
        (
            _transformer(
                "spikingformer.spikingformer", downsampling="cml", patch_size=4, dim=16, depth=1
            ),
        ),
        "`downsampling='cml'`; the Spikformer of 2.x has it in its stem",
    ),
    Method(
        "transformers",
        "Spikformer V2 (spiking convolutional stem)",
        (_transformer("spikformer.spikformer_v2", side=32, dim=16, depth=1),),
        "a reading of the paper, which has no public program",
    ),
    Method(
        "transformers",
        "Meta-SpikeFormer (spike-driven Transformer V2)",
        (
            _transformer(
                "meta_spikeformer.meta_spikeformer", widths=(4, 8, 8, 8), depths=(1, 1), num_heads=2
            ),
        ),
    ),
    Method(
        "transformers",
        "convolutional tokenizer",
        (
            _transformer(
                "spikeformer.spikeformer",
                img_size=16,
                strides=(2, 2),
                dim=8,
                depth=1,
                num_heads=2,
                in_channels=3,
            ),
        ),
    ),
    Method(
        "transformers",
        "dual spike self-attention (SpikingResformer)",
        (
            _transformer(
                "spiking_resformer.spiking_resformer",
                prologue="small",
                widths=(4, 8),
                num_heads=(1, 2),
                patch_sizes=(2, 1),
                layers=(("DSSA", "GWFFN"), ("DSSA", "GWFFN")),
                group_size=4,
            ),
        ),
    ),
    Method(
        "transformers",
        "spatio-temporal self-attention with relative bias (STS-Transformer)",
        (
            _transformer(
                "sts.sts_transformer", side=32, image_size=32, dim=16, depth=1, in_channels=3
            ),
        ),
    ),
    Method(
        "transformers",
        "intrinsic plasticity and denoising (DISTA)",
        (_transformer("dista.dista", dim=16, depth=1, num_heads=2),),
        note="a reading of the paper: no program is public",
    ),
    Method(
        "transformers",
        "frequency-aware token mixer (SWformer)",
        (_transformer("swformer.swformer", dim=16, depth=1),),
    ),
    Method(
        "transformers",
        "global-local fusion (SGLFormer)",
        (
            _transformer("sglformer.sglformer", image_size=16, dim=16, num_heads=2),
            _transformer("sglformer.sglformer_imagenet", side=32, dim=16, num_heads=2, depth=3),
        ),
    ),
    Method(
        "transformers",
        "Fourier and wavelet mixers",
        (_transformer("attention_free.attention_free_spikformer", dim=16, depth=1),),
        note="a reading of the papers: no program is public",
    ),
    Method(
        "transformers",
        "AutoST",
        (_transformer("autost.autost", dim=16, num_heads=(2,), mlp_ratios=(2,)),),
        note="its search is `search.autost` and `search.score.autost_score`",
    ),
    Method(
        "compression",
        "minimax optimisation under resource constraints",
        (Name("pruning.MinimaxPruner", OURS, _prune),),
    ),
    Method(
        "compression",
        "magnitude pruning: global, layer-wise, iterative",
        (
            Name("pruning.GlobalMagnitudePruner", OURS, _prune),
            Name("pruning.LayerMagnitudePruner", OURS, _prune),
            Name("pruning.IterativeMagnitudePruner", OURS, _prune),
        ),
    ),
)
