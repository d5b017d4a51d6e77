"""The end of a run: nothing is left on model and optimizer, training afterwards is free, and another may begin."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, batches, pruning, train_attached, window, zeros
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from prunekit import Application, CompressionScheduler, PrunekitError, ScheduleError, Trace, train
from prunekit.cli.report import summary

QUANTIZING = {
    "version": 1,
    "quantizers": {"q": {"class": "PACTQuantizer", "bits_weights": 4, "bits_activations": 4}},
    "policies": [{"quantizer": {"instance_name": "q"}, **window(0, 9)}],
}
REGULARIZING = {
    "version": 1,
    "regularizers": {"r": {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.01}}},
    "lr_schedulers": {"lr": {"class": "ExponentialLR", "gamma": 0.9}},
    "policies": [
        {"regularizer": {"instance_name": "r"}, **window(0, 9)},
        {"lr_scheduler": {"instance_name": "lr"}, **window(0, 9)},
    ],
}
HIDDEN = {"mask_on_forward_only": True, "mask_gradients": True, "use_double_copies": True}
SCHEDULES = {
    "a pruner": pruning(when=window(0, 9)),
    "hidden masks": pruning(args=HIDDEN, when=window(0, 9)),
    "scaled weights": pruning(
        "BernoulliFilterPruner", desired_sparsity=0.5, weights="fc1.weight", granularity={"dim": 0}, when=window(0, 9)
    ),
    "one that observes": pruning("SNIPPruner", desired_sparsity=0.5, weights="fc1.weight", when=window(0, 9)),
    "one that listens": pruning(
        "ActivationMeanRankedFilterPruner",
        desired_sparsity=0.5,
        weights="fc1.weight",
        granularity={"dim": 0},
        when=window(0, 9),
    ),
    "a quantizer": QUANTIZING,
    "a regularizer and rates": REGULARIZING,
}


class Net(MLP):
    """With an activation that can be listened to and quantized."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.fc1(x)))


def hooks_on(model: nn.Module) -> int:
    on_modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    number = sum(len(getattr(module, name)) for module in model.modules() for name in on_modules)
    return number + sum(len(parameter._backward_hooks or ()) for parameter in model.parameters())


def hooks_on_steps() -> int:
    """The pair that hears of all steps of the process is there as long as anybody listens."""
    gc.collect()  # of schedulers of other tests
    return len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks)


def started(
    data: dict[str, Any], model: nn.Module | None = None, epochs: int = 2, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, CompressionScheduler]:
    """In the middle of epoch 1."""
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, **{"trace": SILENT, **options})
    for epoch in scheduler.epochs(9):
        for x, y in scheduler.minibatches(batches()):
            step(model, optimizer, x, y, scheduler)
            if epoch == epochs - 1:
                return model, optimizer, scheduler
    raise AssertionError("a run of 9 epochs has an epoch 1")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any, scheduler: Any = None) -> None:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    (loss if scheduler is None else scheduler.total_loss(loss)).backward()
    optimizer.step()


@pytest.mark.parametrize("end", ["close", "on_train_end"])
@pytest.mark.parametrize("data", SCHEDULES.values(), ids=SCHEDULES)
def test_no_hook_is_left_and_nothing_keeps_anything_alive(data: dict[str, Any], end: str) -> None:
    model, optimizer, scheduler = started(data)
    assert hooks_on_steps() == 2
    getattr(scheduler, end)()
    assert (hooks_on(model), hooks_on_steps()) == (0, 0)
    reference = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert reference() is None, "neither model nor optimizer knows the scheduler"
    references = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("data", SCHEDULES.values(), ids=SCHEDULES)
def test_a_scheduler_that_is_dropped_with_its_model_is_gone(data: dict[str, Any]) -> None:
    references = [weakref.ref(each) for each in started(data)]
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


@pytest.mark.parametrize("data", SCHEDULES.values(), ids=SCHEDULES)
def test_what_is_evaluated_under_masks_is_what_training_leaves(data: dict[str, Any]) -> None:
    model, _, scheduler = started(data)
    (x, _), *_ = batches()
    with scheduler.masked(), torch.no_grad():
        before = model(x)
    scheduler.on_train_end()
    with torch.no_grad():
        assert torch.equal(model(x), before)
        with scheduler.masked():
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("args", [None, HIDDEN], ids=["enforced", "hidden"])
def test_training_afterwards_is_free_and_the_scheduler_still_answers(args: Any) -> None:
    model, optimizer, scheduler = started(pruning(args=args, when=window(0, 9)))
    scheduler.on_train_end()
    assert zeros(model.fc1.weight) == 48
    for x, y in batches():
        step(model, optimizer, x, y)
    assert zeros(model.fc1.weight) == 0
    assert scheduler.sparsity("fc1.weight") == 0
    assert int((~scheduler.masks["fc1.weight"]).sum()) == 48
    weights = model.fc1.weight.detach().clone()
    with scheduler.masked():
        assert zeros(model.fc1.weight) == 48
    assert torch.equal(model.fc1.weight, weights)
    assert scheduler.state_dict()["masks"]["fc1.weight"]["forward_only"] is False


