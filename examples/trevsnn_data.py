"""Data for train_trevsnn.py: image folders, CIFAR-10, event datasets, and an order that resumes.

Every sample is augmented with random numbers of its own, which depend on the seed, the epoch and
the sample only. Workers, their number, and where in an epoch a run starts make no difference. A
sample that cannot be read is named, and another one stands in for it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler, Subset
from torchvision import datasets
from trevsnn_augment import EventAugmentation, cifar_transforms, image_transforms

IMAGES = ("imagefolder", "cifar10")
EVENTS = ("cifar10dvs", "dvs128gesture", "ncaltech101")


def build_datasets(
    name: str,
    root: Path,
    *,
    size: int,
    num_steps: int,
    rand_augment: str | None,
    erasing: float,
    interpolation: str = "bilinear",
) -> tuple[Dataset, Dataset, int]:
    """Training set, validation set and number of classes."""
    if name in EVENTS:
        return _event_datasets(name, root, size, num_steps)
    if name == "cifar10":
        train, test = cifar_transforms(size, rand_augment, erasing, interpolation)
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
    train, val = image_transforms(size, rand_augment, erasing, interpolation)
    train_set = datasets.ImageFolder(_folder(root, "train"), train)
    val_set = datasets.ImageFolder(_folder(root, "val"), val)
    if train_set.classes != val_set.classes:
        raise ValueError(f"--data-dir {root}: train and val must have the same class folders")
    return train_set, val_set, len(train_set.classes)


def some(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """``count`` samples of a dataset, drawn with the seed, or all of them."""
    if count is None or count >= len(dataset):
        return dataset
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, drawn[:count].tolist())


def _folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise ValueError(f"--data-dir {root} must have a folder {name!r} with a folder per class")
    return root / name


class PackedImages(Dataset):
    """Images packed as JPEG files end to end: arrays ``jpeg``, ``offset`` and ``label``."""

    def __init__(self, path: Path, transform: Callable):
        with numpy.load(path) as arrays:
            self.jpeg, self.offset, self.label = (arrays[n] for n in ("jpeg", "offset", "label"))
        self.path, self.transform = path, transform

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
        made = [Subset(whole, part) for part in parts]
    augment = EventAugmentation(size)
    return EventFrames(made[0], size, augment), EventFrames(made[1], size), classes


class EventFrames(Dataset):
    """Event frames ``[T, 2, H, W]`` at one resolution, changed by ``augment`` for training."""

    def __init__(self, frames: Dataset, size: int, augment: Callable | None = None):
        self.frames, self.size, self.augment = frames, size, augment

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        frames, label = self.frames[index]
        x = torch.as_tensor(numpy.asarray(frames), dtype=torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            x = torch.nn.functional.interpolate(x, (self.size, self.size), mode="bilinear")
        return x if self.augment is None else self.augment(x), int(label)


class Readable(Dataset):
    """A dataset whose samples have a third part: '', or what was wrong with the one asked for.

    The next sample that can be read then stands in its place, so that batches keep their size, on
    every process and in a run that is continued.
    """

    #: after so many in a row that cannot be read, something else is wrong
    PATIENCE = 50

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        wrong = ""
        for following in range(index, index + min(self.PATIENCE, len(self))):
            try:
                return *self.dataset[following % len(self)], wrong
            except Exception as error:  # of a file, a decoder, or the augmentation
                wrong = wrong or f"{place(self.dataset, index)}: {error}"
        raise RuntimeError(f"none of {self.PATIENCE} samples in a row can be read; {wrong}")


def place(dataset: Dataset, index: int) -> str:
    """Where a sample comes from, for a person who wants to look at it."""
    if isinstance(dataset, Subset):
        return place(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, EventFrames):
        return place(dataset.frames, index)
    samples = getattr(dataset, "samples", None)
    if samples is not None:
        return str(samples[index][0])
    return f"image {index} of {getattr(dataset, 'path', type(dataset).__name__)}"


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
