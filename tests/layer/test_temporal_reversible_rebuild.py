"""A rebuilt potential stays within the tolerance that the steps in between were chosen for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_ext.layer.temporal_reversible.anchors import anchor_steps


@given(
    decay=st.floats(0.002, 1.5),
    tolerance=st.sampled_from([1e-6, 1e-5, 1e-4, 1e-3]),
    num_steps=st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    draw_seed=st.integers(0, 2**31 - 1),
)
def test_inversion_from_the_kept_steps(decay, tolerance, num_steps, dtype, draw_seed):
    torch.manual_seed(draw_seed)
    a = torch.tensor(decay, dtype=dtype)
    f = torch.randn(num_steps, 200, dtype=dtype)
    u = [f[0]]
    for current in f[1:]:
        u.append(torch.addcmul(current, a, u[-1]))
    last = num_steps - 1
    kept = anchor_steps(last, decay, dtype, tolerance)
    assert last in kept
    scale = max(float(x.abs().max()) for x in u)
    rebuilt = None
    for t in range(last, -1, -1):
        rebuilt = u[t] if t in kept else (rebuilt - f[t + 1]) / a
        assert float((rebuilt - u[t]).abs().max()) <= tolerance * scale


def test_no_step_is_kept_where_none_is_needed():
    assert anchor_steps(-1, 0.5, torch.float32, 1e-4) == frozenset()


def test_a_gentler_decay_keeps_fewer_steps():
    counts = [
        len(anchor_steps(99, a, torch.float32, 1e-4)) for a in (0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    assert len(anchor_steps(99, 0.9, torch.bfloat16, 1e-4)) == 100
