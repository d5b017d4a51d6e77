"""What benchmarks share: networks' shapes, functions timed in turn, and how figures are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# (out, in, kernel): the 54 weights of ResNet-50, 25.5 million in all.
STAGES = [(64, 64, 256, 3), (256, 128, 512, 4), (512, 256, 1024, 6), (1024, 512, 2048, 3)]


def resnet50_shapes() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    for wide_in, narrow, wide, blocks in STAGES:
        for block in range(blocks):
            before = wide_in if block == 0 else wide
            shapes += [(narrow, before, 1, 1), (narrow, narrow, 3, 3), (wide, narrow, 1, 1)]
            shapes += [(wide, before, 1, 1)] if block == 0 else []
    return [*shapes, (1000, 2048)]


class Weights(nn.Module):
    """Parameters w0, w1, … of given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device) -> None:
        super().__init__()
        for index, shape in enumerate(shapes):
            setattr(self, f"w{index}", nn.Parameter(torch.randn(shape, device=device)))


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(device: torch.device, rounds: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """The median seconds of each function, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 2):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def report(benchmark: Any, device: torch.device, function: Callable[[], Any], **figures: float) -> None:
    benchmark.extra_info.update({name: round(value, 4) for name, value in figures.items()})
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread"
    print(f"\n{benchmark.name} [{name}]: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    benchmark.pedantic(function, rounds=3, iterations=1)
