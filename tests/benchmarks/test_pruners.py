"""What choosing masks costs, as ratios to simple passes over the same weights in the same run. Run with `tox -e bench`.

Weights are shaped like those of ResNet-50: 25.5 million in 54 tensors.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.test_speed import Weights, in_turn, report, resnet50_shapes, seconds

from prunekit import CompressionScheduler, Plugins, Progress, Trace, load_plugins


def scheduler_of(pruner: dict[str, Any], model: Weights, folder: Path, plugins: Plugins) -> CompressionScheduler:
    """A scheduler that prunes at every epoch."""
    window = {"starting_epoch": 0, "ending_epoch": 10**9, "frequency": 1}
    policies = [{"pruner": {"instance_name": "p"}, **window}]
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": policies}
    trace = Trace(folder, logger=None)
    return CompressionScheduler.from_dict(schedule, model, trace=trace, plugins=plugins)


def choosing(scheduler: CompressionScheduler, model: Weights) -> Callable[[], Any]:
    """The pruner's choice alone, without carrying it out."""
    (policy,) = scheduler.policies
    context = policy.context(model, {}, Progress(0))

    def choose() -> Any:
        with torch.no_grad():
            return policy.component.compute_masks(policy.parameters, context)

    return choose


def sum_of_magnitudes(weights: list[torch.Tensor]) -> Callable[[], Any]:
    """One pass: abs and sum."""
    return lambda: [weight.abs().sum() for weight in weights]


@pytest.fixture(scope="module")
def model(device: torch.device) -> Weights:
    torch.manual_seed(0)
    return Weights(resnet50_shapes(), device)


@pytest.fixture
def weights(model: Weights) -> Iterator[list[torch.Tensor]]:
    """The weights, which are again what they were afterwards."""
    weights = [weight.detach() for weight in model.parameters()]
    start = [weight.clone() for weight in weights]
    yield weights
    for weight, before in zip(weights, start, strict=True):
        weight.copy_(before)


@pytest.fixture
def quiet() -> Plugins:
    """The installed components, and none of the installed listeners."""
    return replace(load_plugins(), listeners=())


def test_l1_ranked_filters(
    benchmark: Any, device: torch.device, tmp_path: Path, model: Weights, weights: list[torch.Tensor], quiet: Plugins
) -> None:
    """Half of the filters of each tensor by L1: asked are <= 2.5 of one pass, for the whole of `on_epoch_begin`.

    `to_pass_heard` is the same where a listener hears of masks, which could fail: then the weights are copied before.
    """
    pruner = {
        "class": "L1RankedStructureParameterPruner",
        "granularity": {"dim": 0},
        "desired_sparsity": 0.5,
        "weights": "*",
    }
    alone = scheduler_of(pruner, model, tmp_path / "alone", quiet)
    heard = scheduler_of(pruner, model, tmp_path / "heard", load_plugins())
    epochs, start = count(), [weight.clone() for weight in weights]
    steps = {
        "one_pass": sum_of_magnitudes(weights),
        "choice": choosing(alone, model),
        "step": lambda: alone.on_epoch_begin(next(epochs)),
        "step_heard": lambda: heard.on_epoch_begin(next(epochs)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(12):
        for name, step in steps.items():
            for weight, before in zip(weights, start, strict=True):
                weight.copy_(before)
            times[name].append(seconds(step, device))
    one_pass, choice, step, step_heard = (statistics.median(values[2:]) for values in times.values())
    for weight in weights:
        filters = weight.flatten(1).any(1)
        assert int(filters.sum()) == len(filters) - len(filters) // 2, "what was timed did the work"
    figures = {"ms": step * 1e3, "to_pass": step / one_pass, "choice_to_pass": choice / one_pass}
    report(benchmark, device, steps["step"], **figures, to_pass_heard=step_heard / one_pass)


@pytest.mark.parametrize("normalize", ["none", "l2", "lamp"])
def test_global_ranking(
    benchmark: Any, device: torch.device, tmp_path: Path, model: Weights, quiet: Plugins, normalize: str
) -> None:
    """80 % of all weights together: asked is <= 3 of `numpy.partition` on a flat copy of |w|."""
    pruner = {"class": "GlobalMagnitudePruner", "desired_sparsity": 0.8, "weights": "*", "normalize": normalize}
    choose = choosing(scheduler_of(pruner, model, tmp_path, quiet), model)
    flat = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]).abs().cpu().numpy()
    number = int(0.8 * flat.size)
    times = in_turn(device, 5, ours=choose, partition=lambda: np.partition(flat, number - 1))
    pruned = sum(mask.numel() - int(mask.sum()) for mask in choose().values())
    assert pruned == number, "what was timed did the work"
    figures = {"ms": times["ours"] * 1e3, "to_partition": times["ours"] / times["partition"]}
    report(benchmark, device, choose, **figures)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 8)])
def test_n_of_m(
    benchmark: Any, device: torch.device, tmp_path: Path, model: Weights, quiet: Plugins, n: int, m: int
) -> None:
    """N of M inputs of every weight but the first, of three inputs: asked are <= 6 of one pass."""
    names = [name for name, weight in model.named_parameters() if weight.shape[1] % m == 0]
    pruner = {"class": "NMPruner", "n": n, "m": m, "weights": names}
    choose = choosing(scheduler_of(pruner, model, tmp_path, quiet), model)
    one_pass = sum_of_magnitudes([weight.detach() for name, weight in model.named_parameters() if name in names])
    times = in_turn(device, 7, ours=choose, one_pass=one_pass)
    kept = {int(mask.sum()) / mask.numel() for mask in choose().values()}
    assert (kept, len(names)) == ({n / m}, 53), "what was timed did the work"
    report(benchmark, device, choose, ms=times["ours"] * 1e3, to_pass=times["ours"] / times["one_pass"])
