"""Windows in steps of the optimizer: every kind acts in them, in one long epoch too, and resumes within an epoch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, batches, equal, through_a_file, zeros
from torch import nn

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PolicySpec,
    Progress,
    Schedule,
    ScheduleError,
    Trace,
    Window,
    hookimpl,
)

MINIBATCHES, EPOCHS = 5, 3


def steps(start: int, end: int, frequency: int = 1) -> dict[str, int]:
    return {"starting_step": start, "ending_step": end, "frequency": frequency}


def one(kind: str, class_: str, when: dict[str, Any], args: dict[str, Any] | None = None, **keys: Any) -> Any:
    """A schedule with one component."""
    policy = {kind: {"instance_name": "c", **({"args": args} if args else {})}, **when}
    return {"version": 1, f"{kind}s": {"c": {"class": class_, **keys}}, "policies": [policy]}


class Run:
    """A model in training, with gradients accumulated over `every` mini-batches."""

    def __init__(self, schedule: Any, every: int = 1, trace: Trace = SILENT) -> None:
        self.schedule, self.every, self.trace = schedule, every, trace
        self.zeros: list[int] = []
        self.start()

    def start(self) -> None:
        self.model = MLP()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = CompressionScheduler.from_dict(self.schedule, self.model, self.optimizer, trace=self.trace)

    def train(self, first: int = 0, last: int = MINIBATCHES * EPOCHS, per_epoch: int = MINIBATCHES) -> None:
        """The mini-batches of the run from the first up to the last."""
        data = batches(per_epoch)
        for number in range(first, last):
            epoch, minibatch = divmod(number, per_epoch)
            if minibatch == 0:
                self.scheduler.on_epoch_begin(epoch)
            self.minibatch(epoch, minibatch, data)
            if minibatch == per_epoch - 1:
                self.scheduler.on_epoch_end(epoch)

    def minibatch(self, epoch: int, minibatch: int, data: list[Any]) -> None:
        x, y = data[minibatch]
        self.scheduler.on_minibatch_begin(epoch, minibatch, len(data))
        self.zeros.append(zeros(self.model.fc1.weight))
        loss = nn.functional.cross_entropy(self.model(x), y) / self.every
        self.scheduler.before_backward_pass(epoch, minibatch, len(data), loss).backward()
        if (epoch * len(data) + minibatch + 1) % self.every == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.scheduler.on_minibatch_end(epoch, minibatch, len(data))

    def state(self) -> Any:
        gradients = [p.grad for p in self.model.parameters()]
        return through_a_file([*(part.state_dict() for part in self.parts), gradients])

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.scheduler

    def continue_from(self, state: Any) -> None:
        self.start()
        for part, saved in zip(self.parts, state, strict=False):
            part.load_state_dict(saved)
        for parameter, gradient in zip(self.model.parameters(), state[-1], strict=True):
            parameter.grad = gradient


WINDOW = steps(3, 12, 2)
SCHEDULES = {
    "AGP": one(
        "pruner", "AutomatedGradualPruner", WINDOW, initial_sparsity=0.1, final_sparsity=0.8, weights=["fc?.weight"]
    ),
    "sensitivity": one("pruner", "SensitivityPruner", WINDOW, sensitivities={"fc1.weight": 0.9}),
    "RigL": one("pruner", "RigLPruner", steps(0, 12), weights=["fc?.weight"], desired_sparsity=0.5, delta_t=3),
    "SET": one("pruner", "SETPruner", WINDOW, weights=["fc?.weight"], desired_sparsity=0.5),
    "SNIP": one("pruner", "SNIPPruner", steps(2, 5), weights=["fc?.weight"], desired_sparsity=0.5, batches=3),
    "movement": one(
        "pruner", "MovementPruner", WINDOW, initial_sparsity=0.0, final_sparsity=0.5, weights=["fc?.weight"]
    ),
    "Baidu": one(
        "pruner", "BaiduRNNPruner", WINDOW, q=0.3, ramp_epoch_offset=3, ramp_slope_mult=2, weights=["fc1.weight"]
    ),
    "forward only": one(
        "pruner", "SparsityLevelParameterPruner", WINDOW, {"mask_on_forward_only": True}, levels={"fc1.weight": 0.5}
    ),
    "masked gradients": one(
        "pruner",
        "SparsityLevelParameterPruner",
        WINDOW,
        {"mask_on_forward_only": True, "mask_gradients": True, "keep_mask": True},
        levels={"fc1.weight": 0.5},
    ),
    "discarded": one(
        "pruner",
        "SparsityLevelParameterPruner",
        WINDOW,
        {"discard_masks_at_minibatch_end": True},
        levels={"fc1.weight": 0.5},
    ),
    "L1": one(
        "regularizer",
        "L1Regularizer",
        WINDOW,
        {"keep_mask": True},
        reg_regims={"fc1.weight": 0.05},
        threshold_criteria="Max",
    ),
    "WRPN": one("quantizer", "WRPNQuantizer", WINDOW, bits_weights=2, bits_activations=None),
    "PACT": one("quantizer", "PACTQuantizer", WINDOW, bits_weights=4, bits_activations=4),
    "exponential": one("lr_scheduler", "ExponentialLR", steps(0, 12), gamma=0.9),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resume_within_an_epoch_and_within_a_window_is_bit_for_bit(name: str, every: int) -> None:
    straight = Run(SCHEDULES[name], every)
    cuts, states = (0, 4, 6, 9, 12, 13), {}
    for start, cut in pairwise(cuts):
        straight.train(start, cut)
        states[cut] = straight.state()
    straight.train(cuts[-1])
    for cut, state in states.items():
        resumed = Run(SCHEDULES[name], every)
        resumed.continue_from(state)
        resumed.train(cut)
        assert equal(trained(straight), trained(resumed)), f"cut before mini-batch {cut}"


def trained(run: Run) -> Any:
    """All that training depends on: what the ledger sums up for an epoch's lines begins anew where a run goes on."""
    model, optimizer, scheduler, gradients = run.state()
    del scheduler["ledger"]
    return model, optimizer, scheduler, gradients


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_kind_acts_in_its_steps_and_in_no_others(name: str) -> None:
    """Before the window and where there is none a run goes as without a schedule; in it, it does not."""
    nothing, run = Run({"version": 1, "policies": []}), Run(SCHEDULES[name])
    first = run.scheduler.policies[0].window.opening.step
    nothing.train(0, first)
    run.train(0, first)
    assert equal(run.state()[0], nothing.state()[0])
    nothing.train(first, first + 5)
    run.train(first, first + 5)
    assert not equal(run.state()[0], nothing.state()[0])


