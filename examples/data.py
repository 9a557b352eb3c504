"""Real images for the examples: scikit-learn's digits, which it ships, and CIFAR-10."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


def digits(size: int = 8, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images ``[1, size, size]`` in [0, 1] and their digit."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    if size != 8:
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    y = torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=seed, stratify=y)
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def digit_loaders(
    size: int = 8, batch_size: int = 64, seed: int = 0
) -> tuple[DataLoader, DataLoader]:
    """Shuffled training batches, the same order for the same seed, and the test set in batches."""
    train, test = digits(size, seed)
    order = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train, batch_size, shuffle=True, generator=order, drop_last=True),
        DataLoader(test, 256),
    )


def cifar10(
    folder: Path, train: bool, limit: int | None = None, download: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's images ``[N, 3, 32, 32]`` as bytes, and labels ``[N]``.

    Args:
        folder: with ``train.npz`` and ``test.npz`` (``jpeg``: the files end to end, ``offset``:
            where each begins, ``label``), or with torchvision's copy.
        train: the training images rather than the test images.
        limit: only that many, from the first on.
        download: let torchvision fetch its copy where the folder has none.

    Raises:
        FileNotFoundError: the folder has no CIFAR-10, and ``download`` is not set.
    """
    if folder.name == "cifar-10-batches-py":  # torchvision's copy itself
        folder = folder.parent
    packed = folder / ("train.npz" if train else "test.npz")
    if packed.exists():
        pixels, label = _unpacked(packed, limit)
    else:
        from torchvision.datasets import CIFAR10

        if not (download or (folder / CIFAR10.base_folder).is_dir()):
            raise FileNotFoundError(
                f"--data-dir {folder} holds neither {packed.name} nor {CIFAR10.base_folder}"
            )
        data = CIFAR10(folder, train, download=download)
        pixels, label = data.data[:limit], numpy.array(data.targets)[:limit]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(label).long()


def _unpacked(path: Path, limit: int | None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images ``[N, 32, 32, 3]`` and labels of a packed file."""
    from PIL import Image

    with numpy.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"][:limit]
    spans = itertools.pairwise(offset[: len(label) + 1])
    bar = tqdm(spans, f"reading {path.name}", len(label), leave=False, disable=None)
    files = (io.BytesIO(jpeg[start:end].tobytes()) for start, end in bar)
    return numpy.stack([numpy.asarray(Image.open(file).convert("RGB")) for file in files]), label
