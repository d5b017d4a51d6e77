"""Every LR scheduler of torch under a schedule, bit for bit what a loop of torch's own does: in epochs and in steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from prunekit import CompressionScheduler, Schedule, Trace, Window
from prunekit.plugins.loading import Plugins, load_plugins
from prunekit.testing import optimizer_of, rates_by_epoch, rates_by_step

UNITS = 12
BASES = [0.01, 0.3]
"""Neither is a sum of powers of two: what is computed in another way has other bits."""
METRICS = [4.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def halves_every_third(time: int) -> float:
    return 0.7 ** (time // 3)


KEYS: list[tuple[str, dict[str, Any]]] = [
    ("LambdaLR", {"lr_lambda": halves_every_third}),
    ("MultiplicativeLR", {"lr_lambda": halves_every_third}),
    ("StepLR", {"step_size": 2, "gamma": 0.7}),
    ("MultiStepLR", {"milestones": [0, 2, 2, 5], "gamma": 0.7}),
    ("ConstantLR", {"factor": 0.3, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 6}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 7, "power": 1.7}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.001}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2, "eta_min": 0.001}),
    ("CyclicLR", {"base_lr": 0.001, "max_lr": 0.07, "step_size_up": 3, "step_size_down": 2}),
    ("CyclicLR", {"base_lr": [0.001, 0.1], "max_lr": 0.3, "step_size_up": 3, "mode": "exp_range", "gamma": 0.9}),
    ("OneCycleLR", {"max_lr": 0.7, "total_steps": 14}),
    ("OneCycleLR", {"max_lr": [0.7, 0.1], "total_steps": 14, "anneal_strategy": "linear", "three_phase": True}),
    (
        "SequentialLR",
        {
            "schedulers": [
                {"class": "LinearLR", "start_factor": 0.1, "total_iters": 3},
                {"class": "CosineAnnealingLR", "T_max": 6, "eta_min": 0.001},
            ],
            "milestones": [3],
        },
    ),
    (
        "SequentialLR",
        {
            "schedulers": [
                {"class": "ConstantLR", "factor": 0.3, "total_iters": 9},
                {"class": "OneCycleLR", "max_lr": 0.7, "total_steps": 14},
                {"class": "ExponentialLR", "gamma": 0.9},
            ],
            "milestones": [2, 7],
        },
    ),
    (
        "ChainedScheduler",
        {
            "schedulers": [
                {"class": "LinearLR", "start_factor": 0.1, "total_iters": 3},
                {"class": "ExponentialLR", "gamma": 0.9},
                {"class": "MultiStepLR", "milestones": [5], "gamma": 0.7},
            ]
        },
    ),
    ("ReduceLROnPlateau", {"factor": 0.7, "patience": 1}),
]
IDS = [f"{name}{index}" for index, (name, _) in enumerate(KEYS)]
IN_STEPS = [
    pytest.param(*each, id=name) for name, each in zip(IDS, KEYS, strict=True) if each[0] != "ReduceLROnPlateau"
]
WINDOWS = [(0, UNITS, 1), (3, UNITS, 1), (3, 9, 1), (2, 11, 3)]


def make(optimizer: Optimizer, name: str, keys: Mapping[str, Any]) -> LRScheduler:
    """torch's scheduler, as one writes it in Python."""
    keys = dict(keys)
    if name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler([nested(optimizer, **each) for each in keys["schedulers"]], optimizer)
    if name == "SequentialLR":
        keys["schedulers"] = [nested(optimizer, **each) for each in keys["schedulers"]]
    made: LRScheduler = getattr(lr_scheduler, name)(optimizer, **keys)
    return made


def nested(optimizer: Optimizer, **keys: Any) -> LRScheduler:
    return make(optimizer, keys.pop("class"), keys)


def look(optimizer: Optimizer) -> list[tuple[Any, ...]]:
    """All that a scheduler may move."""
    # A number: a tensor would change with the optimizer.
    return [(float(group["lr"]), group.get("momentum"), group.get("betas")) for group in optimizer.param_groups]


def step(optimizer: Optimizer, scheduler: LRScheduler, unit: int) -> None:
    optimizer.step()
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(METRICS[unit])
    else:
        scheduler.step()


