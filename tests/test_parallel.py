"""Several processes: unused parameters under DDP, sharded parameters under FSDP2, forked workers.

The oracle is one process with the whole batch.
"""

import copy

import gloo
import pytest
import torch
import torch.distributed as dist
from cells import LinearLevel
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from sj_ext import host
from sj_ext.functional import lts_cross_entropy, tet_s_cross_entropy
from sj_ext.layer import TemporalReversible
from sj_ext.model import TRevSNN
from sj_ext.neuron import IMPLIFNode, TurnOffNode, TurnOnNode
from sj_ext.ops.bits import pack_bits, unpack_bits

functional, layer = host.functional, host.layer
BATCH = 4


def imp_network():
    net = nn.Sequential(
        layer.Linear(6, 8),
        IMPLIFNode(imp_init=(0.2, 0.4)),
        layer.Linear(8, 8),
        TurnOnNode(decay=0.8, decay_shape="channel"),
        layer.Linear(8, 4),
    )
    functional.set_step_mode(net, "m")
    net(torch.zeros(1, 2, 6))  # sizes are known before anything is sharded
    functional.reset_net(net)
    return net


class CellNetwork(nn.Module):
    """A cell between two layers; ``unused`` takes part on no rank, ``sometimes`` on the first."""

    def __init__(self, columns=False, **options):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        steps = 5 if columns else 1
        rows = [
            [LinearLevel(6, 8, 7), LinearLevel(8, 7, 5), LinearLevel(7, 5)] for _ in range(steps)
        ]
        decays = [[0.5, 0.9, 0.7]] * 5 if columns else [0.5, 0.9, 0.7]
        self.cell = TemporalReversible(rows if columns else rows[0], decays, **options)
        self.head = nn.Linear(5, 4)
        self.sometimes = nn.Linear(5, 4)
        self.unused = nn.Linear(5, 4)

    def forward(self, x_seq, use=False):
        u = self.cell(self.stem(x_seq))
        self.cell.reset()
        y_seq = self.head(u)
        return y_seq + self.sometimes(u) if use else y_seq


NETWORKS = {
    "imp": (imp_network, lambda: torch.randn(5, BATCH, 6)),
    "cell": (CellNetwork, lambda: torch.randn(5, BATCH, 6)),
    "cell, rebuilt": (
        lambda: CellNetwork(surrogate_function=host.surrogate.ATan()),
        lambda: torch.randn(5, BATCH, 6),
    ),
    "cell, columns": (lambda: CellNetwork(columns=True), lambda: torch.randn(5, BATCH, 6)),
    "model": (lambda: TRevSNN((4, 6, 8, 10), 4, 2), lambda: torch.randn(BATCH, 3, 32, 32)),
}


def build(name, seed):
    torch.manual_seed(seed)
    make, data = NETWORKS[name]
    net, x = make().double(), data().double()
    for parameter_name, p in net.named_parameters():
        if parameter_name.endswith("gamma"):
            nn.init.normal_(p, 1.0, 0.3)
    return net, x, torch.arange(BATCH) % 4


def part(x, target, rank):
    axis = 1 if x.dim() == 3 else 0
    return x.chunk(2, axis)[rank], target.chunk(2)[rank]


