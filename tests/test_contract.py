"""What every neuron of the plugin keeps, from one table: ``PLUGIN`` in ``nodes.py``."""

import copy
import io
import pickle

import nodes
import pytest
import torch
from contracts import SHAPE, assert_same, gradients, ready, run, sequence, twin_of
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.neuron import LearnableInitialPotential

functional, layer = host.functional, host.layer
MODES = "s", "m"


@pytest.fixture(params=nodes.PLUGIN)
def contract(request):
    return nodes.PLUGIN[request.param]


@pytest.fixture(params=MODES)
def step_mode(request):
    return request.param


def memories(node):
    return dict(node._memories)


# ---- the table -----------------------------------------------------------------------------------


def test_every_neuron_of_the_package_is_in_the_table():
    exported = {
        cls
        for cls in (getattr(sj_ext.neuron, name) for name in sj_ext.neuron.__all__)
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    }
    assert LearnableInitialPotential not in exported  # a mixin, no module by itself
    assert exported <= {type(contract.make()) for contract in nodes.PLUGIN.values()}
    registered = {entry.name for entry in sj_ext.registered() if entry.place.endswith(".neuron")}
    assert registered == {*sj_ext.neuron.__all__}


# ---- steps and states ----------------------------------------------------------------------------


def test_both_step_modes_compute_the_same(contract):
    x_seq = sequence(dtype=torch.float64)
    node = ready(contract, "m", torch.float64)
    single = twin_of(node)
    functional.set_step_mode(single, "s")
    y_m, y_s = node(x_seq), run(single, x_seq)
    assert y_m.sum() > 0 and torch.equal(y_m, y_s)
    assert_same(gradients(node, x_seq, y_m), gradients(single, x_seq, y_s), rtol=1e-9, atol=1e-12)
    for name, value in memories(node).items():
        torch.testing.assert_close(memories(single)[name], value)


def test_a_sequence_in_parts_is_the_whole_sequence(contract, step_mode):
    x_seq = sequence()
    node = ready(contract, step_mode)
    whole = run(node, x_seq)
    functional.reset_net(node)
    parts = torch.cat([run(node, x_seq[:1]), run(node, x_seq[1:])])
    torch.testing.assert_close(parts, whole)


