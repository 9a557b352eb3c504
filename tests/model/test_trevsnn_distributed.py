"""Two processes with half of the batch each learn what one with the whole batch learns."""

import gloo
import torch
from torch.nn.parallel import DistributedDataParallel

from sj_ext.functional import tet_cross_entropy
from sj_ext.model import TRevSNN


def network(norm="ws") -> TRevSNN:
    torch.manual_seed(11)
    net = TRevSNN((4, 6, 8, 10), 5, 3, norm=norm).double()
    for name, p in net.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(p, 1.0, 0.3)
    return net


def gradients(net, model, x, target):
    tet_cross_entropy(net(x), target).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def half(rank, x, target):
    model = network()
    net = DistributedDataParallel(model)  # no find_unused_parameters: each has a gradient
    part = slice(2 * rank, 2 * rank + 2)
    return gradients(net, model, x[part], target[part])


def test_gradients_equal_those_of_the_whole_batch():
    x, target = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    model = network()
    whole = gradients(model, model, x, target)
    for got in gloo.run(half, x, target):
        for name, grad in whole.items():
            torch.testing.assert_close(
                torch.as_tensor(got[name]), grad, msg=lambda m, name=name: f"{name}: {m}"
            )
