"""prunekit-torch-lr: every scheduler of torch by name, doing what torch's own stepping does."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import prunekit_torch_lr
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.optim import Adam, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LinearLR, LRScheduler

from prunekit import (
    CompressionScheduler,
    PrunekitError,
    ScheduleError,
    Trace,
    Window,
)
from prunekit.errors import did_you_mean
from prunekit.testing import LAWS, check_component, optimizer_of, rates_by_epoch
from prunekit.trace import read

EPOCHS = 8
METRICS = [4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]

# name, keys, and for each key another value that must change the outcome
KEYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("StepLR", {"step_size": 2, "gamma": 0.5}, {"step_size": 3, "gamma": 0.1}),
    ("MultiStepLR", {"milestones": [2, 4], "gamma": 0.5}, {"milestones": [2, 5], "gamma": 0.1}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 3}, {"factor": 0.25, "total_iters": 4}),
    (
        "LinearLR",
        {"start_factor": 0.25, "end_factor": 1.0, "total_iters": 4},
        {"start_factor": 0.5, "end_factor": 0.75, "total_iters": 2},
    ),
    ("ExponentialLR", {"gamma": 0.5}, {"gamma": 0.25}),
    ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.0}, {"T_max": 6, "eta_min": 0.1}),
    (
        "CosineAnnealingWarmRestarts",
        {"T_0": 2, "T_mult": 1, "eta_min": 0.0},
        {"T_0": 3, "T_mult": 2, "eta_min": 0.1},
    ),
    ("prunekit-torch-lr:PolynomialLR", {"total_iters": 4, "power": 2.0}, {"total_iters": 6, "power": 1.0}),
    (
        "CyclicLR",
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 2, "step_size_down": 2, "mode": "triangular"},
        {"base_lr": 0.2, "max_lr": 0.6, "step_size_up": 3, "step_size_down": 1, "mode": "triangular2"},
    ),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "mode": "exp_range", "gamma": 0.9, "step_size_up": 2}, {"gamma": 0.8}),
    (
        "CyclicLR",
        {
            "base_lr": 0.1,
            "max_lr": 0.5,
            "step_size_up": 2,
            "cycle_momentum": True,
            "base_momentum": 0.7,
            "max_momentum": 0.9,
        },
        {"cycle_momentum": False, "base_momentum": 0.6, "max_momentum": 0.8},
    ),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": 9, "pct_start": 0.5, "anneal_strategy": "cos", "div_factor": 25.0},
        {"max_lr": 0.6, "total_steps": 10, "pct_start": 0.25, "anneal_strategy": "linear", "div_factor": 10.0},
    ),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "epochs": 9, "steps_per_epoch": 1, "final_div_factor": 1e4, "three_phase": False},
        {"epochs": 10, "steps_per_epoch": 2, "final_div_factor": 10.0, "three_phase": True},
    ),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": 9, "cycle_momentum": True, "base_momentum": 0.85, "max_momentum": 0.95},
        {"cycle_momentum": False, "base_momentum": 0.8, "max_momentum": 0.9},
    ),
    (
        "ReduceLROnPlateau",
        {"mode": "min", "factor": 0.5, "patience": 1, "cooldown": 0, "min_lr": 0.0, "eps": 1e-8},
        {"mode": "max", "factor": 0.25, "patience": 2, "cooldown": 2, "min_lr": 0.3, "eps": 1.0},
    ),
    # A fall from 4 to 3 is one of 25 % and of 1.
    ("ReduceLROnPlateau", {"threshold": 0.26, "threshold_mode": "rel", "patience": 1}, {"threshold": 0.1}),
    ("ReduceLROnPlateau", {"threshold": 0.5, "threshold_mode": "abs", "patience": 0}, {"threshold_mode": "rel"}),
]
FROM_PYTHON = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


def schedule(name: str, keys: Mapping[str, Any], **window: Any) -> dict[str, Any]:
    policy = {"lr_scheduler": {"instance_name": "lr"}, **(window or {"starting_epoch": 0, "ending_epoch": EPOCHS})}
    return {"version": 1, "lr_schedulers": {"lr": {"class": name, **keys}}, "policies": [policy]}


def attach(data: Mapping[str, Any], optimizer: Optimizer, trace: Trace | None = None) -> CompressionScheduler:
    return CompressionScheduler.from_dict(data, torch.nn.Linear(1, 1), optimizer, trace=trace or Trace(logger=None))


def values(optimizer: Optimizer) -> tuple[float, float]:
    group = optimizer.param_groups[0]
    return group["lr"], group["momentum"] if "momentum" in group else group["betas"][0]


def drive(
    scheduler: CompressionScheduler, optimizer: Optimizer, epochs: Sequence[int], metrics: Sequence[float] = METRICS
) -> list[tuple[float, float]]:
    """LR and momentum during each epoch."""
    seen = []
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        seen.append(values(optimizer))
        scheduler.on_epoch_end(epoch, metrics={"min": metrics[epoch], "max": metrics[epoch]})
    return seen


def outcome(name: str, keys: Mapping[str, Any], window: Window | None = None, **more: Any) -> list[tuple[float, float]]:
    """LR and momentum during each epoch of a run under a schedule."""
    return rates_by_epoch(name, keys, EPOCHS, bases=[0.4], window=window, metrics=METRICS, look=values, **more)


def torchs_own(cls: type, keys: Mapping[str, Any], epochs: int = EPOCHS) -> list[tuple[float, float]]:
    """LR and momentum during each epoch of a loop that calls torch's scheduler itself."""
    optimizer, seen = optimizer_of(0.4), []
    scheduler = cls(optimizer, **keys)
    for epoch in range(epochs):
        seen.append(values(optimizer))
        optimizer.step()
        scheduler.step(*([METRICS[epoch]] if cls is lr_scheduler.ReduceLROnPlateau else []))
    return seen


