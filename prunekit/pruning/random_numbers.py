"""Random numbers that depend on where training stands alone: the same on all ranks, and after a resume."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

from prunekit.progress import Progress


def generator_at(seed: int, progress: Progress, name: str) -> torch.Generator:
    """A generator for a seed, a moment and a parameter (or whatever else a name tells apart)."""
    words = f"{seed} {progress.epoch} {max(progress.minibatch, 0)} {name}".encode()
    # Hashed, since torch looks at the last 32 bits only.
    return torch.Generator().manual_seed(int.from_bytes(sha256(words).digest()[:4], "big"))


def draws(like: Tensor, seed: int, progress: Progress, name: str) -> Tensor:
    """Draws from U[0, 1), of the shape and on the device of `like`.

    >>> one, again = (draws(torch.zeros(3), 7, Progress(2), "fc1.weight") for _ in range(2))
    >>> torch.equal(one, again)
    True
    """
    # Drawn on the CPU: a device makes other numbers of the same seed.
    return torch.rand(like.shape, generator=generator_at(seed, progress, name)).to(like.device)