def test_agp_along_steps_is_that_of_its_paper() -> None:
    """Zhu & Gupta 2017, equation 1: s_f + (s_i - s_f)(1 - (t - t0) / (n Δt))³, t0 = 10, Δt = 5, n = 6; one epoch."""
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.75, "weights": "fc1.weight"}
    run = Run(one("pruner", "AutomatedGradualPruner", steps(10, 41, 5), **keys))
    run.train(last=50, per_epoch=50)
    paper = [0.75 + (0.25 - 0.75) * (1 - (t - 10) / (6 * 5)) ** 3 for t in range(10, 41, 5)]
    assert run.zeros[10:41:5] == [int(s * 96) for s in paper]
    assert run.zeros[:10] == [0] * 10
    assert run.zeros[41:] == [72] * 9


@pytest.mark.parametrize("every", [1, 3])
def test_gradients_that_are_accumulated_make_a_step_of_several_minibatches(every: int) -> None:
    run = Run(one("pruner", "SparsityLevelParameterPruner", steps(2, 3), levels={"fc1.weight": 0.5}), every)
    run.train(last=4 * every, per_epoch=4 * every)
    assert run.zeros == [0] * 2 * every + [48] * 2 * every


def test_steps_that_the_optimizer_skips_do_not_count() -> None:
    """As under a gradient scaler that has found infinities: mini-batches 1 and 2 take no step."""
    run = Run(one("pruner", "SparsityLevelParameterPruner", steps(2, 3), levels={"fc1.weight": 0.5}))
    step = run.optimizer.step
    data = batches(6)
    run.scheduler.on_epoch_begin(0)
    for minibatch in range(6):
        run.optimizer.step = (lambda: None) if minibatch in (1, 2) else step  # type: ignore[method-assign]
        run.minibatch(0, minibatch, data)
    assert run.zeros == [0, 0, 0, 0, 48, 48]