def test_a_reset_starts_again_and_a_second_one_changes_nothing(contract, step_mode):
    x_seq = sequence()
    node = ready(contract, step_mode)
    start, state = memories(node), copy.deepcopy(node.state_dict())
    y_seq = run(node, x_seq)
    assert set(memories(node)) == set(start)
    for _ in range(2):
        functional.reset_net(node)
        assert memories(node) == start
        assert all(torch.equal(node.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(run(node, x_seq), y_seq)


def test_the_potential_is_in_v(contract, step_mode):
    node = ready(contract, step_mode)
    if not contract.potential:
        assert not memories(node)
        return
    assert isinstance(node.v, float)
    x_seq = sequence()
    run(node, x_seq)
    assert node.v.shape == (*contract.levels, *SHAPE[1:])
    assert not node.v._is_view()  # the hosts detach memories in place


def test_detach_cuts_the_graph_and_keeps_the_values(contract, step_mode):
    x_seq = sequence()
    node = ready(contract, step_mode)
    run(node, x_seq)
    before = {name: value.detach().clone() for name, value in memories(node).items()}
    functional.detach_net(node)
    for name, value in memories(node).items():
        assert not value.requires_grad and torch.equal(value, before[name])
    again = sequence()
    y_seq = run(node, again)
    grad, *_ = torch.autograd.grad(y_seq.sum(), [again, x_seq], allow_unused=True)
    assert grad.shape == again.shape and _ == [None]


def test_evaluation_and_no_grad_change_no_output(contract, step_mode):
    x_seq = sequence()
    node = ready(contract, step_mode)
    y_seq = run(node, x_seq)
    # TorchScript of 0.0.0.0.14 that ran for gradients wants to save what inference mode made
    frozen = x_seq.detach() if host.GENERATION == 1 else x_seq
    for context, x in ((torch.no_grad, x_seq), (torch.inference_mode, frozen)):
        functional.reset_net(node)
        with context():
            assert torch.equal(run(node.eval(), x), y_seq)
    functional.reset_net(node)
    assert torch.equal(run(node.train(), x_seq.detach()), y_seq)


def test_store_v_seq_keeps_every_potential(contract):
    node = ready(contract)
    if not contract.potential:
        assert not hasattr(node, "store_v_seq")
        return
    x_seq = sequence()
    y_seq = node(x_seq)
    assert getattr(node, "v_seq", None) is None
    functional.reset_net(node)
    single = twin_of(node)
    node.store_v_seq = True
    assert torch.equal(node(x_seq), y_seq)
    functional.set_step_mode(single, "s")
    for x, v in zip(x_seq, node.v_seq, strict=True):
        single(x)
        torch.testing.assert_close(v, single.v)
    assert torch.equal(node.v_seq[-1], node.v)


def test_another_batch_size_follows_the_host(contract, step_mode):
    node = ready(contract, step_mode)
    fresh = twin_of(node)
    x_seq = sequence()
    run(node, x_seq)
    part = x_seq[:, :2]
    if host.GENERATION == 1 and contract.potential:
        with pytest.raises((RuntimeError, ValueError)):
            run(node, part)
        functional.reset_net(node)
    assert torch.equal(run(node, part), run(fresh, part))


# ---- dtypes, devices, layouts --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_in_and_out(contract, step_mode, dtype):
    node = ready(contract, step_mode, dtype)
    x_seq = sequence(dtype=dtype)
    y_seq = run(node, x_seq)
    assert y_seq.dtype == dtype and y_seq.sum() > 0
    found = gradients(node, x_seq, y_seq)
    assert [g.dtype for g in found if g is not None] == [
        p.dtype for p, g in zip([x_seq, *node.parameters()], found, strict=True) if g is not None
    ]
    assert all(g.isfinite().all() for g in found if g is not None)
    for value in memories(node).values():
        assert value.dtype in (dtype, torch.float32)
    node.double()  # in the middle of a sequence the memories come along
    assert all(value.dtype == torch.float64 for value in memories(node).values())
    assert run(node, x_seq.double()).dtype == torch.float64


def test_half_precision_fires_nearly_as_float32(contract):
    x_seq = sequence().detach()
    node = ready(contract)
    y_seq = node(x_seq)
    functional.reset_net(node)
    coarse = node.bfloat16()(x_seq.bfloat16())
    tolerance = 0.05 if contract.graded else 0
    assert ((coarse.float() - y_seq).abs() > tolerance).float().mean() < 0.1


def test_shapes_on_the_meta_device(contract, step_mode):
    node = ready(contract, step_mode).to("meta")
    y_seq = run(node, sequence().to("meta"))
    assert y_seq.device.type == "meta" and y_seq.shape == SHAPE and y_seq.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
def test_a_gpu_computes_what_the_cpu_computes(contract, step_mode):
    x_seq = sequence(dtype=torch.float64)
    node = ready(contract, step_mode, torch.float64)
    y_seq = run(node, x_seq)
    on_gpu = twin_of(node).cuda()
    x_gpu = x_seq.detach().cuda().requires_grad_()
    y_gpu = run(on_gpu, x_gpu)
    assert torch.equal(y_gpu.cpu(), y_seq)
    found = [g if g is None else g.cpu() for g in gradients(on_gpu, x_gpu, y_gpu)]
    assert_same(found, gradients(node, x_seq, y_seq))


LAYOUTS = {
    "transposed": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
    "channels last": lambda x: (
        x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    ),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda x: torch.stack([x, -x], -1)[..., 0],
    "off the grid": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_input_changes_no_result(contract, step_mode, layout):
    x_seq = sequence()
    other = LAYOUTS[layout](x_seq.detach()).requires_grad_()
    assert torch.equal(other, x_seq)
    if layout != "off the grid":
        assert not other.is_contiguous()
    node = ready(contract, step_mode)
    strange = twin_of(node)
    y_seq, again = run(node, x_seq), run(strange, other)
    assert torch.equal(again, y_seq)
    assert_same(gradients(strange, other, again), gradients(node, x_seq, y_seq))


def test_one_tensor_at_every_step(contract, step_mode):
    x = sequence()[0].detach().requires_grad_()
    node = ready(contract, step_mode)
    y_seq = run(node, x.expand(SHAPE))
    found = gradients(node, x, y_seq)[0]
    functional.reset_net(node)
    x_seq = x.detach().expand(SHAPE).clone().requires_grad_()
    again = run(node, x_seq)
    assert torch.equal(y_seq, again)
    torch.testing.assert_close(found, gradients(node, x_seq, again)[0].sum(0))


@pytest.mark.parametrize("axis", [1, 4])
def test_empty_batches_and_maps(contract, step_mode, axis):
    shape = tuple(0 if i == axis else size for i, size in enumerate(SHAPE))
    node = contract.make()
    functional.set_step_mode(node, step_mode)
    x_seq = sequence(shape)
    y_seq = run(node, x_seq)
    assert y_seq.shape == shape
    assert torch.autograd.grad(y_seq.sum(), x_seq)[0].shape == shape
    functional.reset_net(node)


def test_no_step_at_all(contract):
    node = ready(contract)
    x_seq = sequence((0, *SHAPE[1:]))
    if contract.runs_on is None:
        start = memories(node)
        assert node(x_seq).shape == x_seq.shape
        assert memories(node) == start
        return
    hosts = nodes.make(contract.runs_on, step_mode="m")
    with pytest.raises(Exception) as wanted:
        hosts(x_seq)
    with pytest.raises(wanted.type):
        node(x_seq)


def test_autocast(contract, step_mode):
    net = nn.Sequential(
        layer.Linear(6, 5, step_mode=step_mode), contract.make(), layer.Linear(5, 3)
    )
    functional.set_step_mode(net, step_mode)
    x_seq = torch.randn(4, 3, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net[0](x_seq) if step_mode == "m" else net[0](x_seq[0])
        spikes = net[1](hidden)
        assert hidden.dtype == torch.bfloat16
        wanted = hidden.dtype
        if contract.runs_on is not None:  # the host's nodes leave it to autocast's own rules
            wanted = nodes.make(contract.runs_on, step_mode=step_mode)(hidden).dtype
        assert spikes.dtype == wanted
        net[2](spikes).float().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ---- copies and checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node))])
