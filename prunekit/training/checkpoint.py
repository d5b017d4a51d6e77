"""The checkpoint of a training run: one file, never half-written, with the random numbers in it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from prunekit.errors import StateError

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"


def load_checkpoint(run_dir: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The last checkpoint of a run, or the one in a file (`RUN/best.pt`); `mmap` reads no tensor before it is used.

    Raises:
        StateError: there is none, or it can't be read.
    """
    path = Path(run_dir)
    path = path if path.is_file() else path / CHECKPOINT
    if not path.is_file():
        raise StateError(f"no run in {str(run_dir)!r}: there is no {CHECKPOINT}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise StateError(f"{str(path)!r} can't be read: {type(error).__name__}: {error}") from error
    missing = sorted(_KEYS - state.keys()) if isinstance(state, dict) else sorted(_KEYS)
    if missing:
        raise StateError(f"{str(path)!r} is not the checkpoint of a run: it has no {missing[0]!r}")
    return state


_KEYS = {
    *("model", "optimizers", "average", "loss_scale", "scheduler", "stage", "epoch"),
    *("random", "generators", "history", "seconds", "settings"),
}


def seed_everything(seed: int) -> None:
    """Seed the random numbers of torch, numpy and Python."""
    torch.manual_seed(seed)
    # numpy refuses larger seeds, and negative ones, which torch takes.
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


def random_states() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's random numbers, as plain data and tensors."""
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        # Plain numbers, because `torch.load(weights_only=True)` refuses numpy's arrays.
        "numpy": (str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)),
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any], generators: list[torch.Generator], own: list[Tensor]) -> None:
    """Put random numbers back where `random_states` saw them, and the loaders' own generators where they were.

    Raises:
        StateError: the loaders have another number of generators now.
    """
    torch.set_rng_state(states["torch"])
    # With another number of GPUs the numbers can't be the same.
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    random.setstate(states["python"])
    if len(own) != len(generators):
        raise StateError(f"the run's loaders had {len(own)} generators of their own, now they have {len(generators)}")
    for generator, state in zip(generators, own, strict=True):
        generator.set_state(state)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside the one that is there, then put it in its place: whoever reads sees a whole one."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        write(temporary)
        # Atomic, because both lie in one folder and so on one file system.
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