class Hears:
    """Notes every event of its window."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    @hookimpl
    def on_epoch_begin(self, progress: Progress) -> None:
        self.heard.append(("epoch begins", progress.step))

    @hookimpl
    def on_minibatch_begin(self, progress: Progress) -> None:
        self.heard.append(("begin", progress.step))

    @hookimpl
    def before_parameter_optimization(self, progress: Progress) -> None:
        self.heard.append(("gradients", progress.step))

    @hookimpl
    def on_minibatch_end(self, progress: Progress) -> None:
        self.heard.append(("end", progress.step))

    @hookimpl
    def on_epoch_end(self, progress: Progress) -> None:
        self.heard.append(("epoch ends", progress.step))


@pytest.mark.parametrize(
    ("first", "last", "around"),
    [
        (4, 4, []),  # the last step of an epoch: the epoch's own events are none of the window's
        (5, 5, []),  # the first
        (4, 5, [("epoch ends", 4), ("epoch begins", 5)]),
    ],
)
def test_what_a_component_hears_in_a_window_of_steps(first: int, last: int, around: list[tuple[str, int]]) -> None:
    schedule = Schedule(
        [ComponentSpec("extension", "h", Hears)],
        [PolicySpec("extension", "h", Window(starting_step=first, ending_step=last + 1))],
    )
    run = Run({"version": 1, "policies": []})
    run.scheduler = CompressionScheduler(schedule, run.model, run.optimizer, trace=SILENT)
    run.train()
    expected = [(event, step) for step in range(first, last + 1) for event in ("begin", "gradients", "end")]
    assert run.scheduler.components["extensions.h"].heard == expected[:3] + around + expected[3:]


@pytest.mark.parametrize("cut", [4, 5, 6])
def test_windows_of_steps_are_told_to_open_and_close_once(cut: int) -> None:
    """A run goes on within the window, and after it, where nothing opens again."""
    log = Recorder()
    run = Run(one("pruner", "SparsityLevelParameterPruner", steps(3, 5), levels={"*": 0.5}))
    run.train(0, cut)
    state = run.state()
    run.trace = Trace(logger=log)
    run.continue_from(state)
    run.train(cut)
    told = [(line["event"], line["epoch"], line["minibatch"]) for line in log.events("window opens", "window closes")]
    assert told == ([("window opens", 0, 3), ("window closes", 0, 4)] if cut == 4 else [])


def test_the_bus_changes_with_the_window_and_not_with_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acts in each of the steps 5 to 24: goes onto the bus with the one, and off it with the other."""
    run = Run(one("regularizer", "L1Regularizer", steps(5, 25), reg_regims={"fc1.weight": 0.01}))
    changes: list[int] = []
    bus = run.scheduler._execution.bus
    set_live = bus.set_live

    def set_and_tell(implementations: Any) -> None:
        before = bus.callers
        set_live(implementations)
        if bus.callers is not before:
            changes.append(run.scheduler.progress.step)

    monkeypatch.setattr(bus, "set_live", set_and_tell)
    run.train(last=40, per_epoch=40)
    assert changes == [5, 24]


# What is said


