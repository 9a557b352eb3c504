"""What an event camera would see of still images: they move along saccades in front of it.

A pixel of an event camera compares the logarithm of its light with the one at its last event. When
the two differ by a threshold, it sends an event, ON for brighter and OFF for darker:

    n = floor(|log I - reference| / threshold) events, reference += (+/-) n * threshold.

The recordings from which N-MNIST and CIFAR10-DVS were made are of still images on a screen, seen by
a camera that moves, or that move themselves. Here the image moves along a closed path of straight
saccades, in small steps between which it is interpolated bilinearly, and the events of equal
stretches of time are summed into frames ``[T, N, 2, H, W]``, OFF before ON, as SpikingJelly's
``split_by="number"`` has them.

    python examples/event_camera.py --short                  # handwritten digits
    python examples/event_camera.py --data-dir CIFAR10 --plot events.png

Left out are noise, the delay of the pixel and its dead time; ``mismatch`` spreads the thresholds.

Source: Lichtsteiner, Posch and Delbruck, "A 128x128 120 dB 15 us Latency Asynchronous Temporal
Contrast Vision Sensor", IEEE JSSC 2008 (the pixel); Orchard et al., "Converting Static
Image Datasets to Spiking Neuromorphic Datasets Using Saccades", Frontiers in Neuroscience 2015 (the
path).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from command_line import DATA, Command, cifar10_folder, count, new_file, positive
from data import cifar10, digits
from torch.nn import functional as F

#: weights of red, green and blue in what a sensor without colour sees (ITU-R BT.601)
LUMA = (0.299, 0.587, 0.114)
#: corners of the path, in units of the amplitude, (down, right); it ends where it starts
TRIANGLE = ((0.0, 0.0), (1.0, 0.5), (0.0, 1.0), (0.0, 0.0))


def saccades(
    num_moves: int, amplitude: float, corners: Sequence[tuple[float, float]] = TRIANGLE
) -> torch.Tensor:
    """Positions of the image in pixels, ``[num_moves + 1, 2]`` (down, right).

    Args:
        num_moves: small moves in all, a multiple of the number of saccades, which take equal times.
        amplitude: pixels that one unit of ``corners`` stands for.
        corners: where saccades start and end.

    Raises:
        ValueError: ``num_moves`` is not a positive multiple of the number of saccades.
    """
    count = len(corners) - 1
    if num_moves < 1 or num_moves % count:
        raise ValueError(
            f"num_moves must be a positive multiple of the {count} saccades, got {num_moves}"
        )
    points = torch.tensor(corners)
    along = torch.linspace(0, 1, num_moves // count + 1)[1:, None]
    legs = [a + along * (b - a) for a, b in itertools.pairwise(points)]
    return amplitude * torch.cat([points[:1], *legs])


def moved(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Images ``[N, C, H, W]`` moved down and right by ``shift`` pixels; borders are drawn out."""
    height, width = images.shape[-2:]
    theta = torch.tensor(
        [[[1.0, 0.0, -2 * float(shift[1]) / width], [0.0, 1.0, -2 * float(shift[0]) / height]]]
    )
    theta = theta.to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def sense(light: Iterator[torch.Tensor], threshold: float | torch.Tensor) -> Iterator[torch.Tensor]:
    """Events of a sensor that watches a sequence of logarithmic light intensities.

    Args:
        light: tensors of one shape; the first is what the pixels compare the second with.
        threshold: contrast, above 0; a tensor gives every pixel its own.

    Yields:
        For every tensor but the first, how many OFF and ON events: ``[2, *]``.
    """
    light = iter(light)
    reference = next(light).clone()
    for seen in light:
        steps = (seen - reference) / threshold
        events = torch.stack([-steps, steps]).clamp(min=0).floor()
        reference += (events[1] - events[0]) * threshold
        yield events


def event_frames(
    images: torch.Tensor,
    num_frames: int,
    *,
    amplitude: float = 3.0,
    moves_per_frame: int = 4,
    threshold: float = 0.15,
    mismatch: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Events that still images cause on their way along the saccades, summed into frames.

    Args:
        images: ``[N, 1 or 3, H, W]`` in [0, 1].
        num_frames: T; ``num_frames * moves_per_frame`` is a multiple of the three saccades.
        amplitude: pixels that one unit of the path stands for, see :data:`TRIANGLE`.
        moves_per_frame: moves of the image within a frame.
        threshold: contrast at which a pixel sends an event.
        mismatch: standard deviation of the pixels' thresholds, as a share of ``threshold``; the
            same for all images, as it is one sensor.
        generator: of the mismatch.

    Returns:
        Numbers of events, ``[T, N, 2, H, W]``, OFF before ON.

    Raises:
        ValueError: images of another shape, or an argument out of range.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W], got {list(images.shape)}")
    for name, value in (("num_frames", num_frames), ("moves_per_frame", moves_per_frame)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not threshold > 0 or not mismatch >= 0:
        raise ValueError(
            f"threshold must be above 0 and mismatch at least 0, got {threshold} and {mismatch}"
        )
    if images.shape[1] == 3:
        images = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    thresholds = threshold
    if mismatch:
        spread = torch.randn(images.shape[-2:], generator=generator).to(images)
        thresholds = threshold * (1 + mismatch * spread).clamp(min=0.2)
    path = saccades(num_frames * moves_per_frame, amplitude)
    # dark pixels get a floor: the logarithm of a sensor's light is bounded by its dark current
    light = ((moved(images, shift)[:, 0] + 0.05).log() for shift in path)
    frames = images.new_zeros(num_frames, 2, len(images), *images.shape[-2:])
    for move, events in enumerate(sense(light, thresholds)):
        frames[move // moves_per_frame] += events
    return frames.transpose(1, 2)


def plot(images: torch.Tensor, frames: torch.Tensor, path: Path) -> None:
    """Images beside their event frames: ON minus OFF."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * (1 + len(frames)), 1.3 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), 1 + len(frames), squeeze=False)
    for row, image in zip(panels, images, strict=True):
        row[0].imshow(image.permute(1, 2, 0).squeeze(-1), cmap="gray")
    for n, row in enumerate(panels):
        for t, axes in enumerate(row[1:]):
            axes.imshow(frames[t, n, 1] - frames[t, n, 0], cmap="bwr", vmin=-6, vmax=6)
    for axes in panels.flat:
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def make_parser() -> Command:
    parser = Command(__doc__, short={"images": 4})
    add = parser.add_argument
    add("--data-dir", type=cifar10_folder, help=f"{DATA}; without it, scikit-learn's digits")
    add("--images", type=count, default=8, help="how many, from the first on")
    add("--frames", type=count, default=6, help="frames of events of each")
    add("--threshold", type=positive, default=0.15, help="change of log intensity of an event")
    add("--plot", type=new_file, help="save a figure (needs matplotlib)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse(argv)
    if args.data_dir is None:
        images = digits(16)[0].tensors[0][: args.images]
    else:
        images = cifar10(args.data_dir, True, args.images)[0].float() / 255
    frames = event_frames(images, args.frames, threshold=args.threshold)
    print(f"{len(images)} images of {list(images.shape[1:])} to {list(frames.shape)}")
    print(f"{'frame':>5}{'OFF per pixel':>15}{'ON per pixel':>15}{'pixels with events':>20}")
    for t, frame in enumerate(frames):
        off, on = frame.mean((0, 2, 3)).tolist()
        print(f"{t:>5}{off:15.3f}{on:15.3f}{float((frame > 0).any(1).float().mean()):20.3f}")
    if args.plot:
        plot(images, frames, args.plot)


if __name__ == "__main__":
    main()
