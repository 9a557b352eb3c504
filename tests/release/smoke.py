"""What an installed sj_ext must be able to do; the argument is the folder it must come from."""

import importlib.metadata
import importlib.resources
import sys
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_ext
from sj_ext import host
from sj_ext.model import TRevSNN
from sj_ext.pruning import MinimaxPruner, density, make_permanent


def expect(condition: bool, what: str) -> None:
    """Stop with a reason."""
    if not condition:
        sys.exit(f"smoke test on SpikingJelly {host.VERSION}: {what}")


here = Path(sj_ext.__file__)
expect(here.is_relative_to(Path(sys.argv[1]).resolve()), f"sj_ext comes from {here}")
expect(importlib.metadata.version("sj_ext") == sj_ext.__version__, "two versions")
files = importlib.resources.files("sj_ext")
expect((files / "py.typed").is_file(), "no py.typed")
expect("__global__" in (files / "ops/turn_on/kernel.cu").read_text(), "no kernel source")
expect(neuron.IMPLIFNode is sj_ext.neuron.IMPLIFNode, "names are not registered")

net = nn.Sequential(
    layer.Linear(6, 32), neuron.LIFNode(), layer.Linear(32, 64), layer.Linear(64, 3)
)
functional.set_step_mode(net, "m")
expect(
    sj_ext.swap_neurons(net, {neuron.LIFNode: neuron.IMPLIFNode}, imp_shape="neuron") == 1, "swap"
)
x_seq, target = torch.rand(4, 8, 6), torch.randint(3, (8,))
net(x_seq)
functional.reset_net(net)
optimizer = torch.optim.AdamW(sj_ext.parameter_groups(net, weight_decay=0.01, lr=1e-3))
pruner = MinimaxPruner(net, budget=0.3, schedule=6)
while not pruner.finished:
    optimizer.zero_grad()
    functional.lts_cross_entropy(net(x_seq), target).backward()
    optimizer.step()
    pruner.step()
    functional.reset_net(net)
make_permanent(net)
expect(density(net) <= 0.3, f"density {density(net)}")

model = TRevSNN((8, 8, 8, 8), 3, 2, in_channels=1, encode="repeat")
functional.tet_cross_entropy(model(torch.rand(2, 1, 16, 16)), torch.tensor([0, 2])).backward()
expect(all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), "gradients")
print(f"SpikingJelly {host.VERSION}: {sj_ext.__version__} from the wheel works")
