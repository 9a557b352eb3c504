"""RevSNN's networks: sizes, independence of samples, and what does not work on them."""

import pytest
import torch

from sj_ext import host
from sj_ext.model import revsnn

#: (constructor, classes, parameters of the public program)
COUNTS = [
    ("revsresnet21", 10, 10_967_690),
    ("revsresnet21", 100, 11_048_420),
    ("revsresnet37", 10, 23_510_154),
    ("revsresnet37", 100, 23_590_884),
    ("revsresnet109", 10, 69_995_146),
    ("revsresnet24_dvs", 10, 260_362),
    ("revsresnet24_dvs", 11, 260_459),
    ("revsformer_2_384", 10, 5_766_586),
    ("revsformer_2_384", 100, 5_835_796),
    ("revsformer_4_384", 10, 9_323_962),
    ("revsformer_2_256_dvs", 10, 2_569_226),
]

SMALL = {
    "resnet": (
        lambda **a: revsnn.revsresnet(5, 3, channels=(4, 6), depths=(1, 2), **a),
        (3, 16, 16),
    ),
    "former": (lambda **a: revsnn.revsformer(5, 3, dim=16, num_heads=2, **a), (3, 16, 16)),
}


@pytest.mark.parametrize(("name", "classes", "count"), COUNTS)
def test_as_many_parameters_as_published(name, classes, count):
    with torch.device("meta"):
        model = getattr(revsnn, name)(num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("make", "shape"), SMALL.values(), ids=SMALL)
def test_both_memories_train_alike(make, shape):
    model = make().double()
    oracle = make(memory="autograd").double()
    oracle.load_state_dict(model.state_dict())
    x, grads = torch.randn(4, *shape, dtype=torch.float64), []
    for net in (model, oracle):
        net(x).mean(0).log_softmax(-1)[:, 0].sum().backward()
        grads.append([p.grad for p in net.parameters()])
    largest = max(float(g.abs().max()) for g in grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * largest)


@pytest.mark.parametrize(("make", "shape"), SMALL.values(), ids=SMALL)
def test_a_sample_does_not_see_the_others(make, shape):
    model = make().eval()
    x = torch.randn(3, *shape)
    with torch.no_grad():
        together = model(x)[:, 1]
        host.functional.reset_net(model)
        torch.testing.assert_close(together, model(x[1:2])[:, 0])


def test_event_frames_are_taken_step_by_step():
    model = revsnn.revsresnet24_dvs()
    assert model(torch.rand(5, 2, 2, 32, 32)).shape == (5, 2, 10)
    with pytest.raises(ValueError, match="C = 2"):
        model(torch.rand(2, 3, 32, 32))


def test_a_checkpoint_of_another_size_is_refused():
    state = revsnn.revsresnet(5, channels=(4, 6), depths=(1, 1)).state_dict()
    with pytest.raises(ValueError, match="RevSResNet"):
        revsnn.load_published(revsnn.revsresnet(5, channels=(4, 6), depths=(1, 2)), state)
    with pytest.raises(ValueError, match="depths"):
        revsnn.revsresnet(channels=(4, 6), depths=(1,))
