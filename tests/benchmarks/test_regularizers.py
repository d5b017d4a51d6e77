"""What a regularizer's penalty costs a training step, forward and backward, beside a loop over the parameters."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.timing import Weights, report, resnet50_shapes, seconds
from torch import Tensor

from prunekit import CompressionScheduler, Trace

STRENGTH = 1e-4


@pytest.mark.parametrize(("group", "inside"), [("3D", (1, 2, 3)), ("Channels", (0, 2, 3)), ("2D", (2, 3))])
def test_group_lasso(benchmark: Any, device: torch.device, tmp_path: Path, group: str, inside: tuple[int, ...]) -> None:
    """The 53 convolutions of ResNet-50, 23.5M weights; asked is at most 1/3 of the loop's time.

    `floor` reads every weight and writes as many numbers: no gradient takes less. Its ratio to the loop is what is
    possible: of filters about 0.3 on one core, whose memory is what takes the time.
    """
    model = Weights([shape for shape in resnet50_shapes() if len(shape) == 4], device)
    step = penalty_of(model, group, tmp_path)

    def ours() -> None:
        step().backward()

    def loop() -> None:
        penalty = torch.zeros((), device=device)
        for weight in model.parameters():
            penalty = penalty + STRENGTH * weight.norm(2, inside).sum()
        penalty.backward()

    def floor() -> None:
        for weight in model.parameters():
            weight.grad = weight.detach().clone()

    results = []
    for function in (ours, loop):
        forget(model)
        function()
        results.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-9)
    results.clear()
    taken: dict[str, list[float]] = {"ours": [], "loop": [], "floor": []}
    for _ in range(15):
        for name, function in zip(taken, (ours, loop, floor), strict=True):
            forget(model)
            taken[name].append(seconds(function, device))
    to_loop = {
        name: statistics.median(one / loops for one, loops in zip(taken[name][2:], taken["loop"][2:], strict=True))
        for name in ("ours", "floor")
    }
    figures = {"ms": statistics.median(taken["ours"]) * 1e3, "loop_ms": statistics.median(taken["loop"]) * 1e3}
    figures |= {"to_loop": to_loop["ours"], "floor_to_loop": to_loop["floor"]}
    report(benchmark, device, ours, **figures)


def penalty_of(model: Weights, group: str, run_dir: Path) -> Callable[[], Tensor]:
    """What a training loop gets from the scheduler: the penalty alone, on a loss of zero."""
    schedule = {
        "version": 1,
        "regularizers": {"r": {"class": "GroupLassoRegularizer", "reg_regims": {"*": [STRENGTH, group]}}},
        "policies": [{"regularizer": {"instance_name": "r"}, "starting_epoch": 0, "ending_epoch": 1}],
    }
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=Trace(run_dir, logger=None))
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = torch.zeros((), device=next(model.parameters()).device)
    return lambda: scheduler.before_backward_pass(0, 0, 1, loss)


def forget(model: Weights) -> None:
    for weight in model.parameters():
        weight.grad = None