def test_a_scheduler_goes_on_with_later_epochs_after_training_has_ended() -> None:
    model, log = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=Trace(logger=log))
    train_attached(scheduler, optimizer, 4)
    for x, y in batches():
        step(model, optimizer, x, y)
    assert (zeros(model.fc1.weight), scheduler.attached) == (0, False)
    seen = []
    for epoch in scheduler.epochs(6):
        for x, y in scheduler.minibatches(batches()):
            step(model, optimizer, x, y, scheduler)
            seen.append((epoch, zeros(model.fc1.weight)))
    assert set(seen) == {(4, 48), (5, 48)}
    assert [line["epochs"] for line in log.events("training ends")] == [4, 6]
    with pytest.raises(PrunekitError, match=r"training has ended after 6 epochs; epochs\(n\) with n above 6 goes on"):
        next(scheduler.epochs(6))
    with pytest.raises(PrunekitError, match="epoch 5 begins, and training has ended after 6 epochs"):
        scheduler.on_epoch_begin(5)
    with pytest.raises(PrunekitError, match="mini-batch 0 of epoch 5 begins, and no epoch is under way"):
        next(scheduler.minibatches([1]))
    assert (scheduler.attached, hooks_on(model)) == (False, 0), "what is refused does not attach it again"
    scheduler.on_epoch_begin(6)
    assert (scheduler.attached, zeros(model.fc1.weight)) == (True, 48)


def test_a_finished_state_has_no_epoch_left_and_that_is_said() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
    train_attached(scheduler, optimizer, 3)
    other, log = MLP(), Recorder()
    resumed = CompressionScheduler.from_dict(pruning(), other, trace=Trace(logger=log))
    resumed.load_state_dict(scheduler.state_dict())
    assert list(resumed.epochs(3)) == []
    assert log.events("no epoch left") == [{"level": "warning", "event": "no epoch left", "epochs": 3, "done": 3}]


def every_event(scheduler: CompressionScheduler) -> Iterator[Any]:
    loss = torch.zeros((), requires_grad=True)
    yield lambda: scheduler.on_train_begin()
    yield lambda: scheduler.on_epoch_begin(7)
    yield lambda: scheduler.on_minibatch_begin(1, 1, 4)
    yield lambda: scheduler.before_backward_pass(1, 0, 4, loss)
    yield lambda: scheduler.before_parameter_optimization(1, 0, 4)
    yield lambda: scheduler.on_minibatch_end(1, 0, 4)
    yield lambda: scheduler.on_epoch_end(1)
    yield lambda: next(scheduler.epochs(9))
    yield lambda: next(scheduler.minibatches([1]))
    yield lambda: scheduler.total_loss(loss)
    yield lambda: scheduler.load_state_dict({})


def test_after_close_every_event_says_so_and_all_else_answers() -> None:
    model, _, scheduler = started(pruning(args=HIDDEN, when=window(0, 9)))
    scheduler.close()
    scheduler.close()
    scheduler.on_train_end()
    for event in every_event(scheduler):
        with pytest.raises(PrunekitError, match="the scheduler is closed; make a new CompressionScheduler"):
            event()
    assert zeros(model.fc1.weight) == 48
    assert (scheduler.sparsity("fc1.weight"), list(scheduler.masks)) == (0.5, ["fc1.weight"])
    assert scheduler.state_dict()["next_epoch"] == 1
    assert (scheduler.progress.epoch, scheduler.progress.minibatch) == (1, 0)


def test_events_between_two_epochs_do_not_take_up_a_run_that_has_ended() -> None:
    model, _, scheduler = started(pruning(when=window(0, 9)))
    scheduler.on_train_end()
    loss = torch.zeros((), requires_grad=True)
    for event in (
        lambda: scheduler.on_minibatch_begin(1, 1, 4),
        lambda: scheduler.before_backward_pass(1, 1, 4, loss),
        lambda: scheduler.before_parameter_optimization(1, 1, 4),
        lambda: scheduler.on_minibatch_end(1, 1, 4),
    ):
        with pytest.raises(PrunekitError, match="and no epoch is under way"):
            event()
    assert scheduler.total_loss(loss) is loss
    assert (scheduler.attached, hooks_on(model)) == (False, 0)