def torch_class(name: str) -> type:
    cls: type = getattr(lr_scheduler, name.rpartition(":")[2])
    return cls


def rates(name: str, **keys: Any) -> list[float]:
    """The rates that a schedule written in Python leads to, of a base of 1."""
    return rates_by_epoch(name, keys, EPOCHS, bases=[1.0])


@pytest.mark.parametrize(("name", "keys", "others"), KEYS)
def test_a_schedulers_values_are_those_of_torchs_own_stepping(name: str, keys: Any, others: Any) -> None:
    assert outcome(name, keys) == torchs_own(torch_class(name), keys)


@pytest.mark.parametrize(
    ("name", "keys", "key", "other"),
    [(name, keys, key, other) for name, keys, others in KEYS for key, other in others.items()],
)
def test_every_key_changes_the_outcome(name: str, keys: Any, key: str, other: Any) -> None:
    changed = {**keys, key: other}
    assert outcome(name, changed) == torchs_own(torch_class(name), changed)
    assert outcome(name, changed) != outcome(name, keys)


def test_every_scheduler_of_the_installed_torch_is_listed_and_tested() -> None:
    public = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert set(prunekit_torch_lr.list_components("lr_scheduler")) == public
    assert {name.rpartition(":")[2] for name, _, _ in KEYS} | FROM_PYTHON == public


