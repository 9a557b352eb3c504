"""The simulated event camera, against one pixel at a time and against what events stand for."""

import math

import event_camera
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def events_of_a_pixel(light, threshold):
    """OFF and ON events of one pixel at each step, an event at a time."""
    reference, counted = light[0], []
    for seen in light[1:]:
        off = on = 0
        while seen - reference >= threshold:
            reference, on = reference + threshold, on + 1
        while reference - seen >= threshold:
            reference, off = reference - threshold, off + 1
        counted.append((off, on))
    return counted


@given(st.lists(st.integers(-40, 40), min_size=2, max_size=8), st.integers(1, 8))
@settings(deadline=None)
def test_a_pixel_sends_one_event_per_threshold_crossed(eighths, threshold):
    # multiples of 1/8 with exact arithmetic, so that no rounding decides
    light = [value / 8 for value in eighths]
    threshold = 2.0 ** (threshold // 2) / 8
    got = event_camera.sense((torch.tensor([value]) for value in light), threshold)
    assert [tuple(step[:, 0].tolist()) for step in got] == events_of_a_pixel(light, threshold)


def test_events_add_up_to_the_change_of_light():
    light = torch.randn(7, 5, 5, dtype=torch.float64).cumsum(0)
    thresholds = 0.1 + torch.rand(5, 5, dtype=torch.float64)
    net = sum(step[1] - step[0] for step in event_camera.sense(light, thresholds))
    left_over = (light[-1] - light[0] - net * thresholds).abs()
    assert (left_over < thresholds).all()


def test_what_does_not_change_sends_nothing():
    even = torch.rand(3, 3, 1, 1).expand(3, 3, 12, 12)
    assert not event_camera.event_frames(even, 6).any()
    still = torch.rand(3, 1, 12, 12)
    assert not event_camera.event_frames(still, 6, amplitude=0.0).any()


def test_a_bright_edge_that_moves_right_is_on_in_front_and_off_behind():
    bar = torch.full((1, 1, 9, 24), 0.1)
    bar[..., 8:12] = 0.9
    light = (event_camera.moved(bar, torch.tensor([0.0, x]))[:, 0].log() for x in (0.0, 2.0))
    ((off, on),) = event_camera.sense(light, 0.2)
    assert on[0].any(0).nonzero().flatten().tolist() == [12, 13]
    assert off[0].any(0).nonzero().flatten().tolist() == [8, 9]


def test_whole_pixels_are_moved_exactly():
    images = torch.rand(2, 3, 10, 11)
    there = event_camera.moved(images, torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(there[..., 2:, :-3], images[..., :-2, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(there[..., :2, :-3], images[..., :1, 3:].expand(-1, -1, 2, -1),
                               atol=1e-5, rtol=0)  # fmt: skip


def test_the_path_is_closed_and_even():
    path = event_camera.saccades(12, 2.5)
    assert path.shape == (13, 2)
    assert path[0].tolist() == path[-1].tolist() == [0, 0]
    lengths = (path[1:] - path[:-1]).norm(dim=1).view(3, 4)
    torch.testing.assert_close(lengths, lengths[:, :1].expand(3, 4))
    torch.testing.assert_close(lengths.sum(1)[0], torch.tensor(2.5 * math.hypot(1, 0.5)))


def test_frames_hold_all_events_of_their_moves():
    images = torch.rand(2, 3, 8, 8)
    fine = event_camera.event_frames(images, 12, moves_per_frame=1)
    coarse = event_camera.event_frames(images, 3, moves_per_frame=4)
    assert coarse.shape == (3, 2, 2, 8, 8)
    assert coarse.any()
    assert torch.equal(fine.view(3, 4, 2, 2, 8, 8).sum(1), coarse)


def test_mismatch_is_of_the_sensor(seed):
    image = torch.rand(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(seed)
    frames = event_camera.event_frames(
        image.expand(2, 1, 8, 8), 6, mismatch=0.3, generator=generator
    )
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert not torch.equal(frames[:, :1], event_camera.event_frames(image, 6))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": torch.rand(2, 2, 8, 8)}, "images"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 4, "moves_per_frame": 1}, "num_moves"),
        ({"threshold": 0.0}, "threshold"),
        ({"mismatch": -1.0}, "mismatch"),
    ],
)
def test_arguments_out_of_range_are_named(change, named):
    arguments = {"images": torch.rand(2, 1, 8, 8), "num_frames": 6} | change
    with pytest.raises(ValueError, match=named):
        event_camera.event_frames(**arguments)


def test_short_run(monkeypatch, capsys, tmp_path):
    path = tmp_path / "events.png"
    monkeypatch.setattr("sys.argv", ["event_camera.py", "--short", "--plot", str(path)])
    event_camera.main()
    assert "[6, 4, 2, 16, 16]" in capsys.readouterr().out
    assert path.stat().st_size > 0
