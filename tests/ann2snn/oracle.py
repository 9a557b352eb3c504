"""The equations of a conversion written down once more, in loops over plain tensors."""

import torch

from sj_ext import host


def run(snn, x, steps):
    """Mean outputs of a converted network after 1, 2, ... steps, in step mode ``'s'``."""
    host.functional.set_step_mode(snn, "s")
    host.functional.reset_net(snn)
    with torch.no_grad():
        outputs = torch.stack([snn(x) for _ in range(steps)])
    host.functional.reset_net(snn)
    return outputs.cumsum(0) / torch.arange(1, steps + 1).view(-1, *[1] * (outputs.dim() - 1))


def neuron(z_seq, theta, v0=0.0, delta=0.0, gain=1.0, reset="soft", negative=None):
    """``[T, N, *]`` currents to outputs in units of the activation, step by step."""
    v = torch.zeros_like(z_seq[0]) + v0
    count = torch.zeros_like(v)
    out = []
    for z in z_seq:
        h = v + gain * z + delta
        up = (h >= theta).to(h)
        v = h - theta * up if reset == "soft" else h * (1 - up)
        down = torch.zeros_like(up)
        if negative is not None and negative[0] == "leaky":
            down = (h <= -theta / negative[1]).to(h)
            v = v + theta / negative[1] * down
        if negative is not None and negative[0] == "counted":
            count = count + up
            down = ((v <= -negative[1] * theta) & (count > 0)).to(h)
            v = v + theta * down
            count = count - down
        out.append(theta * (up - down))
    return torch.stack(out)


def chain(weights, theta, x, steps, **options):
    """Outputs of a chain of linear layers with neurons between; ``weights`` are (W, b) pairs."""
    values = x.expand(steps, *x.shape)
    for i, (weight, bias) in enumerate(weights):
        values = values @ weight.T + bias
        if i < len(weights) - 1:
            each = {k: v[i] if isinstance(v, list) else v for k, v in options.items()}
            values = neuron(values, theta[i], **each)
    return values