def test_a_scheduler_of_a_later_torch_is_there_as_soon_as_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class HalvingLR(LRScheduler):
        def __init__(self, optimizer: Optimizer, every: int, last_epoch: int = -1) -> None:
            self.every = every
            super().__init__(optimizer, last_epoch)

        def get_lr(self) -> list[Any]:
            return [base / 2 ** (self.last_epoch // self.every) for base in self.base_lrs]

    monkeypatch.setattr(lr_scheduler, "HalvingLR", HalvingLR, raising=False)
    assert [lr for lr, _ in outcome("HalvingLR", {"every": 3})] == [0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1, 0.1]
    assert "HalvingLR" in prunekit_torch_lr.list_components("lr_scheduler")


def test_base_classes_private_names_and_other_kinds_are_not_offered() -> None:
    names = ["LRScheduler", "_LRScheduler", "Optimizer", "Tensor", "nothing"]
    assert [prunekit_torch_lr.find_component("lr_scheduler", name) for name in names] == [None] * 5
    assert prunekit_torch_lr.find_component("pruner", "StepLR") is None
    assert prunekit_torch_lr.list_components("pruner") == []


def test_a_late_policy_takes_the_lr_of_the_absolute_epoch_and_leaves_the_last_one() -> None:
    late = outcome("ExponentialLR", {"gamma": 0.5}, Window(2, 5))
    assert [lr for lr, _ in late] == pytest.approx([0.4, 0.4, 0.4, 0.05, 0.025, 0.0125, 0.0125, 0.0125])


def test_with_a_frequency_the_lr_is_a_staircase() -> None:
    stairs = outcome("ExponentialLR", {"gamma": 0.5}, Window(0, 5, 2))
    assert [lr for lr, _ in stairs] == pytest.approx([0.4, 0.2, 0.2, 0.05, 0.05, 0.0125, 0.0125, 0.0125])


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 1.0), st.integers(1, 3), st.integers(0, 5), st.integers(1, 3), st.integers(1, 3))
def test_the_lr_is_torchs_of_the_epoch_after_the_last_active_one(
    gamma: float, step: int, start: int, frequency: int, length: int
) -> None:
    keys, end = {"step_size": step, "gamma": gamma}, min(start + length * frequency, EPOCHS)
    own = [lr for lr, _ in torchs_own(lr_scheduler.StepLR, keys, EPOCHS + 1)]
    last_active = [max((a for a in range(start, end, frequency) if a < epoch), default=-1) for epoch in range(EPOCHS)]
    assert [lr for lr, _ in outcome("StepLR", keys, Window(start, end, frequency))] == [
        own[active + 1] for active in last_active
    ]


@pytest.mark.parametrize(("name", "keys", "others"), KEYS)
def test_a_resumed_run_equals_the_straight_one(name: str, keys: Any, others: Any) -> None:
    assert outcome(name, keys, stopped=3) == outcome(name, keys)


def test_each_group_of_the_optimizer_has_its_own_base() -> None:
    assert rates_by_epoch("ExponentialLR", {"gamma": 0.5}, 3, bases=[1.0, 8.0]) == [[1, 8], [0.5, 4], [0.25, 2]]


ONE_CYCLE = {
    "max_lr": 0.4,
    "total_steps": 5,
    "pct_start": 0.4,
    "anneal_strategy": "linear",
    "base_momentum": 0.8,
    "max_momentum": 0.95,
    "div_factor": 4.0,
    "final_div_factor": 10.0,
}


def test_one_cycle_moves_the_momentum_against_the_lr() -> None:
    optimizer = optimizer_of(0.4)
    seen = drive(attach(schedule("OneCycleLR", ONE_CYCLE), optimizer), optimizer, range(5))
    assert [lr for lr, _ in seen] == pytest.approx([0.1, 0.4, 0.27, 0.14, 0.01])
    assert [momentum for _, momentum in seen] == pytest.approx([0.95, 0.8, 0.85, 0.9, 0.95])


def test_one_cycle_moves_the_first_beta_of_adam() -> None:
    optimizer = Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    seen = drive(attach(schedule("OneCycleLR", ONE_CYCLE), optimizer), optimizer, range(5))
    assert [beta for _, beta in seen] == pytest.approx([0.95, 0.8, 0.85, 0.9, 0.95])
    assert optimizer.param_groups[0]["betas"][1] == 0.999


def test_on_a_plateau_the_lr_falls_once_patience_is_over() -> None:
    seen = outcome("ReduceLROnPlateau", {"factor": 0.5, "patience": 1})
    assert [lr for lr, _ in seen] == [0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(
    ("mode", "metrics", "message"),
    [
        ("min", None, r"ReduceLROnPlateau needs on_epoch_end\(metrics=\{'min': …\}\), got none"),
        ("max", {"min": 1.0}, r"ReduceLROnPlateau needs on_epoch_end\(metrics=\{'max': …\}\), got only 'min'"),
    ],
)
def test_a_plateau_without_its_metric_is_an_error_that_says_so(mode: str, metrics: Any, message: str) -> None:
    scheduler = attach(schedule("ReduceLROnPlateau", {"mode": mode}), optimizer_of(0.4))
    scheduler.on_epoch_begin(0)
    with pytest.raises(PrunekitError, match=message):
        scheduler.on_epoch_end(0, metrics=metrics)


def test_functions_and_schedulers_come_from_schedules_written_in_python() -> None:
    warm_up = partial(LinearLR, start_factor=0.25, total_iters=3)
    halve = partial(ExponentialLR, gamma=0.5)
    assert [
        rates("LambdaLR", lr_lambda=lambda epoch: 1 / (1 + epoch)),
        rates("LambdaLR", lr_lambda=[lambda epoch: 1.0 * epoch]),
        rates("MultiplicativeLR", lr_lambda=lambda epoch: 0.5),
        rates("SequentialLR", schedulers=[warm_up, halve], milestones=[3]),
        rates("SequentialLR", schedulers=[warm_up, halve], milestones=[1]),
        rates("ChainedScheduler", schedulers=[partial(ConstantLR, factor=0.5, total_iters=2), halve]),
    ] == [
        [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 1 / 8],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1 / 2**epoch for epoch in range(8)],
        [0.25, 0.5, 0.75, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16],
        [0.25, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64],
        [0.5, 0.25, 0.25, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128],
    ]


