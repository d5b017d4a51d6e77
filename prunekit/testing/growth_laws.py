"""The law of what a decision costs when there are more parameters."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.testing.asking import ask
from prunekit.testing.laws import OWNERS, law, must
from prunekit.testing.runs import FIRST, Run
from prunekit.testing.subject import Subject
from prunekit.testing.tiny import TinyNet

SMALL, LARGE = 2, 8
"""Widths of the tiny network; the number of weights grows with the square."""
EXPONENT = 1.5
"""Between what is linear (1, and a little for sorting) and what compares each weight with each other one (2)."""
TRIES = 3


@law(*OWNERS)
def growth(subject: Subject) -> None:
    """Time and memory of a decision grow with the number of parameters, not with its square."""
    runs = [Run(subject, model=TinyNet(width=width)).train(range(FIRST + 1)) for width in (SMALL, LARGE)]
    elements = [sum(parameter.numel() for parameter in run.policy.parameters.values()) for run in runs]
    allowed = (elements[1] / elements[0]) ** EXPONENT
    sizes = f"{elements[1] / elements[0]:.0f} times the weights"
    memory = [_memory(run) for run in runs]
    must(
        memory[1] <= allowed * memory[0],
        f"{sizes}: at most {allowed:.0f} times the memory",
        f"{memory[1] / memory[0]:.0f}",
    )
    # The processor's time of this process alone, the best of several, and again if that was disturbed.
    ratios = [_seconds(runs[1]) / _seconds(runs[0]) for _ in range(TRIES)]
    must(min(ratios) <= allowed, f"{sizes}: at most {allowed:.0f} times the time", f"{min(ratios):.0f}")


def _seconds(run: Run) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        ask(run)
        best = min(best, time.process_time() - start)
    # The processor's clock may not have moved, and a ratio is made of it.
    return max(best, 1e-5)


def _memory(run: Run) -> int:
    """Bytes that torch's operations return, and the most that Python and numpy hold."""
    ask(run)
    gc.collect(1)  # that no collection falls into what is measured; of all of torch it would take the longest
    tracemalloc.start()
    try:
        counted = _Bytes()
        with counted:
            ask(run)
        return counted.total + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the sizes of what each operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, list | tuple) else (result,):
            if isinstance(item, torch.Tensor):
                self.total += item.numel() * item.element_size()
        return result