def torchs_absolute(name: str, keys: Any, window: tuple[int, int, int]) -> list[Any]:
    """What an optimizer holds in each unit if it takes, after each active one, what torch's scheduler holds by then.

    That scheduler steps a twin of it, from the start of the run.
    """
    optimizer, twin, seen = optimizer_of(*BASES), optimizer_of(*BASES), []
    scheduler, active = make(twin, name, keys), range(*window)
    for unit in range(UNITS):
        if unit == 0 in active:
            take(optimizer, twin)
        seen.append(look(optimizer))
        step(twin, scheduler, unit)
        if unit in active:
            take(optimizer, twin)
    return seen


def torchs_relative(name: str, keys: Any, window: tuple[int, int, int]) -> list[Any]:
    """The same with a scheduler that is made when the window opens."""
    optimizer, twin, seen = optimizer_of(*BASES), optimizer_of(*BASES), []
    scheduler, active = None, range(*window)
    for unit in range(UNITS):
        if unit == active[0]:
            scheduler = make(twin, name, keys)
            take(optimizer, twin)
        seen.append(look(optimizer))
        if scheduler is not None:
            step(twin, scheduler, unit)
        if unit in active:
            take(optimizer, twin)
    return seen


def torchs_plateau(keys: Any, window: tuple[int, int, int]) -> list[Any]:
    """One that looks at metrics sees those of active epochs alone."""
    optimizer, seen = optimizer_of(*BASES), []
    scheduler = make(optimizer, "ReduceLROnPlateau", keys)
    for unit in range(UNITS):
        seen.append(look(optimizer))
        if unit in range(*window):
            step(optimizer, scheduler, unit)
    return seen


def take(optimizer: Optimizer, twin: Optimizer) -> None:
    for group, other in zip(optimizer.param_groups, twin.param_groups, strict=True):
        group.update({key: value for key, value in other.items() if key in ("lr", "momentum", "betas")})


def named(name: str) -> str:
    """Two distributions have a PolynomialLR."""
    return f"prunekit-torch-lr:{name}"


def test_the_table_has_every_scheduler_of_torch() -> None:
    assert {name for name, _ in KEYS} == {name for name in lr_scheduler.__all__ if name != "LRScheduler"}


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(("name", "keys"), KEYS, ids=IDS)
def test_in_epochs(name: str, keys: Any, relative: bool) -> None:
    own = torchs_relative if relative else torchs_absolute
    for window in WINDOWS:
        plateau = name == "ReduceLROnPlateau"
        expected = torchs_plateau(keys, window) if plateau else own(name, keys, window)
        for stopped in (None, 4, 8):
            seen = rates_by_epoch(
                named(name),
                keys,
                UNITS,
                bases=BASES,
                window=Window(*window),
                relative=relative,
                stopped=stopped,
                metrics=METRICS,
                look=look,
            )
            assert seen == expected, (window, stopped)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(("name", "keys"), IN_STEPS)
def test_in_steps(name: str, keys: Any, relative: bool) -> None:
    own = torchs_relative if relative else torchs_absolute
    for start, end, frequency in WINDOWS:
        window = Window(starting_step=start, ending_step=end, frequency=frequency)
        expected = own(name, keys, (start, end, frequency))
        for stopped in (None, 4, 8):  # 4 and 8 are within an epoch of three steps
            given: dict[str, Any] = {"window": window, "relative": relative, "stopped": stopped}
            seen = rates_by_step(named(name), keys, UNITS, bases=BASES, look=look, **given)
            assert seen == expected, (window, stopped)


# Chains: policies that follow one another


Chain = Sequence[tuple[str, dict[str, Any], int]]
"""A scheduler, its keys, and the unit before which its window ends."""
WARM_UP = ("LinearLR", {"start_factor": 0.1, "total_iters": 3}, 3)
CHAINS: list[Chain] = [
    [WARM_UP, ("CosineAnnealingLR", {"T_max": 9, "eta_min": 0.001}, UNITS)],
    [WARM_UP, ("CosineAnnealingWarmRestarts", {"T_0": 3, "eta_min": 0.001}, UNITS)],
    [WARM_UP, ("ExponentialLR", {"gamma": 0.9}, UNITS)],
    [WARM_UP, ("PolynomialLR", {"total_iters": 7, "power": 1.7}, UNITS)],
    [WARM_UP, ("StepLR", {"step_size": 2, "gamma": 0.7}, 8), ("ExponentialLR", {"gamma": 0.9}, UNITS)],
    [("ConstantLR", {"factor": 0.3}, 2), ("MultiStepLR", {"milestones": [2], "gamma": 0.7}, UNITS)],
    [("ExponentialLR", {"gamma": 0.9}, 4), ("LinearLR", {"start_factor": 0.3, "total_iters": 6}, UNITS)],
    [("ExponentialLR", {"gamma": 0.9}, 4), ("LambdaLR", {"lr_lambda": halves_every_third}, UNITS)],
]