def test_a_chain_is_said_in_yaml_as_in_python() -> None:
    chain = [{"class": "LinearLR", "start_factor": 0.25, "total_iters": 3}, {"class": "ExponentialLR", "gamma": 0.5}]
    functions = [partial(LinearLR, start_factor=0.25, total_iters=3), partial(ExponentialLR, gamma=0.5)]
    assert [
        rates("SequentialLR", schedulers=chain, milestones=[3]),
        rates("ChainedScheduler", schedulers=chain),
    ] == [
        rates("SequentialLR", schedulers=functions, milestones=[3]),
        rates("ChainedScheduler", schedulers=functions),
    ]


def test_a_sequence_of_schedulers_resumes() -> None:
    schedulers = [partial(LinearLR, start_factor=0.25, total_iters=3), partial(ExponentialLR, gamma=0.5)]
    keys = {"schedulers": schedulers, "milestones": [3]}
    straight = rates("SequentialLR", **keys)
    assert rates_by_epoch("SequentialLR", keys, EPOCHS, bases=[1.0], stopped=5) == straight


def problems(keys: Mapping[str, Any] | str, tmp_path: Path) -> list[str]:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"version: 1\nlr_schedulers:\n  lr: {keys}\n"
        "policies:\n  - lr_scheduler: {instance_name: lr}\n    starting_epoch: 0\n    ending_epoch: 5\n"
    )
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(path, torch.nn.Linear(1, 1), optimizer_of(0.4), trace=Trace(logger=None))
    return [f"{p.position.line}:{p.position.column} {p.path}: {p.message}" for p in caught.value.problems]


def test_what_yaml_can_not_say_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    functions = "must be Python functions, which YAML can't hold: write the schedule in Python"
    assert [
        *problems("{class: LambdaLR, lr_lambda: 'lambda epoch: 0.9'}", tmp_path),
        *problems("{class: MultiplicativeLR, lr_lambda: 0.9}", tmp_path),
    ] == [
        f"3:36 lr_schedulers.lr.lr_lambda: {functions}, got 'lambda epoch: 0.9'",
        f"3:44 lr_schedulers.lr.lr_lambda: {functions}, got 0.9",
    ]


