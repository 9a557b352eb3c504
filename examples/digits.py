"""Scikit-learn's handwritten digits: 1,797 real 8 x 8 images that the package itself ships."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset


def digits(size: int = 8, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images ``[1, size, size]`` in [0, 1] and their digit."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    if size != 8:
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    y = torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=seed, stratify=y)
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def loaders(size: int = 8, batch_size: int = 64, seed: int = 0) -> tuple[DataLoader, DataLoader]:
    """Shuffled training batches, the same order for the same seed, and the test set in batches."""
    train, test = digits(size, seed)
    order = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train, batch_size, shuffle=True, generator=order, drop_last=True),
        DataLoader(test, 256),
    )