def chained(chain: Chain, unit: str, relative: Callable[[int], bool] = lambda start: True) -> dict[str, Any]:
    """The schedule: windows that follow one another."""
    data: dict[str, Any] = {"version": 1, "lr_schedulers": {}, "policies": []}
    start = 0
    for index, (name, keys, end) in enumerate(chain):
        data["lr_schedulers"][f"lr{index}"] = {"class": named(name), **keys}
        window = {f"starting_{unit}": start, f"ending_{unit}": end}
        args = {"args": {"relative": True}} if relative(start) else {}
        data["policies"].append({"lr_scheduler": {"instance_name": f"lr{index}", **args}, **window})
        start = end
    return data


@cache
def installed() -> Plugins:
    return load_plugins()


def run(data: Any, unit: str, optimizer: Optimizer, stopped: int | None = None) -> list[Any]:
    """What the optimizer holds in each epoch or step."""

    def begin() -> CompressionScheduler:
        given: dict[str, Any] = {"trace": Trace(level="error"), "plugins": installed()}
        return CompressionScheduler(Schedule.from_dict(data), torch.nn.Linear(1, 1), optimizer, **given)

    scheduler, seen = begin(), []
    for number in range(UNITS):
        epoch, minibatch = (number, 0) if unit == "epoch" else divmod(number, 4)
        if number == stopped:
            state = scheduler.state_dict()
            scheduler = begin()
            scheduler.load_state_dict(state)
        if minibatch == 0:
            scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, minibatch, 4)
        seen.append(look(optimizer))
        optimizer.step()
        scheduler.on_minibatch_end(epoch, minibatch, 4)
        if unit == "epoch" or minibatch == 3:
            scheduler.on_epoch_end(epoch)
    return seen


def torchs_sequence(chain: Chain, optimizer: Optimizer) -> list[Any]:
    schedulers = [make(optimizer, name, keys) for name, keys, _ in chain]
    scheduler, seen = SequentialLR(optimizer, schedulers, [end for _, _, end in chain[:-1]]), []
    for unit in range(UNITS):
        seen.append(look(optimizer))
        step(optimizer, scheduler, unit)
    return seen


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("chain", CHAINS, ids=["-".join(name for name, *_ in chain) for chain in CHAINS])
def test_relative_policies_that_follow_one_another_are_torchs_sequence(chain: Chain, unit: str) -> None:
    expected = torchs_sequence(chain, optimizer_of(*BASES))
    for stopped in (None, 2, 3, 9):
        assert run(chained(chain, unit), unit, optimizer_of(*BASES), stopped) == expected, stopped


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_one_cycle_after_a_warm_up_is_one_that_is_made_then(unit: str) -> None:
    optimizer, seen = optimizer_of(*BASES), []
    scheduler = make(optimizer, *WARM_UP[:2])
    for number in range(UNITS):
        if number == 3:
            for group, base in zip(optimizer.param_groups, BASES, strict=True):
                group["lr"] = base
            scheduler = make(optimizer, "OneCycleLR", {"max_lr": 0.7, "total_steps": 9})
        seen.append(look(optimizer))
        step(optimizer, scheduler, number)
    chain = [WARM_UP, ("OneCycleLR", {"max_lr": 0.7, "total_steps": 9}, UNITS)]
    assert run(chained(chain, unit), unit, optimizer_of(*BASES)) == seen


def parameters(number: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1)) for _ in range(number)]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: Adam(parameters(1), lr=0.01),
        lambda: SGD([{"params": parameters(1)}, {"params": parameters(1), "lr": 0.3}], lr=torch.tensor(0.01)),
        lambda: Adam(parameters(1), lr=torch.tensor(0.01, dtype=torch.float64)),
    ],
    ids=["betas", "a rate that is a tensor of 32 bits", "one of 64 bits"],
)
@pytest.mark.parametrize(("name", "keys"), [pytest.param(*KEYS[i], id=IDS[i]) for i in (0, 4, 6, 7, 8, 9, 10, 12, 14)])
def test_other_optimizers(name: str, keys: Any, optimizer: Callable[[], Optimizer]) -> None:
    own, seen = optimizer(), []
    scheduler = make(own, name, keys)
    for unit in range(UNITS):
        seen.append(look(own))
        step(own, scheduler, unit)
    data = chained([(name, keys, UNITS)], "step", relative=lambda start: False)
    assert run(data, "step", optimizer()) == seen