def test_a_chain_says_which_of_its_schedulers_is_wrong(tmp_path: Path) -> None:
    def chain(*schedulers: str) -> list[str]:
        return problems(f"{{class: ChainedScheduler, schedulers: [{', '.join(schedulers)}]}}", tmp_path)

    fine = "{class: ExponentialLR, gamma: 0.9}"
    assert [
        *chain("StepLR"),
        *chain(fine, "{step_size: 3}"),
        *chain(fine, "{class: StepLr, step_size: 3}"),
        *chain(fine, "{class: StepLR}"),
        *chain(fine, "{class: StepLR, step_size: 3, gama: 0.1}"),
        *chain(fine, "{class: PolynomialLR, total_iters: 3, power: high}"),
        *chain("{class: ChainedScheduler, schedulers: [{class: LambdaLR, lr_lambda: 0.9}]}"),
        *chain("{class: CyclicLR, base_lr: [0.1, 0.2], max_lr: 1.0}"),
        *chain(),
    ] == [
        "3:46 lr_schedulers.lr.schedulers[0]: must be a mapping with a scheduler's 'class' and its keys, got 'StepLR'",
        f"3:82 lr_schedulers.lr.schedulers[1]: 'class' must be one of torch's schedulers, got None{known()}",
        "3:82 lr_schedulers.lr.schedulers[1]: 'class' must be one of torch's schedulers, got 'StepLr'; did you mean "
        "'StepLR'?",
        "3:82 lr_schedulers.lr.schedulers[1]: StepLR needs 'step_size' (int)",
        "3:118 lr_schedulers.lr.schedulers[1].gama: StepLR has no argument 'gama'; did you mean 'gamma'?",
        "3:127 lr_schedulers.lr.schedulers[1].power: must be a valid number, got 'high'",
        "3:114 lr_schedulers.lr.schedulers[0].schedulers[0].lr_lambda: must be Python functions, which YAML can't "
        "hold: write the schedule in Python, got 0.9",
        "3:46 lr_schedulers.lr.schedulers[0]: CyclicLR refuses its arguments: base_lr must have the same length as "
        "optimizer.param_groups. base_lr has 2 values, param_groups has 1.",
        "3:15 lr_schedulers.lr.class: ChainedScheduler refuses its arguments: ValueError: ChainedScheduler expects at "
        "least one scheduler to be chained, but got no scheduler.",
    ]


def known() -> str:
    return did_you_mean("None", prunekit_torch_lr.list_components("lr_scheduler"))


def test_what_does_not_fit_is_refused_at_load_with_its_position(tmp_path: Path) -> None:
    (misspelt,) = problems("{class: StepLr, step_size: 3}", tmp_path)
    assert misspelt.startswith(
        "3:15 lr_schedulers.lr.class: no lr_scheduler is registered as 'StepLr'; did you mean 'StepLR'?"
    )
    assert [
        *problems("{class: StepLR, gamma: high}", tmp_path),
        *problems("{class: StepLR, step_size: 3, gama: 0.1}", tmp_path),
        *problems("{class: MultiStepLR, milestones: 3}", tmp_path),
        *problems("{class: CyclicLR, base_lr: 0.1, max_lr: 0.2, cycle_momentum: 1}", tmp_path),
        *problems("{class: ReduceLROnPlateau, factor: 2.0}", tmp_path),
    ] == [
        "3:7 lr_schedulers.lr: StepLR needs 'step_size' (int)",
        "3:30 lr_schedulers.lr.gamma: must be a valid number, got 'high'",
        "3:37 lr_schedulers.lr.gama: StepLR has no argument 'gama'; did you mean 'gamma'?",
        "3:40 lr_schedulers.lr.milestones: must be a list, got 3",
        "3:68 lr_schedulers.lr.cycle_momentum: must be a valid boolean, got 1",
        "3:15 lr_schedulers.lr.class: ReduceLROnPlateau refuses its arguments: ValueError: Factor should be < 1.0.",
    ]


def test_the_trace_names_torch_lr_as_the_one_who_changed_the_rate(tmp_path: Path) -> None:
    optimizer = optimizer_of(1.0)
    scheduler = attach(schedule("ExponentialLR", {"gamma": 0.5}), optimizer, Trace(tmp_path, logger=None))
    for _ in scheduler.epochs(2):
        pass
    lines = [line for line in read(tmp_path) if line["event"] == "learning rate changed"]
    assert [[line[key] for key in ("component", "plugin", "epoch", "before", "after")] for line in lines] == [
        ["ExponentialLR 'lr'", "prunekit-torch-lr", 0, [1.0], [0.5]],
        ["ExponentialLR 'lr'", "prunekit-torch-lr", 1, [0.5], [0.25]],
    ]


# The laws of every component and every listener


LAWFUL = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 6},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 8},
    "ReduceLROnPlateau": {},
}


@pytest.mark.parametrize("name", LAWFUL)
def test_torch_s_schedulers_keep_the_laws(name):
    # What torch itself leaves untyped or says nothing about is torch's.
    laws = [law for law in LAWS if law not in ("typed_constructor", "documented_constructor")]
    check_component(name, laws=laws, **LAWFUL[name])


def test_it_only_listens():
    check_component("torch-lr")