def test_an_epoch_that_was_left_in_the_middle_counts_when_training_ends() -> None:
    log = Recorder()
    *_, scheduler = started(pruning(when=window(0, 2)), epochs=1, trace=Trace(logger=log))
    scheduler.on_train_end()
    assert log.warnings == []
    other = CompressionScheduler.from_dict(pruning(), MLP(), trace=Trace(logger=log))
    other.on_train_begin()
    other.on_train_end()
    assert log.warnings == []


def test_a_closed_scheduler_puts_no_hook_on_an_optimizer_that_it_is_given() -> None:
    model, _, scheduler = started(pruning(when=window(0, 9)))
    scheduler.close()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrunekitError, match="closed"):
        scheduler.on_epoch_begin(3, other)
    with pytest.raises(PrunekitError, match="closed"):
        scheduler.before_parameter_optimization(1, 0, 4, other)
    assert hooks_on(model) == 0


def test_a_block_closes_its_scheduler_and_ends_training_where_it_comes_to_its_end() -> None:
    model, log = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = Trace(logger=log)
    with CompressionScheduler.from_dict(pruning(), model, optimizer, trace=trace) as scheduler:
        scheduler.on_epoch_begin(0)
        scheduler.on_epoch_end(0)
    assert hooks_on(model) == 0
    assert [line["event"] for line in log.lines][-1] == "training ends"
    with suppress(ZeroDivisionError), CompressionScheduler.from_dict(pruning(), model, optimizer, trace=trace) as again:
        again.on_epoch_begin(0)
        raise ZeroDivisionError
    assert hooks_on(model) == 0
    assert [line["event"] for line in log.lines].count("training ends") == 1
    with CompressionScheduler.from_dict(pruning(), model, optimizer, trace=trace):
        pass


def test_a_listener_that_fails_over_the_end_leaves_no_hook_behind() -> None:
    class Fails:
        from prunekit import hookimpl

        @hookimpl
        def on_train_end(self) -> None:
            raise ZeroDivisionError

    model, _, scheduler = started(pruning(when=window(0, 9)), listeners=[Fails])
    with pytest.raises(ZeroDivisionError):
        scheduler.on_train_end()
    assert hooks_on(model) == 0


# Another scheduler


CELL = """
if "model" not in globals() or not KEEP:
    model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = CompressionScheduler.from_dict(DATA, model, optimizer, trace=Trace(logger=log))
for epoch in scheduler.epochs(3):
    for minibatch, (x, y) in enumerate(scheduler.minibatches(batches())):
        step(model, optimizer, x, y, scheduler)
        if minibatch == 1 and STOP:
            raise KeyboardInterrupt
"""