def test_a_window_that_training_never_reaches_is_said_at_its_end() -> None:
    log = Recorder()
    run = Run(one("pruner", "SparsityLevelParameterPruner", steps(15, 20), levels={"*": 0.5}), trace=Trace(logger=log))
    run.train()
    assert log.events("schedule") == []
    run.scheduler.on_train_end()
    (line,) = log.events("schedule")
    assert line["problem"] == "<dict>: policies[0]: never acts: its first step is 15, and a run of 15 ends with 14"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"mini_batch_pruning_frequency": 2},
            "mini_batch_pruning_frequency: is for windows in epochs; one in steps prunes every 'frequency' steps",
        ),
        (
            {"skip_first_minibatch": True},
            "skip_first_minibatch: leaves nothing to do: step 0 is the only active one, and its beginning is skipped",
        ),
    ],
)
def test_arguments_that_mean_nothing_in_steps_are_refused(args: dict[str, Any], message: str) -> None:
    schedule = one("pruner", "SparsityLevelParameterPruner", steps(0, 1), args, levels={"*": 0.5})
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(schedule, MLP())
    assert str(error.value) == f"<dict>: policies[0].pruner.args.{message}"


def test_the_first_step_of_a_window_may_be_skipped() -> None:
    args = {"skip_first_minibatch": True}
    run = Run(one("pruner", "SparsityLevelParameterPruner", steps(2, 7, 2), args, levels={"fc1.weight": 0.5}))
    run.train(last=8, per_epoch=8)
    assert run.zeros == [0, 0, 0, 0, 48, 48, 48, 48]


def both(first: dict[str, Any], second: dict[str, Any], name: str = "fc1.weight") -> dict[str, Any]:
    """Two pruners, the second of a parameter called `name`."""
    level = "SparsityLevelParameterPruner"
    pruners = {
        "a": {"class": level, "levels": {"fc1.weight": 0.25}},
        "b": {"class": level, "levels": {name: 0.5}},
    }
    policies = [{"pruner": {"instance_name": "a"}, **first}, {"pruner": {"instance_name": "b"}, **second}]
    return {"version": 1, "pruners": pruners, "policies": policies}


MAY_MEET = (
    "policies[1].pruner: policies[0] ('a') prunes 'fc1.weight' too, one of them in epochs, the other in steps; "
    "training stops if both come at one time"
)


def test_epochs_and_steps_that_may_meet_are_a_warning_and_an_error_once_they_do() -> None:
    log = Recorder()
    run = Run(both({"epochs": [1]}, steps(4, 12)), trace=Trace(logger=log))
    assert [line["problem"] for line in log.events("schedule")] == [f"<dict>: {MAY_MEET}"]
    run.train(0, 5)
    with pytest.raises(ScheduleError) as error:
        run.train(5)
    what = "policies[0] ('a') prunes 'fc1.weight' in epoch 1, step 5 too; two policies may not"
    assert str(error.value) == f"<dict>: policies[1].pruner: {what}"
    assert run.scheduler.changes["fc1.weight"][-1][0] == 1, "the epoch's policy came first"
    assert int((~run.scheduler.masks["fc1.weight"]).sum()) == 24, "and the step's has changed nothing"


def test_epochs_and_steps_that_do_not_meet_are_carried_out() -> None:
    run = Run(both({"epochs": [1]}, steps(10, 12)))
    run.train()
    assert run.zeros == [0] * 5 + [24] * 5 + [48] * 5


@pytest.mark.parametrize(
    "schedule", [both({"epochs": [1]}, steps(4, 12), "fc2.weight"), both(steps(0, 2), steps(2, 9))]
)
def test_policies_that_never_meet_are_no_warning(schedule: dict[str, Any]) -> None:
    log = Recorder()
    CompressionScheduler.from_dict(schedule, MLP(), trace=Trace(logger=log))
    assert log.events("schedule") == []


def test_steps_that_meet_are_an_error_before_training() -> None:
    with pytest.raises(ScheduleError, match=r"prunes 'fc1.weight' in step 8 too; two policies may not"):
        CompressionScheduler.from_dict(both(steps(0, 9, 2), steps(8, 20)), MLP())
