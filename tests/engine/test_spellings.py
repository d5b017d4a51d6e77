"""Older spellings of the events: what a Distiller loop says is taken, and what fits no event is told why."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, batches, pruning, train_explicit, window
from torch import Tensor, nn

from prunekit import CompressionScheduler, LossComponent, PolicyLoss, PrunekitError, Trace

REGULARIZED = {
    "version": 1,
    "regularizers": {
        "small": {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.1}},
        "smaller": {"class": "L1Regularizer", "reg_regims": {"fc2.weight": 0.2}},
    },
    "policies": [
        {"regularizer": {"instance_name": "small"}, **window(0, 2)},
        {"regularizer": {"instance_name": "smaller"}, **window(0, 1)},
    ],
}


def begun(schedule: dict[str, Any] | None = None, trace: Trace = SILENT) -> tuple[Any, torch.optim.Optimizer]:
    """A scheduler in its first epoch, and an optimizer that it was not given."""
    model = MLP()
    scheduler = CompressionScheduler.from_dict(schedule or pruning(), model, trace=trace)
    scheduler.on_epoch_begin(0)
    return scheduler, torch.optim.SGD(model.parameters(), lr=0.1)


# Taken


def test_a_loop_that_says_minibatch_id_trains_the_same_network() -> None:
    models = [MLP(), MLP()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    today, older = (
        CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
        for model, optimizer in zip(models, optimizers, strict=True)
    )
    train_explicit(today, optimizers[0], range(3))
    data, total = batches(), len(batches())
    for epoch in range(3):
        older.on_epoch_begin(epoch, optimizers[1])
        for step, (x, y) in enumerate(data):
            now: Any = {"minibatch_id": step, "minibatches_per_epoch": total, "optimizer": optimizers[1]}
            older.on_minibatch_begin(epoch, **now)
            loss = older.before_backward_pass(epoch, loss=nn.functional.cross_entropy(models[1](x), y), **now)
            optimizers[1].zero_grad()
            loss.backward()
            older.before_parameter_optimization(epoch, **now)
            optimizers[1].step()
            older.on_minibatch_end(epoch, **now)
        older.on_epoch_end(epoch, optimizers[1], metrics={"min": 1.0, "max": 0.5})
    assert older.progress == today.progress
    assert older.sparsity("fc1.weight") == 0.5
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_the_loss_comes_with_its_components_where_they_are_asked_for() -> None:
    scheduler, optimizer = begun(REGULARIZED)
    first, second = (0.1 * scheduler.model.fc1.weight.abs().sum(), 0.2 * scheduler.model.fc2.weight.abs().sum())
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    result = scheduler.before_backward_pass(
        0, 0, 1, torch.tensor(2.0), optimizer=optimizer, return_loss_components=True
    )
    overall, components = result
    assert [(component.name, component.value.item()) for component in components] == [
        ("small", pytest.approx(first.item())),
        ("smaller", pytest.approx(second.item())),
    ]
    assert (result.overall_loss, result.loss_components) == (overall, components)
    assert overall.item() == pytest.approx(2 + first.item() + second.item())
    assert components[0] == LossComponent("small", components[0].value)
    result.overall_loss.backward()
    assert torch.equal(scheduler.model.fc1.weight.grad, 0.1 * scheduler.model.fc1.weight.sign())


@pytest.mark.parametrize("asked", [{}, {"return_loss_components": False}])
def test_without_being_asked_the_loss_is_a_tensor(asked: dict[str, bool]) -> None:
    scheduler, optimizer = begun(REGULARIZED)
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    assert isinstance(scheduler.before_backward_pass(0, 0, 1, torch.tensor(2.0), optimizer, **asked), Tensor)


def test_where_nobody_adds_a_term_the_components_are_none_and_the_loss_is_the_very_same() -> None:
    scheduler, optimizer = begun()
    loss = torch.tensor(2.0)
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    result = scheduler.before_backward_pass(0, 0, 1, loss, optimizer, return_loss_components=True)
    assert result == PolicyLoss(loss, [])
    assert result.overall_loss is loss


def test_components_that_are_asked_for_or_not_leave_the_same_means_in_the_trace() -> None:
    seen = []
    for asked in ({}, {"return_loss_components": True}):
        log = Recorder()
        scheduler, _ = begun(REGULARIZED, Trace(logger=log))
        for epoch in range(3):
            if epoch:
                scheduler.on_epoch_begin(epoch)
            for minibatch in range(2):
                scheduler.on_minibatch_begin(epoch, minibatch, 2)
                scheduler.before_backward_pass(epoch, minibatch, 2, torch.tensor(2.0), **asked)
                scheduler.on_minibatch_end(epoch, minibatch, 2)
            scheduler.on_epoch_end(epoch)
        seen.append(log.values("loss terms", "epoch", "means"))
    assert seen[0] == seen[1]
    assert [(epoch, sorted(means)) for epoch, means in seen[0]] == [(0, ["small", "smaller"]), (1, ["small"])]


@pytest.mark.parametrize("said", [{}, {"normalize_dataparallel_keys": True}, {"normalize_dataparallel_keys": False}])
def test_a_state_of_a_wrapped_model_is_taken_whether_its_names_are_to_be_normalized_or_not(said: Any) -> None:
    wrapped = CompressionScheduler.from_dict(pruning(), nn.DataParallel(MLP()), trace=SILENT)
    wrapped.on_epoch_begin(0)
    scheduler: Any = CompressionScheduler.from_dict(pruning(), MLP(), trace=SILENT)
    scheduler.load_state_dict(wrapped.state_dict(), **said)
    assert list(wrapped.masks) == ["module.fc1.weight"]
    assert torch.equal(scheduler.masks["fc1.weight"], wrapped.masks["module.fc1.weight"])


# Refused


@pytest.mark.parametrize(
    ("event", "arguments", "message"),
    [
        ("on_epoch_begin", {"metrics": 1.0}, "on_epoch_begin takes no 'metrics'; an epoch that has ended has metrics: "
         "on_epoch_end(epoch, optimizer, metrics=…)"),
        ("on_epoch_begin", {"optimiser": None}, "on_epoch_begin takes no 'optimiser'; did you mean 'optimizer'?"),
        ("on_epoch_end", {"vloss": 1.0}, "on_epoch_end takes no 'vloss'; known are 'epoch', 'metrics', 'optimizer'"),
        ("on_epoch_end", {"minibatch_id": 1}, "on_epoch_end takes no 'minibatch_id'; known are 'epoch', 'metrics', "
         "'optimizer'"),
        ("on_minibatch_begin", {"minibatch_ids": 0}, "on_minibatch_begin takes no 'minibatch_ids'; "
         "did you mean 'minibatch'?"),
        ("on_minibatch_begin", {"minibatch": 0, "minibatch_id": 0}, "on_minibatch_begin is given 'minibatch' twice: "
         "'minibatch' and 'minibatch_id'"),
        ("before_backward_pass", {"return_components": True}, "before_backward_pass takes no 'return_components'; "
         "did you mean 'return_loss_components'?"),
    ],
)  # fmt: skip
def test_a_keyword_that_an_event_does_not_know_is_refused_with_those_that_there_are(
    event: str, arguments: dict[str, Any], message: str
) -> None:
    scheduler, _ = begun()
    with pytest.raises(PrunekitError) as error:
        getattr(scheduler, event)(epoch=0, **arguments)
    assert str(error.value) == message


def test_a_keyword_that_loading_does_not_know_is_refused() -> None:
    scheduler, _ = begun()
    with pytest.raises(PrunekitError, match="load_state_dict takes no 'strict'; known are 'state'"):
        scheduler.load_state_dict(scheduler.state_dict(), strict=False)


IN_PLACE_OF_AN_OPTIMIZER = "an optimizer belongs where {'min': 0.5} is given; metrics are given by name: "


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("on_epoch_end", (0, {"min": 0.5})),
        ("on_epoch_begin", (0, {"min": 0.5})),
        ("on_minibatch_begin", (0, 0, 1, {"min": 0.5})),
        ("before_backward_pass", (0, 0, 1, torch.tensor(1.0), {"min": 0.5})),
        ("before_parameter_optimization", (0, 0, 1, {"min": 0.5})),
        ("on_minibatch_end", (0, 0, 1, {"min": 0.5})),
    ],
)
def test_a_dict_in_the_place_of_the_optimizer_is_refused(event: str, arguments: tuple[Any, ...]) -> None:
    scheduler, optimizer = begun()
    scheduler.on_minibatch_begin(0, 0, 1)
    with pytest.raises(PrunekitError) as error:
        getattr(scheduler, event)(*arguments)
    assert str(error.value) == IN_PLACE_OF_AN_OPTIMIZER + "on_epoch_end(epoch, optimizer, metrics=…)"
    assert scheduler.optimizer is None
    scheduler.on_epoch_end(0, optimizer, metrics={"min": 0.5})
    assert scheduler.optimizer is optimizer


@pytest.mark.parametrize("thing", [0.5, torch.ones(2), "sgd"])
def test_what_does_not_step_is_no_optimizer(thing: object) -> None:
    scheduler, _ = begun()
    with pytest.raises(PrunekitError, match=r"^an optimizer belongs where .* is given$"):
        scheduler.on_epoch_begin(0, thing)


def test_a_learning_rate_scheduler_is_no_optimizer_though_it_steps() -> None:
    scheduler, optimizer = begun()
    with pytest.raises(
        PrunekitError, match=r"^an optimizer belongs where <torch.optim.lr_scheduler.StepLR .* is given$"
    ):
        scheduler.on_epoch_begin(0, torch.optim.lr_scheduler.StepLR(optimizer, 1))


@pytest.mark.parametrize("by_name", [False, True])
def test_an_optimizer_in_the_place_of_the_metrics_is_refused(by_name: bool) -> None:
    scheduler, optimizer = begun()
    with pytest.raises(PrunekitError) as error:
        scheduler.on_epoch_end(0, metrics=optimizer) if by_name else scheduler.on_epoch_end(0, None, optimizer)
    assert str(error.value) == (
        "metrics belong where the optimizer SGD is given, such as {'min': loss, 'max': accuracy}: "
        "on_epoch_end(epoch, optimizer, metrics=…)"
    )
    assert scheduler.progress.epoch == 0


def test_a_metric_without_a_name_is_refused() -> None:
    scheduler, _ = begun()
    with pytest.raises(PrunekitError, match=r"^metrics belong where 0.25 is given, such as \{'min': loss"):
        scheduler.on_epoch_end(0, metrics=0.25)


# Shown


@pytest.mark.parametrize(
    ("event", "names"),
    [
        ("on_epoch_begin", "epoch optimizer"),
        ("on_minibatch_begin", "epoch minibatch minibatches_per_epoch optimizer"),
        ("before_backward_pass", "epoch minibatch minibatches_per_epoch loss optimizer return_loss_components"),
        ("before_parameter_optimization", "epoch minibatch minibatches_per_epoch optimizer"),
        ("on_minibatch_end", "epoch minibatch minibatches_per_epoch optimizer"),
        ("on_epoch_end", "epoch optimizer metrics"),
        ("load_state_dict", "state"),
    ],
)
def test_help_shows_one_spelling_of_each_event(event: str, names: str) -> None:
    function = getattr(CompressionScheduler, event)
    assert list(inspect.signature(function).parameters) == ["self", *names.split()]
    assert function.__doc__
