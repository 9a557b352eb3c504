"""Activations that are kept elsewhere: saved-tensor hooks see all that a cell holds."""

import copy

import pytest
import torch
from cells import conv_cell, conv_input, difference, gradients, twin
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from sj_ext.analysis import activation_memory
from sj_ext.layer import TemporalReversible
from sj_ext.model import TRevSNN
from sj_ext.surrogate import DSpike


class Disk:
    """Keeps saved tensors in files."""

    def __init__(self, folder):
        self.folder, self.written, self.read = folder, 0, 0

    def pack(self, tensor):
        path = self.folder / f"{self.written}.pt"
        self.written += 1
        torch.save(tensor.detach(), path)
        return path

    def unpack(self, path):
        self.read += 1
        return torch.load(path, weights_only=True)

    def hooks(self):
        return saved_tensors_hooks(self.pack, self.unpack)


def own_decays(cell):
    """Decays of their own for each step, whose gradients need potentials that are kept."""
    levels = list(cell.levels)
    return TemporalReversible(levels, [[0.5, 0.7, 0.6]] * 4, memory=cell.memory)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("kind", ["shared decays", "decay per step", "no rectangular window"])
def test_offloaded_records_give_the_same_gradients(kind, where, tmp_path, seed):
    cell, x = conv_cell(), conv_input(4)
    if kind == "decay per step":
        cell = own_decays(cell)
    if kind == "no rectangular window":
        # in float64: its slope jumps, and potentials that are found again may lie beside the jump
        cell, x = conv_cell(surrogate_function=DSpike()).double(), x.double()
    plain, offloaded, disk = copy.deepcopy(cell), copy.deepcopy(cell), Disk(tmp_path)
    with save_on_cpu() if where == "cpu" else disk.hooks():
        y, found = gradients(offloaded, x, seed)
    expected, wanted = gradients(plain, x, seed)
    assert torch.equal(y, expected)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    if where == "disk":
        assert disk.read >= disk.written > 12  # bits of levels and steps, fingerprints, weights
    assert difference(found, gradients(twin(cell), x, seed)[1]) < 1e-4


def test_an_offloaded_cell_holds_no_records(seed):
    """What the forward pass leaves on the device is its result alone."""
    cell, x = conv_cell(), conv_input(8)
    kept = []

    def forward():
        total = cell(x).sum()
        cell.reset()
        return total

    forward().backward()
    _, held = activation_memory(forward)

    def pack(tensor):
        kept.append(tensor.numpy().tobytes() if tensor.numel() < 10**5 else None)
        return len(kept) - 1, tensor.dtype, tensor.shape

    def unpack(entry):
        raise AssertionError("nothing is undone here")

    with saved_tensors_hooks(pack, unpack):
        _, left = activation_memory(forward)
    assert len(kept) > 24
    assert left.saved < held.saved / 8


@pytest.mark.parametrize("norm", ["ws", "bn"])
def test_trevsnn_trains_offloaded(norm, tmp_path, seed):
    net = TRevSNN((4, 4, 6, 8), 5, 3, norm=norm)
    twin_net, disk = copy.deepcopy(net), Disk(tmp_path)
    x = torch.randn(3, 3, 32, 32)
    torch.manual_seed(seed)
    with disk.hooks():
        net(x).square().sum().backward()
    torch.manual_seed(seed)
    twin_net(x).square().sum().backward()
    assert disk.read > 0
    for (name, p), q in zip(net.named_parameters(), twin_net.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_a_cell_inside_a_checkpoint(seed):
    """Non-reentrant checkpointing hands back what a second forward pass has saved."""
    cell, x = conv_cell(), conv_input(4)
    plain = copy.deepcopy(cell)
    cell.eval(), plain.eval()  # batch statistics would move twice, as in any checkpoint

    def run(x):
        cell.reset()
        return cell(x)

    y = checkpoint(run, x, use_reentrant=False)
    y.square().sum().backward()
    plain(x).square().sum().backward()
    for (name, p), q in zip(cell.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)