def train(net, x, target, steps=3, call=None):
    """Parameters' gradients of the first step and values after the last."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    first = {}
    for step in range(steps):
        optimizer.zero_grad()
        functional.reset_net(net)
        loss = tet_s_cross_entropy((call or net)(x), target)
        loss.backward()
        if step == 0:
            first = {f"grad {n}": whole(p.grad) for n, p in net.named_parameters()}
        optimizer.step()
    return {**first, **{n: whole(p.detach()) for n, p in net.named_parameters()}}


def whole(tensor):
    """All of a tensor of which this rank may hold a shard."""
    if tensor is None:
        return torch.zeros(0)
    return tensor.full_tensor().clone() if hasattr(tensor, "full_tensor") else tensor.clone()


def assert_alike(ranks, wanted):
    for found in ranks:
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            got = torch.as_tensor(found[name])
            if value.numel() == 0:  # no gradient at all, or zeros where a reducer made them
                assert not got.any()
                continue
            torch.testing.assert_close(
                got, value, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


# ---- DDP -----------------------------------------------------------------------------------------


def ddp_rank(rank, name, seed):
    net, x, target = build(name, seed)
    if name == "cell":
        parallel = DistributedDataParallel(net, find_unused_parameters=True)
        use = rank == 0  # a layer that only this rank runs
        return train(net, *part(x, target, rank), call=lambda x: parallel(x, use=use))
    parallel = DistributedDataParallel(net, find_unused_parameters=True)
    return train(net, *part(x, target, rank), call=parallel)


def test_ddp_with_parameters_that_a_rank_does_not_use(seed):
    ranks = gloo.run(ddp_rank, "cell", seed)
    net, x, target = build("cell", seed)

    def both_halves(x):
        halves = x.chunk(2, 1)
        return torch.cat([net(halves[0], use=True), net(halves[1])], 1)

    wanted = train(net, x, target, call=both_halves)
    assert wanted["grad unused.weight"].numel() == 0
    assert wanted["grad sometimes.weight"].any() and wanted["grad cell.decays.0"].any()
    assert_alike(ranks, wanted)


# ---- FSDP2 ---------------------------------------------------------------------------------------


def fsdp_ranks(rank, seed):
    """All networks in one group of processes, which take longer to start than to train."""
    results = {}
    for name in NETWORKS:
        for reshard in (True, False):
            net, x, target = build(name, seed)
            mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
            if hasattr(net, "cell"):
                fully_shard(net.cell, mesh=mesh, reshard_after_forward=reshard)
            fully_shard(net, mesh=mesh, reshard_after_forward=reshard)
            sharded = [p for p in net.parameters() if p.to_local().numel() < p.numel()]
            assert len(sharded) > 0
            found = train(net, *part(x, target, rank))
            results |= {f"{name} {reshard} {key}": value for key, value in found.items()}
    return results


def test_fsdp2_gives_the_gradients_and_steps_of_one_process(seed):
    ranks = gloo.run(fsdp_ranks, seed)
    wanted = {}
    for name in NETWORKS:
        found = train(*build(name, seed))
        assert sum(v.abs().sum() for k, v in found.items() if k.startswith("grad")) > 0
        for reshard in (True, False):
            wanted |= {f"{name} {reshard} {key}": value for key, value in found.items()}
    assert_alike(ranks, wanted)


# ---- DataParallel --------------------------------------------------------------------------------


def replica_of(module):
    """A replica as ``torch.nn.parallel.replicate`` makes it: parameters that are no leaves."""
    copies = {m: m._replicate_for_data_parallel() for m in module.modules()}
    for original, replica in copies.items():
        replica._former_parameters = {}
        for name, child in original._modules.items():
            replica._modules[name] = None if child is None else copies[child]
            setattr(replica, name, replica._modules[name])
        for name, p in original._parameters.items():
            replica._parameters[name] = None
            if p is not None:
                value = p * 1
                del replica._parameters[name]
                setattr(replica, name, value)
                replica._former_parameters[name] = value
    return copies[module]


def test_data_parallel_without_a_gpu_runs_the_network_itself():
    net, x, _ = build("cell", 3)
    assert torch.equal(nn.DataParallel(net)(x), net(x))


def test_a_replica_of_neurons_learns_for_the_original():
    net, x, _ = build("imp", 3)
    other = copy.deepcopy(net)
    replica_of(net)(x).square().sum().backward()
    other(x).square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")
    assert net[1].v == 0.0  # the replica's states are its own


def test_a_replica_of_a_cell_learns_on_plain_autograd_and_says_so_otherwise():
    """Replicas have no parameters of their own, whose gradients the cell could return."""
    net, x, _ = build("cell", 3)
    with pytest.raises(RuntimeError, match="memory='autograd'"):
        replica_of(net)(x).square().sum().backward()
    net.cell.memory = "autograd"
    other = copy.deepcopy(net)
    net.zero_grad()
    replica_of(net)(x).square().sum().backward()
    other(x).square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), other.named_parameters(), strict=True):
        if q[1].grad is not None:
            torch.testing.assert_close(p.grad, q[1].grad, msg=lambda m, name=name: f"{name}: {m}")


# ---- forked workers ------------------------------------------------------------------------------


class Work(Dataset):
    """Does in a worker what somebody might do to a sample: encode, spike, pack, score, train."""

    def __init__(self, net, x):
        self.net, self.x = net, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        net = copy.deepcopy(self.net)
        spikes = TurnOffNode(0.0)(x)
        bits = unpack_bits(pack_bits(spikes > 0), spikes.shape)
        y_seq = net(x)
        loss = lts_cross_entropy(y_seq, torch.zeros(y_seq.shape[1], dtype=torch.long))
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        return bits, loss.detach(), grads


@pytest.mark.parametrize("name", ["imp", "cell"])
def test_forked_workers_compute_what_the_parent_computes(name):
    net, _, _ = build(name, 5)
    data = Work(net, torch.randn(6, 5, 2, 6, dtype=torch.float64))
    wanted = [data[i] for i in range(len(data))]  # the parent has used everything before it forks
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        for found, expected in zip(loader, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
