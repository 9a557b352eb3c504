"""Augmentation for train_trevsnn.py, as the published recipe has it: images and event frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def image_transforms(
    size: int, rand_augment: str | None, erasing: float, interpolation: str
) -> tuple[Callable, Callable]:
    """For training and validation on image folders."""
    train = create_transform(
        size,
        is_training=True,
        auto_augment=rand_augment,
        re_prob=erasing,
        re_mode="pixel",
        interpolation=interpolation,
    )
    val = transforms.Compose(
        [
            transforms.Resize(size * 232 // 224, InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    return posterizing_to_black(train), val


def cifar_transforms(
    size: int, rand_augment: str | None, erasing: float, interpolation: str
) -> tuple[Callable, Callable]:
    """For training and validation on CIFAR-10."""
    normalize = [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
    way = InterpolationMode(interpolation)
    scale = [] if size == 32 else [transforms.Resize(size, way)]
    train: list[Callable] = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    if rand_augment:
        fill = tuple(round(255 * mean) for mean in CIFAR_MEAN)
        train.append(rand_augment_transform(rand_augment, {"img_mean": fill}))
    train += scale + normalize
    if erasing:
        train.append(RandomErasing(erasing, mode="pixel", device="cpu"))
    return posterizing_to_black(transforms.Compose(train)), transforms.Compose(scale + normalize)


def posterizing_to_black(transform: transforms.Compose) -> transforms.Compose:
    """Let the posterize of timm's augmentations go down to 0 bits, which it asks for.

    At its greatest strength it keeps 0 of 8 bits. Pillow made a black image of that when the
    recipe was published, and has refused it since.
    """
    for step in transform.transforms:
        several = getattr(step, "ops", None) or itertools.chain(*getattr(step, "policy", ()))
        for operation in several:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """The ``bits`` highest of 8 bits of each channel."""
    if bits >= 8:
        return image
    return Image.new(image.mode, image.size) if bits <= 0 else ImageOps.posterize(image, bits)


class EventAugmentation:
    """One of five changes that is the same for every frame, then a flip, then a shifted crop.

    The changes: none, a shear, a shift along x or y, a rotation, a rectangle that is emptied; each
    of random strength, up to 0.3, 5 pixels, 30 degrees and 11% of the frame.

    Args:
        size: height and width of the frames; the crop's as well, out of 4 pixels of padding.
    """

    def __init__(self, size: int):
        self.size = size
        self.cutout = transforms.RandomErasing(1.0, (0.001, 0.11), (1.0, 1.0))
        self.crop = transforms.RandomCrop(size, padding=4)

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames ``[T, 2, H, W]``, changed."""
        change = ("none", "shear", "x", "y", "turn", "cut")[int(torch.randint(6, ()))]
        strength = 2 * float(torch.rand(())) - 1
        if change == "cut":
            frames = self.cutout(frames)
        elif change == "turn":
            frames = TF.rotate(frames, 30 * strength)
        elif change != "none":
            shear = [float(torch.rad2deg(torch.tensor(0.3 * strength))), 0.0]
            shift = [int(5 * strength) if change == axis else 0 for axis in "xy"]
            frames = TF.affine(frames, 0.0, shift, 1.0, shear if change == "shear" else [0.0, 0.0])
        if torch.rand(()) < 0.5:
            frames = frames.flip(-1)
        return self.crop(frames)
