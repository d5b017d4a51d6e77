"""What a file gains: its size, raw and behind gzip, and the time of a forward pass on one thread."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import Module

_SECONDS, _LEAST = 1.0, 5


@dataclass(frozen=True)
class Size:
    """Bytes, as they are and behind gzip."""

    raw: int
    gzip: int


def size_of(data: bytes | str | Path) -> Size:
    """The size of a file, or of bytes."""
    data = data if isinstance(data, bytes) else Path(data).read_bytes()
    # 6 is what the gzip command does; Python's own default is 9.
    return Size(len(data), len(gzip.compress(data, 6)))


def state_bytes(model: Module) -> bytes:
    """A model's state, one tensor behind the other."""
    buffer = io.BytesIO()
    for value in model.state_dict().values():
        buffer.write(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return buffer.getvalue()


def seconds(forwards: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest time of each forward pass. They take turns, so that a busy machine is busy for all of them.

    torch computes on one thread meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            shortest = {name: _timed(forward) for name, forward in forwards.items()}  # the first is slow
            begun, turns = time.perf_counter(), 0
            while turns < _LEAST or time.perf_counter() - begun < _SECONDS:
                now = {name: _timed(forward) for name, forward in forwards.items()}
                shortest = {name: min(taken, shortest[name]) for name, taken in now.items()}
                turns += 1
    finally:
        torch.set_num_threads(threads)
    return shortest


def _timed(forward: Callable[[], object]) -> float:
    start = time.perf_counter()
    forward()
    return time.perf_counter() - start
