"""Data for train_trevsnn.py: image folders, CIFAR-10, event datasets, and an order that resumes.

Every sample is augmented with random numbers of its own, which depend on the seed, the epoch and
the sample only. Workers, their number, and where in an epoch a run starts make no difference.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch.utils.data import Dataset, Sampler
from torchvision import datasets, transforms

IMAGES = ("imagefolder", "cifar10")
EVENTS = ("cifar10dvs", "dvs128gesture", "ncaltech101")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def build_datasets(
    name: str,
    root: Path,
    *,
    size: int,
    num_steps: int,
    rand_augment: str | None,
    erasing: float,
) -> tuple[Dataset, Dataset, int]:
    """Training set, validation set and number of classes."""
    if name in EVENTS:
        return _event_datasets(name, root, size, num_steps)
    if name == "cifar10":
        train, test = _cifar_transforms(size, rand_augment, erasing)
        if (root / "train.npz").exists():
            return (
                PackedImages(root / "train.npz", train),
                PackedImages(root / "test.npz", test),
                10,
            )
        return (
            datasets.CIFAR10(root, True, train, download=True),
            datasets.CIFAR10(root, False, test, download=True),
            10,
        )
    common = {"input_size": size, "interpolation": "bicubic"}
    augment = create_transform(
        is_training=True, auto_augment=rand_augment, re_prob=erasing, re_mode="pixel", **common
    )
    train_set = datasets.ImageFolder(_folder(root, "train"), augment)
    val_set = datasets.ImageFolder(_folder(root, "val"), create_transform(**common))
    if train_set.classes != val_set.classes:
        raise ValueError(f"--data-dir {root}: train and val must have the same class folders")
    return train_set, val_set, len(train_set.classes)


def _folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise ValueError(f"--data-dir {root} must have a folder {name!r} with a folder per class")
    return root / name


def _cifar_transforms(size: int, rand_augment: str | None, erasing: float):
    normalize = [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
    scale = [] if size == 32 else [transforms.Resize(size)]
    train: list[Callable] = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    if rand_augment:
        fill = tuple(round(255 * mean) for mean in CIFAR_MEAN)
        train.append(rand_augment_transform(rand_augment, {"img_mean": fill}))
    train += scale + normalize
    if erasing:
        train.append(RandomErasing(erasing, mode="pixel", device="cpu"))
    return transforms.Compose(train), transforms.Compose(scale + normalize)


class PackedImages(Dataset):
    """Images packed as JPEG files end to end: arrays ``jpeg``, ``offset`` and ``label``."""

    def __init__(self, path: Path, transform: Callable):
        with numpy.load(path) as arrays:
            self.jpeg, self.offset, self.label = (arrays[n] for n in ("jpeg", "offset", "label"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int):
        data = self.jpeg[self.offset[index] : self.offset[index + 1]].tobytes()
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB")), int(self.label[index])


def _event_datasets(name: str, root: Path, size: int, num_steps: int):
    from spikingjelly.datasets import cifar10_dvs, dvs128_gesture, n_caltech101

    frames = {"data_type": "frame", "frames_number": num_steps, "split_by": "number"}
    if name == "dvs128gesture":
        made = [
            dvs128_gesture.DVS128Gesture(root, train=train, **frames) for train in (True, False)
        ]
        classes = 11
    else:  # no split of their own: every tenth sample of each class is for validation
        kinds = {"cifar10dvs": cifar10_dvs.CIFAR10DVS, "ncaltech101": n_caltech101.NCaltech101}
        whole = kinds[name](str(root), **frames)
        classes = len(whole.classes)
        seen, parts = [0] * classes, ([], [])
        for index, label in enumerate(whole.targets):
            parts[seen[label] % 10 == 9].append(index)
            seen[label] += 1
        made = [torch.utils.data.Subset(whole, part) for part in parts]
    return EventFrames(made[0], size, augment=True), EventFrames(made[1], size), classes


class EventFrames(Dataset):
    """Event frames ``[T, 2, H, W]`` at one resolution; flipped and shifted for training."""

    def __init__(self, frames: Dataset, size: int, augment: bool = False):
        self.frames, self.size, self.augment = frames, size, augment

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        frames, label = self.frames[index]
        x = torch.as_tensor(numpy.asarray(frames), dtype=torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            x = torch.nn.functional.interpolate(x, (self.size, self.size), mode="bilinear")
        if self.augment:
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            reach = self.size // 16
            shift = torch.randint(-reach, reach + 1, (2,)).tolist()
            x = torch.roll(x, shift, (-2, -1))
        return x, int(label)


class OwnRandomNumbers(Dataset):
    """A dataset whose samples, asked for as (epoch, index), draw from generators of their own.

    The generators of whoever asks are left as they were.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]):
        own = numpy.random.SeedSequence((self.seed, *key)).generate_state(3)
        states = random.getstate(), numpy.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(own[0]))
            numpy.random.seed(own[1])
            random.seed(int(own[2]))
            try:
                return self.dataset[key[1]]
            finally:
                random.setstate(states[0])
                numpy.random.set_state(states[1])


class ResumableOrder(Sampler):
    """One rank's share of a shuffled epoch, from any batch on; yields (epoch, index).

    Set ``epoch`` and ``first_batch`` before an epoch starts. The rest of the last incomplete batch
    is left out, so that every rank has the same number of batches.
    """

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int, seed: int):
        self.size, self.batch_size = size, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.batches = size // (batch_size * world_size)
        self.epoch = self.first_batch = 0
        if not self.batches:
            raise ValueError(
                f"{size} training samples do not fill one batch: --batch-size {batch_size} on "
                f"{world_size} processes"
            )

    def __len__(self) -> int:
        return (self.batches - self.first_batch) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        shuffle = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=shuffle).tolist()
        mine = order[self.rank :: self.world_size][: self.batches * self.batch_size]
        for index in mine[self.first_batch * self.batch_size :]:
            yield self.epoch, index
