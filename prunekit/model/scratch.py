"""Memory that is used again: on a CPU fresh pages cost more than what is done with them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

_MOST_BYTES = 2**26


class _Scratch(threading.local):
    # All threads share this one, which is too small for anything: the first need gives a thread its own.
    memory = np.empty(0, np.uint8)

    def __call__(self, size: int, dtype: Any) -> Any:
        dtype = np.dtype(dtype)
        needed = size * dtype.itemsize
        # Not kept: each thread would hold on to it for as long as it lives.
        if needed > _MOST_BYTES:
            return np.empty(size, dtype)
        if needed > self.memory.size:
            self.memory = np.empty(needed, np.uint8)
        return self.memory[:needed].view(dtype)


scratch = _Scratch()
"""`scratch(size, dtype)`: a numpy array of this thread's, with anything in it, until the next call."""