@pytest.mark.parametrize("data", [SCHEDULES["a pruner"], SCHEDULES["hidden masks"], QUANTIZING], ids=["p", "h", "q"])
@pytest.mark.parametrize("keep", [False, True], ids=["model anew", "model kept"])
@pytest.mark.parametrize("stop", [False, True], ids=["finished", "interrupted"])
def test_a_notebook_cell_is_run_twice(
    data: dict[str, Any], keep: bool, stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Recorder()
    cell = {**globals(), "DATA": data, "KEEP": keep, "STOP": stop, "log": log}
    try:
        exec(CELL, cell)
    except KeyboardInterrupt as interrupt:
        # As a shell does: the frames of the first run live on.
        monkeypatch.setattr(sys, "last_traceback", interrupt.__traceback__, raising=False)
    first, model = cell["scheduler"], cell["model"]
    log.lines.clear()
    again = cell | {"STOP": False}
    exec(CELL, again)
    second = again["scheduler"]
    assert (second is not first, second.attached, again["model"] is model) == (True, False, keep)
    closed = log.events("older scheduler closed")
    assert len(closed) == (1 if keep and stop else 0)
    if keep and stop:
        names = ["fc1.weight"] if data is not QUANTIZING else ["fc1.weight", "fc2.weight", "relu"]
        assert closed[0]["parameters"] == names
        assert not first.attached
        with pytest.raises(PrunekitError, match="closed"):
            first.on_epoch_begin(1)
    if keep:
        names = [type(module).__name__ for module in model.modules()]
        assert not [name for name in names if name.startswith("QuantizedQuantized")]


def test_the_second_schedule_reaches_its_own_sparsity() -> None:
    model, optimizer, first = started(pruning(when=window(0, 9)))
    first.on_train_end()
    log = Recorder()
    data = pruning(levels={"fc1.weight": 0.25})
    second = CompressionScheduler.from_dict(data, model, optimizer, trace=Trace(logger=log))
    for x, y in batches():
        step(model, optimizer, x, y)
    train_attached(second, optimizer, 3)
    assert (zeros(model.fc1.weight), second.sparsity("fc1.weight")) == (24, 0.25)
    assert log.warnings == []


def test_a_schedule_that_is_refused_leaves_the_one_before_it_alone() -> None:
    model, optimizer, first = started(QUANTIZING)
    kinds = [type(module) for module in model.modules()]
    wrong = {**QUANTIZING, "quantizers": {"q": {"class": "PACTQuantizer", "bits_weights": -4, "bits_activations": 4}}}
    with pytest.raises(ScheduleError):
        CompressionScheduler.from_dict(wrong, model, optimizer, trace=SILENT)
    assert (first.attached, [type(module) for module in model.modules()]) == (True, kinds)


def test_what_was_quantized_stays_until_another_quantizer_comes() -> None:
    model, optimizer, first = started(QUANTIZING)
    first.on_train_end()
    assert type(model.fc1) is not nn.Linear
    CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
    assert type(model.fc1) is not nn.Linear
    CompressionScheduler.from_dict(QUANTIZING, model, optimizer, trace=SILENT)
    assert type(model.fc1) is nn.Linear
    assert dict(first.quantized.weights) == {}


def test_two_schedulers_of_different_parameters_do_not_disturb_each_other() -> None:
    model, log = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = Trace(logger=log)
    both = [
        CompressionScheduler.from_dict(pruning(levels={name: 0.5}), model, optimizer, trace=trace)
        for name in ("fc1.weight", "fc2.weight")
    ]
    for scheduler in both:
        scheduler.on_epoch_begin(0)
    for x, y in batches():
        step(model, optimizer, x, y)
    assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (48, 16)
    assert log.warnings == []


def test_two_schedulers_that_set_one_learning_rate_are_warned_about() -> None:
    model, log = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = CompressionScheduler.from_dict(REGULARIZING, model, optimizer, trace=SILENT)
    second = CompressionScheduler.from_dict(REGULARIZING, model, optimizer, trace=Trace(logger=log))
    who = ["ExponentialLR 'lr', policies[1], prunekit-torch-lr 0.1.0"]
    assert log.warnings == [
        {"level": "warning", "event": "two schedulers set one learning rate", "older": who, "newer": who}
    ]
    assert first.attached and second.attached
    first.close()
    log.lines.clear()
    CompressionScheduler.from_dict(REGULARIZING, MLP(), torch.optim.SGD(model.parameters(), lr=0.1), trace=SILENT)
    assert log.lines == []


@pytest.mark.parametrize("data", [pruning(), QUANTIZING], ids=["pruned", "quantized"])
def test_an_application_is_trained_twice(data: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    app = Application(model, optimizer, batches(), batches(), nn.functional.cross_entropy)
    told: list[str] = []
    results = [train(app, data, 4, on_warning=told.append) for _ in range(2)]
    assert hooks_on(model) == 0
    assert [sum(parameter.sparsity > 0.4 for parameter in result.parameters) for result in results] == (
        [1, 1] if "pruners" in data else [0, 0]
    )
    assert told == []


def test_a_result_tells_where_its_run_ended() -> None:
    keys = {"initial_sparsity": 0.0, "final_sparsity": 0.8, "weights": "fc1.weight", "curve": "linear"}
    data = pruning("AutomatedGradualPruner", when=window(0, 5), **keys)
    data["quantizers"], said = QUANTIZING["quantizers"], []
    data["policies"].append({"quantizer": {"instance_name": "q"}, **window(0, 2)})
    model = Net()
    app = Application(
        model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), batches(), nn.functional.cross_entropy
    )
    result = train(app, data, 3, on_warning=said.append)
    why = "is over before the run is, and the result will be a float model"
    endings = [
        "<dict>: policies[0]: a run of 3 epochs cuts it off: 'p' comes to sparsity 0.4 and not to 0.8",
        f"<dict>: policies[1]: {why}: its last epoch is 1, and a run of 3 ends with 2",
    ]
    assert (said, list(result.endings), result.to_dict()["endings"]) == (endings, endings, endings)
    assert [line for line in summary(result) if line.startswith("warning: ")] == [f"warning: {e}" for e in endings]


def test_a_compiled_model_calls_no_hook_that_is_gone() -> None:
    import torch._dynamo

    torch._dynamo.reset()
    data = SCHEDULES["one that listens"]
    model = torch.compile(Net(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=SILENT)
    component = scheduler.components["pruners.p"]
    scheduler.on_epoch_begin(0)
    for x, y in scheduler.minibatches(batches()):
        step(model, optimizer, x, y, scheduler)
    (x, _), *_ = batches()
    model(x)
    scheduler.close()
    heard = {name: str(value) for name, value in vars(component).items()}
    model(x)
    assert {name: str(value) for name, value in vars(component).items()} == heard
