"""Ours from a configuration and a state of other sizes than those that are recorded."""

import functools
import pathlib

import numpy
import pytest
import torch
from published.cases import build

from sj_ext import host
from sj_ext.layer.spiking import lif
from sj_ext.model.transformer import (
    autost,
    load_published,
    published_names,
    sglformer,
    spikeformer,
    spikformer,
    spiking_resformer,
    spikingformer,
    sts,
    swformer,
)

RECORDINGS = pathlib.Path(__file__).parent / "recordings"
_sizes = {"dim": 24, "depth": 1, "num_heads": 3, "mlp_ratio": 3}
_config = {"num_heads": 3, "T": 3}

#: by a name that only says the method: ours in other sizes, the configuration that a recording
#: would hold, the recording whose names it has, and the shape of an input for the program
VARIATIONS = {
    "spikingformer_other": (
        functools.partial(spikingformer.spikingformer, 4, 3, patch_size=4, **_sizes),
        _config,
        "spikingformer_model_cifar",
        (2, 3, 12, 20),
    ),
    "cml_model_spikingformer_other": (
        functools.partial(
            spikingformer.spikingformer, 4, 3, in_channels=2, downsampling="cml", **_sizes
        ),
        _config | {"patch_size": 16, "cls": "CML dvs128-gesture/model.py vit_snn"},
        "cml_model_spikingformer_imagenet",
        (2, 3, 2, 48, 32),
    ),
    "cml_model_spikformer_other": (
        functools.partial(spikformer.spikformer, 4, 3, patch_size=4, downsampling="cml", **_sizes),
        _config,
        "cml_model_spikformer_cifar",
        (2, 3, 12, 20),
    ),
    "ct_other": (
        functools.partial(
            spikeformer.spikeformer,
            4,
            3,
            img_size=12,
            strides=(1, 1, 2, 1),
            kernel_size=5,
            dim=24,
            depth=1,
            num_heads=3,
            mlp_ratio=3,
            in_channels=3,
        ),
        {
            "n_input_channels": 3,
            "num_classes": 4,
            "num_frames": 3,
            "img_size": 12,
            "stride": [1, 1, 2, 1],
            "kernel_size": 5,
            "padding": 2,
            "embed_dim": 24,
            "depth": 1,
            "num_heads": 3,
            "mlp_ratio": 3,
            "drop_path_rate": 0.0,
            "cls": "PLIF",
        },
        "ct_model_plif",
        (2, 3, 3, 12, 12),
    ),
    "resformer_other": (
        functools.partial(
            spiking_resformer.spiking_resformer,
            4,
            3,
            lif(node=host.neuron.ParametricLIFNode),
            widths=(6, 12),
            num_heads=(3, 2),
            patch_sizes=(4, 2),
            layers=2 * (("DSSA", "GWFFN"),),
            group_size=8,
            prologue="small",
        ),
        {
            "T": 3,
            "planes": [6, 12],
            "num_heads": [3, 2],
            "patch_sizes": [4, 2],
            "layers": [["DSSA", "GWFFN"], ["DSSA", "GWFFN"]],
            "group_size": 8,
        },
        "resformer_model_dvs",
        (2, 3, 3, 8, 24),
    ),
    "sglformer_other": (
        functools.partial(
            sglformer.sglformer, 4, 3, variant="dvs", in_channels=2, image_size=(32, 64), **_sizes
        ),
        _config | {"variant": "dvs", "img_size_h": 32, "img_size_w": 64, "N": 2},
        "sglformer_model_dvs",
        (2, 3, 2, 32, 64),
    ),
    "sts_other": (
        functools.partial(sts.sts_transformer, 4, 3, image_size=(48, 32), **_sizes | {"dim": 48}),
        _config | {"img_size": (48, 32), "tau": 0.75},
        "sts_model",
        (2, 3, 2, 48, 32),
    ),
    "swformer_other": (
        functools.partial(
            swformer.swformer, 4, 3, dim=24, depth=1, blocks=3, mlp_ratio=3, v_threshold=0.75
        ),
        {"T": 3, "variant": "swc", "haar_vth": 0.75},
        "swformer_model_cifar",
        (2, 3, 32, 32),
    ),
}


def tensors_recorded(stem):
    arrays = numpy.load(RECORDINGS / f"{stem}.npz")
    return {k[6:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("param/")}


def public_state(model, recorded):
    """A state dict of the program, with the sizes of ``model`` and numbers of its own."""
    ours = model.state_dict()
    state = {}
    for name, own in published_names(model, recorded).items():
        rank = recorded[name].dim()
        shape = recorded[name].shape if own is None else ours[own].shape
        shape = (*shape[:rank], *(rank - len(shape)) * (1,))
        state[name] = torch.rand(shape).to(recorded[name].dtype)
    return state


@pytest.mark.parametrize("name", VARIATIONS)
def test_ours_follows_configuration_and_state(name):
    make, config, recording, shape = VARIATIONS[name]
    recorded = tensors_recorded(recording)
    model = make()
    state = public_state(model, recorded)
    names = published_names(model, state)
    module, tensors = build(name, config, state)
    assert set(tensors) == {public for public, own in names.items() if own is not None}
    for public, tensor in tensors.items():
        assert torch.equal(tensor.detach(), state[public])
    with torch.no_grad():
        y = module.eval()(torch.rand(shape))
    assert y.shape[-1] == 4 and bool(y.isfinite().all())


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_name_has_one_tensor_of_ours_and_another_size_is_refused(name):
    make, _, recording, _ = VARIATIONS[name]
    model = make()
    state = public_state(model, tensors_recorded(recording))
    names = published_names(model, state)
    assert sorted(own for own in names.values() if own is not None) == sorted(model.state_dict())
    assert load_published(model, state) == [p for p, own in names.items() if own is None]
    last = next(p for p, own in reversed(names.items()) if own == "head.linear.weight")
    with pytest.raises(ValueError, match=f"{last} must have the shape"):
        load_published(model, state | {last: torch.rand(9, 9)})
    with pytest.raises(ValueError, match="nothing for head.linear.weight"):
        load_published(model, {p: v for p, v in state.items() if p != last})
    with pytest.raises(ValueError, match="unknown names, first stranger"):
        load_published(model, state | {"stranger": torch.rand(1)})


def test_a_block_of_autost_may_differ_from_the_next():
    model = autost.autost(4, 3, dim=24, num_heads=(3, 2), mlp_ratios=(1, 2.5))
    assert [len(block.mlp.fc1.bn.weight) for block in model.body] == [24, 60]