@pytest.mark.parametrize("when", ["new", "ready", "running"])
def test_copies_go_on_by_themselves(contract, step_mode, how, when):
    x_seq = sequence().detach()
    node = ready(contract, step_mode) if when != "new" else contract.make(step_mode=step_mode)
    if when == "running":
        with torch.no_grad():
            run(node, x_seq[:2])
    other = how(node)
    assert type(other) is type(node) and repr(other) == repr(node)
    if when == "new":  # a size that comes from the first input is drawn then
        run(node, x_seq), functional.reset_net(node)
        run(other, x_seq), functional.reset_net(other)
        other.load_state_dict(node.state_dict())
    y_seq = run(node, x_seq)
    assert torch.equal(run(other, x_seq), y_seq)
    for mine, theirs in zip(node.parameters(), other.parameters(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()
    for name, value in memories(node).items():
        assert memories(other)[name] is not value


def test_a_checkpoint_holds_the_parameters_and_no_state(contract, step_mode):
    x_seq = sequence()
    node = ready(contract, step_mode)
    with torch.no_grad():
        for parameter in node.parameters():
            parameter.add_(0.01)
    y_seq = run(node, x_seq)
    file = io.BytesIO()
    torch.save(node.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    learned = {name for name, _ in (*node.named_parameters(), *node.named_buffers())}
    assert set(saved) == learned
    fresh = contract.make(step_mode=step_mode)
    fresh.load_state_dict(saved)
    assert torch.equal(run(fresh, x_seq), y_seq)


# ---- compilers -----------------------------------------------------------------------------------


def test_export(contract, step_mode):
    x_seq = sequence().detach()
    x = x_seq if step_mode == "m" else x_seq[0]
    node = ready(contract, step_mode).eval()
    program = torch.export.export(node, (torch.zeros_like(x),))
    functional.reset_net(node)
    assert torch.equal(program.module()(x), node(x))
