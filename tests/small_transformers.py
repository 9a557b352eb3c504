"""A small network of every spiking transformer: what the tests of them all run through."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sj_ext import host
from sj_ext.model.transformer import (
    attention_free,
    autost,
    dista,
    meta_spikeformer,
    sglformer,
    spikeformer,
    spikformer,
    spiking_resformer,
    spikingformer,
    sts,
    swformer,
)


@dataclass(frozen=True)
class Small:
    """How to build one, and what it takes."""

    build: partial
    #: of one sample at one step
    shape: tuple[int, ...] = (3, 16, 16)
    #: whether it also runs step by step
    single_step: bool = True
    #: whether it has norms behind something else than a convolution, which nothing can take in
    keeps_norms: bool = False
    #: mean of the norms' biases, at which its neurons neither rest nor fire at every step
    bias: float = 0.8

    def net(self, **changes) -> nn.Module:
        """One whose normalisations have seen a batch, and whose neurons fire."""
        net = self.build(**changes)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.8, 1.6)
            nn.init.normal_(norm.bias, self.bias, 0.5)
            norm.momentum = 1.0  # the statistics of this one batch
        with torch.no_grad():
            net(self.input(n=8))
        for norm in norms:
            norm.momentum = 0.1
        host.functional.reset_net(net)
        return net

    def input(self, n=2, steps=None):
        lead = (n,) if steps is None else (steps, n)
        return torch.randn(*lead, *self.shape)


_small = {"num_classes": 5, "T": 3, "dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2}

_meta = {
    "num_classes": 5,
    "T": 3,
    "widths": (4, 8, 16, 16),
    "depths": (1, 1),
    "num_heads": 2,
    "mlp_ratio": 2,
}

_resformer = {
    "num_classes": 5,
    "T": 3,
    "widths": (4, 8),
    "num_heads": (1, 2),
    "patch_sizes": (2, 1),
    "layers": 2 * (("DSSA", "GWFFN"),),
    "group_size": 4,
}

_unheaded = {name: value for name, value in _small.items() if name != "num_heads"}
_deep = _small | {"depth": 3}

#: by the method's name
MODELS: dict[str, Small] = {
    "attention_free": Small(
        partial(attention_free.attention_free_spikformer, transform="combo", **_unheaded),
        keeps_norms=True,
    ),
    "autost": Small(
        partial(autost.autost, num_classes=5, T=3, dim=16, num_heads=(2, 4), mlp_ratios=(2, 1))
    ),
    "dista": Small(
        partial(dista.dista, denoise=1, **_small),
        keeps_norms=True,
    ),
    "sglformer": Small(
        partial(sglformer.sglformer, image_size=16, **_small), single_step=False, keeps_norms=True
    ),
    "sglformer_imagenet": Small(partial(sglformer.sglformer_imagenet, **_deep), (3, 32, 32)),
    "sts": Small(
        partial(sts.sts_transformer, image_size=32, in_channels=3, **_small | {"T": 4}),
        (3, 32, 32),
        bias=0.0,
    ),
    "swformer": Small(
        partial(swformer.swformer, blocks=2, **_unheaded),
        keeps_norms=True,
    ),
    "swformer_events": Small(
        partial(
            swformer.swformer, blocks=2, events=True, firing_head=True, patch_size=16, **_unheaded
        ),
        (3, 32, 32),
        keeps_norms=True,
    ),
    "spikeformer": Small(
        partial(
            spikeformer.spikeformer,
            num_classes=5,
            T=3,
            img_size=16,
            strides=(2, 2),
            dim=16,
            depth=2,
            num_heads=2,
            in_channels=3,
            drop_path=0.0,
        ),
        single_step=False,
    ),
    "spiking_resformer": Small(
        partial(spiking_resformer.spiking_resformer, **_resformer), (3, 32, 32)
    ),
    "spiking_resformer_events": Small(
        partial(
            spiking_resformer.spiking_resformer, **_resformer | {"in_channels": 2}, prologue="small"
        ),
        (2, 16, 8),
    ),
    "meta_spikeformer": Small(partial(meta_spikeformer.meta_spikeformer, **_meta)),
    "meta_spikeformer_odd": Small(partial(meta_spikeformer.meta_spikeformer, **_meta), (3, 23, 18)),
    "spikformer": Small(partial(spikformer.spikformer, patch_size=4, **_small)),
    "spikformer_cml": Small(
        partial(spikformer.spikformer, patch_size=4, downsampling="cml", **_small)
    ),
    "spikformer_v2": Small(partial(spikformer.spikformer_v2, **_small), (3, 32, 32)),
    "spikformer_v2_membrane": Small(
        partial(spikformer.spikformer_v2, shortcut="membrane", **_small), (3, 32, 32)
    ),
    "spikingformer": Small(
        partial(spikingformer.spikingformer, patch_size=4, downsampling="original", **_small)
    ),
    "spikingformer_imagenet": Small(
        partial(spikingformer.spikingformer, patch_size=16, **_small), (3, 32, 32)
    ),
    "spikingformer_cml": Small(
        partial(spikingformer.spikingformer, patch_size=4, downsampling="cml", **_small)
    ),
}


def parameters(build, **arguments) -> int:
    """How many parameters a network has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(**arguments).parameters())
