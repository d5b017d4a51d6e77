"""Which optimizers there are, how their steps are heard of, and that masks hold in each."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, backward, batches, pruning, window, zeros
from own_optimizers import Delegating, NoOptimizer, OwnRate, SlowWeights, SlowWeightsWithoutInit
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from prunekit import CompressionScheduler, PrunekitError, Trace

HALF = {"levels": {"fc1.weight": 0.5, "fc2.weight": 0.5}}
MASKED = {"fc1.weight": 48, "fc2.weight": 16}


def half(model: nn.Module, optimizer: Any = None, **more: Any) -> CompressionScheduler:
    data = {**pruning(when={"epochs": [0]}, **HALF), **more}
    return CompressionScheduler.from_dict(data, model, optimizer, trace=SILENT)


def masked(model: nn.Module) -> dict[str, int]:
    return {name: zeros(parameter) for name, parameter in model.named_parameters() if parameter.dim() > 1}


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "plain": sgd,
    "capturable": lambda p: Adam(p, lr=torch.tensor(0.1), capturable=False, foreach=False),
    "foreach": lambda p: Adam(p, lr=0.1, foreach=True),
    "fused": lambda p: Adam(p, lr=0.1, fused=True),
    "delegating": lambda p: Delegating(sgd(p)),
    "twice delegating": lambda p: Delegating(Delegating(sgd(p))),
    "no optimizer": lambda p: NoOptimizer(sgd(p)),
    "slow weights": lambda p: SlowWeights(sgd(p)),
    "slow weights without init": lambda p: SlowWeightsWithoutInit(sgd(p)),
}


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("name", MAKERS)
def test_masks_hold_whatever_the_optimizer_is(name: str, given: bool) -> None:
    model = MLP()
    optimizer = MAKERS[name](model.parameters())
    scheduler = half(model, optimizer if given else None)
    found = []
    for _ in scheduler.epochs(2):
        for batch in scheduler.minibatches(batches(3)):
            backward(model, batch)
            optimizer.step()
        found.append(masked(model))
    unheard_write = name == "slow weights without init" and not given
    assert unheard_write or found == [MASKED, MASKED]
    if given:
        assert scheduler.progress.step == 5  # the sixth is taken, and the next has not begun


def test_each_optimizer_of_several_keeps_its_masks_and_they_take_one_step_together() -> None:
    model = MLP()
    optimizers = [sgd(model.fc1.parameters()), sgd(model.fc2.parameters())]
    scheduler = half(model, optimizers)
    assert scheduler.optimizer is optimizers[0]
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches(batches(4)):
            backward(model, batch)
            for optimizer in optimizers:
                optimizer.step()
                assert masked(model) == MASKED
    assert scheduler.progress.step == 3


def test_an_optimizer_is_found_in_its_first_step_and_masks_are_in_force_right_after_it() -> None:
    model = MLP()
    scheduler = half(model)
    scheduler.on_epoch_begin(0)
    assert scheduler.optimizer is None
    scheduler.on_minibatch_begin(0, 0, 2)
    backward(model, batches()[0])
    optimizer = sgd(model.parameters())
    optimizer.step()
    assert (scheduler.optimizer is optimizer, masked(model)) == (True, MASKED)


def test_somebody_elses_optimizer_is_ignored_and_no_step_of_this_run() -> None:
    model, other = MLP(), MLP()
    mine, foreign = sgd(model.parameters()), sgd(other.parameters())
    scheduler = half(model, mine)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    backward(other, batches()[0])
    foreign.step()
    scheduler.on_minibatch_end(0, 0, 2)
    assert (scheduler.progress.stepped, masked(other)) == (False, {"fc1.weight": 0, "fc2.weight": 0})
    assert scheduler.optimizer is mine


def test_groups_that_come_and_go_are_followed() -> None:
    model = MLP()
    optimizer = sgd(model.fc1.parameters())
    scheduler = half(model, optimizer)
    seen = []
    for epoch in scheduler.epochs(3):
        if epoch == 1:
            optimizer.add_param_group({"params": list(model.fc2.parameters())})
        if epoch == 2:
            del optimizer.param_groups[0]
            optimizer.param_groups[0]["params"] = [model.fc2.weight]
        for batch in scheduler.minibatches(batches(2)):
            backward(model, batch)
            with torch.no_grad():
                optimizer.step()
            seen.append(sorted(scheduler._execution.optimizers.known.names(optimizer)))
            assert masked(model) == MASKED
    first = ["fc1.bias", "fc1.weight"]
    assert seen == [first] * 2 + [[*first, "fc2.bias", "fc2.weight"]] * 2 + [["fc2.weight"]] * 2


def test_an_optimizer_that_takes_over_another_ones_parameters_replaces_it() -> None:
    model, recorder = MLP(), Recorder()
    first = sgd(model.parameters())
    scheduler = CompressionScheduler.from_dict(
        pruning(when={"epochs": [0]}, **HALF), model, first, trace=Trace(logger=recorder)
    )
    gone = weakref.ref(first)
    for epoch in scheduler.epochs(3):
        if epoch == 1:
            del first
            second = Adam(model.parameters(), lr=0.01)
        for batch in scheduler.minibatches(batches(2)):
            backward(model, batch)
            (second if epoch else gone()).step()  # type: ignore[union-attr]
        assert masked(model) == MASKED
    gc.collect()
    assert (gone(), scheduler.optimizer) == (None, second)
    (line,) = recorder.events("optimizer replaced")
    assert (line["before"], line["after"]) == ("SGD", "Adam")


def test_optimizers_used_in_turn_are_both_kept() -> None:
    model = MLP()
    one, other = sgd(model.parameters()), sgd(model.parameters())
    scheduler = half(model)
    for epoch in scheduler.epochs(3):
        for index, batch in enumerate(scheduler.minibatches(batches(4))):
            backward(model, batch)
            (one, other)[index % 2].step()
            scheduler.on_minibatch_begin(epoch, index, 4, (one, other)[index % 2])
    assert {id(each) for each in scheduler._execution.optimizers.known.given} == {id(one), id(other)}


def test_one_small_optimizer_for_each_parameter_may_step_in_the_backward_pass() -> None:
    model = MLP()
    scheduler = half(model)
    small = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        small[parameter].step()  # type: ignore[index]
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for _ in scheduler.epochs(2):
        for x, y in scheduler.minibatches(batches(3)):
            nn.functional.cross_entropy(model(x), y).backward()
            assert masked(model) == MASKED
    assert scheduler.progress.step == 5


def test_weights_set_aside_come_back_one_by_one_where_optimizers_step_in_the_backward_pass() -> None:
    def run(in_backward: bool) -> list[Tensor]:
        model = MLP()
        args = {"mask_on_forward_only": True, "use_double_copies": True}
        data = pruning(when=window(0, 2), args=args, **HALF)
        small = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}
        scheduler = CompressionScheduler.from_dict(data, model, list(small.values()), trace=SILENT)
        if in_backward:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: small[p].step())  # type: ignore[index]
        for _ in scheduler.epochs(2):
            for x, y in scheduler.minibatches(batches(3)):
                model.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                for optimizer in () if in_backward else small.values():
                    optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    for one, other in zip(run(in_backward=True), run(in_backward=False), strict=True):
        assert torch.equal(one, other)


def test_what_is_enforced_for_many_small_optimizers_does_not_grow_with_their_square() -> None:
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(30)])
    scheduler = CompressionScheduler.from_dict(pruning(levels={"*.weight": 0.5}), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    looked: list[int] = []
    grouped = scheduler._execution.masks._grouped
    scheduler._execution.masks._grouped = lambda only: looked.append(len(only or ())) or grouped(only)  # type: ignore[method-assign, assignment, func-returns-value]
    small = [SGD([parameter], lr=0.1) for parameter in model.parameters()]
    for minibatch in range(3):
        scheduler.on_minibatch_begin(0, minibatch, 3)
        for optimizer in small:
            optimizer.step()
        scheduler.on_minibatch_end(0, minibatch, 3)
    assert looked == [0] + [1] * 60  # all before the first forward pass, then each once, at its own parameter


# What is said


def test_something_that_is_no_optimizer_is_refused() -> None:
    with pytest.raises(PrunekitError, match=r"an optimizer has param_groups and step\(\), got \{'lr': 0\.1\}"):
        half(MLP(), {"lr": 0.1})


def test_an_optimizer_whose_steps_cannot_be_heard_is_named_and_masks_hold_at_the_end_of_the_minibatch() -> None:
    class Own:
        def __init__(self, parameters: Any) -> None:
            self.param_groups = [{"params": list(parameters), "lr": 0.1}]

        def step(self) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 0.1 * parameter.grad

    model, recorder = MLP(), Recorder()
    optimizer: Any = Own(model.parameters())
    scheduler = CompressionScheduler.from_dict(pruning(**HALF), model, optimizer, trace=Trace(logger=recorder))
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches(batches(3)):
            backward(model, batch)
            optimizer.step()
        assert (masked(model), scheduler.progress.step) == (MASKED, 2)
    (line,) = recorder.events("optimizer's steps not heard")
    assert (line["level"], line["optimizer"]) == ("warning", "Own")


def unstepped(optimizer_of: Callable[[Any], Any], given: bool = True, **keys: Any) -> list[dict[str, Any]]:
    model, recorder = MLP(), Recorder()
    optimizer = optimizer_of(model)
    data = pruning(when=window(0, 3), **(keys or HALF))
    scheduler = CompressionScheduler.from_dict(data, model, optimizer if given else None, trace=Trace(logger=recorder))
    for _ in scheduler.epochs(3):
        for batch in scheduler.minibatches(batches(2)):
            backward(model, batch)
            optimizer.step()
    return [
        {key: line[key] for key in ("level", "epoch", "parameters")}
        for line in recorder.events("no optimizer steps these parameters")
    ]


def test_pruned_parameters_that_no_optimizer_steps_are_named_once() -> None:
    line = {"level": "warning", "epoch": 0, "parameters": ["fc2.weight"]}
    assert unstepped(lambda m: sgd(m.fc1.parameters())) == [line]
    assert unstepped(lambda m: sgd(m.fc1.parameters()), given=False) == [line]
    assert unstepped(lambda m: sgd(m.parameters())) == []
    assert unstepped(lambda m: Delegating(sgd(m.parameters()))) == []
    assert unstepped(lambda m: sgd([*m.parameters(), nn.Parameter(torch.ones(1))])) == []


def test_frozen_parameters_are_none_of_an_optimizers_business() -> None:
    def frozen(model: MLP) -> Optimizer:
        model.fc2.requires_grad_(False)
        return sgd(model.fc1.parameters())

    assert unstepped(frozen) == []


# Learning rates


def decaying(*policies: Any) -> dict[str, Any]:
    data = pruning(when={"epochs": [0]}, **HALF)
    lr = {"lr_scheduler": {"instance_name": "d"}, **window(0, 3)}
    return {
        **data,
        "lr_schedulers": {"d": {"class": "ExponentialLR", "gamma": 0.5}},
        "policies": [*data["policies"], lr],
    }


def rates_of(*optimizers: Any) -> list[float]:
    return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]


def run_decaying(model: nn.Module, given: Any, stepping: list[Any], recorder: Recorder) -> CompressionScheduler:
    scheduler = CompressionScheduler.from_dict(decaying(), model, given, trace=Trace(logger=recorder))
    for _ in scheduler.epochs(2):
        for batch in scheduler.minibatches(batches(2)):
            backward(model, batch)
            for optimizer in stepping:
                optimizer.step()
    return scheduler


def test_learning_rates_move_in_all_optimizers_given_each_from_its_own_base() -> None:
    model, recorder = MLP(), Recorder()
    one, other = SGD(model.fc1.parameters(), lr=0.8), SGD(model.fc2.parameters(), lr=0.4)
    scheduler = run_decaying(model, [one, other], [one, other], recorder)
    assert rates_of(one, other) == [0.2, 0.1]
    assert [line["after"] for line in recorder.events("learning rate changed")] == [[0.4, 0.2], [0.2, 0.1]]
    assert scheduler.state_dict()["learning_rates"] == [0.2, 0.1]
    assert recorder.events("learning rates of optimizers that were not given stay") == []


def test_an_optimizer_that_was_only_found_keeps_its_rate_and_is_named_once() -> None:
    model, recorder = MLP(), Recorder()
    one, other = SGD(model.fc1.parameters(), lr=0.8), SGD(model.fc2.parameters(), lr=0.4)
    run_decaying(model, one, [one, other], recorder)
    assert rates_of(one, other) == [0.2, 0.4]
    (line,) = recorder.events("learning rates of optimizers that were not given stay")
    assert (line["level"], line["optimizers"], line["parameters"]) == ("warning", ["SGD"], ["fc2.bias", "fc2.weight"])


@pytest.mark.parametrize("name", ["delegating", "no optimizer", "slow weights", "slow weights without init"])
def test_a_wrapper_and_the_optimizer_inside_have_one_rate_and_are_not_told_apart(name: str) -> None:
    model, recorder = MLP(), Recorder()
    optimizer = MAKERS[name](model.parameters())
    run_decaying(model, optimizer, [optimizer], recorder)
    assert rates_of(optimizer) == [0.025]
    assert recorder.warnings == []


def test_an_optimizer_given_with_an_event_has_its_own_base_and_the_others_keep_theirs() -> None:
    model = MLP()
    one, other = SGD(model.fc1.parameters(), lr=0.8), SGD(model.fc2.parameters(), lr=0.4)
    scheduler = CompressionScheduler.from_dict(decaying(), model, one, trace=SILENT)
    rates = []
    for epoch in scheduler.epochs(3):
        if epoch == 1:
            scheduler.on_minibatch_begin(1, 0, 1, other)
        rates.append(rates_of(one, other))
    assert rates == [[0.8, 0.4], [0.4, 0.4], [0.2, 0.1]]


def test_a_plateau_moves_every_optimizer_given() -> None:
    model = MLP()
    optimizers = [SGD(model.fc1.parameters(), lr=0.8), SGD(model.fc2.parameters(), lr=0.4)]
    data = {
        "version": 1,
        "lr_schedulers": {"p": {"class": "ReduceLROnPlateau", "factor": 0.5, "patience": 0}},
        "policies": [{"lr_scheduler": {"instance_name": "p"}, **window(0, 3)}],
    }
    scheduler = CompressionScheduler.from_dict(data, model, optimizers, trace=SILENT)
    for _ in scheduler.epochs(3):
        scheduler.report(min=1.0)
    assert rates_of(*optimizers) == [0.2, 0.1]


def test_a_resumed_run_has_the_rates_of_every_optimizer() -> None:
    model = MLP()
    one, other = SGD(model.fc1.parameters(), lr=0.8), SGD(model.fc2.parameters(), lr=0.4)
    state = run_decaying(model, [one, other], [one, other], Recorder()).state_dict()
    fresh = [SGD(model.fc1.parameters(), lr=9.0), SGD(model.fc2.parameters(), lr=9.0)]
    second = CompressionScheduler.from_dict(decaying(), model, fresh, trace=SILENT)
    second.load_state_dict(state)
    assert rates_of(*fresh) == [0.2, 0.1]
    for _ in second.epochs(3):
        pass
    assert rates_of(*fresh) == [0.1, 0.05]


@pytest.mark.parametrize("defaults", [{"lr": None}, {}], ids=["None", "absent"])
def test_an_optimizer_without_a_learning_rate_trains_saves_and_resumes(defaults: dict[str, Any]) -> None:
    model = MLP()
    optimizer = OwnRate(model.parameters(), **defaults)
    scheduler = half(model, optimizer)
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches(batches(2)):
            backward(model, batch)
            optimizer.step()
    state = scheduler.state_dict()
    assert (state["learning_rates"], masked(model)) == ([None], MASKED)
    half(model, optimizer).load_state_dict(state)
    assert optimizer.param_groups[0].get("lr") is None


@pytest.mark.parametrize("defaults", [{"lr": None}, {}], ids=["None", "absent"])
def test_a_schedule_of_rates_for_an_optimizer_without_one_is_refused(defaults: dict[str, Any]) -> None:
    model = MLP()
    with pytest.raises(PrunekitError) as error:
        CompressionScheduler.from_dict(decaying(), model, OwnRate(model.parameters(), **defaults), trace=SILENT)
    assert str(error.value) == (
        "<dict>: policies[1].lr_scheduler: of group 0: the optimizer's groups hold lr=None: it finds its rate itself; "
        "give it one, or take the policy out"
    )


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    model, recorder = MLP(), Recorder()
    rate = torch.tensor(0.8)
    optimizer = Adam(model.parameters(), lr=rate)
    scheduler = run_decaying(model, optimizer, [optimizer], recorder)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.2)
    assert scheduler.state_dict()["learning_rates"] == pytest.approx([0.2])


# Nothing is kept


def test_a_dropped_optimizer_and_a_dropped_scheduler_are_collected() -> None:
    def run() -> Iterator[weakref.ref[Any]]:
        model = MLP()
        given, found = sgd(model.fc1.parameters()), sgd(model.fc2.parameters())
        scheduler = half(model, given)
        for _ in scheduler.epochs(1):
            for batch in scheduler.minibatches(batches(2)):
                backward(model, batch)
                given.step()
                found.step()
        yield from map(weakref.ref, (model, given, found, scheduler))

    refs = list(run())
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_an_optimizer_that_was_only_found_is_not_kept_alive_by_the_scheduler() -> None:
    model = MLP()
    scheduler, found = half(model), sgd(model.parameters())
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches(batches(1)):
            backward(model, batch)
            found.step()
    gone = weakref.ref(found)
    del found
    assert (gone(), scheduler.optimizer) == (None, None)


def test_nothing_hangs_on_an_optimizer_which_can_be_copied() -> None:
    model = MLP()
    optimizer = sgd(model.parameters())
    scheduler = half(model, optimizer)
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 0)
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches(batches(1)):
            backward(model, batch)
            optimizer.step()
    copied = copy.deepcopy((model, optimizer))
    backward(copied[0], batches()[1])
    copied[1].step()
    assert zeros(copied[0].fc1.weight) < 48  # a copy of the model is nobody's to mask


def test_a_deep_copy_knows_the_optimizers_of_the_copied_model() -> None:
    model = MLP()
    given, found = sgd(model.fc1.parameters()), sgd(model.fc2.parameters())
    scheduler = half(model, given)
    found.step()
    known: Any = scheduler._execution.optimizers.known
    assert (known.names(given), known.found) == ({"fc1.weight", "fc1.bias"}, [found])
    copied = copy.deepcopy(known)
    assert (copied.names(copied.first), copied.names(given), copied.found) == (known.names(given), frozenset(), [])


def test_a_scheduler_that_nobody_keeps_is_missed_by_the_next_step_on_its_masks() -> None:
    model, recorder = MLP(), Recorder()
    optimizer, other = sgd(model.parameters()), sgd(MLP().parameters())

    def prune() -> None:
        scheduler = CompressionScheduler.from_dict(
            pruning(levels={"fc1.weight": 0.5}), model, trace=Trace(logger=recorder)
        )
        scheduler.on_epoch_begin(0)
        scheduler.on_minibatch_begin(0, 0, 1)

    prune()
    gc.collect()
    for each in (other, optimizer, optimizer):
        each.step()
    said = [(line["event"], line["parameters"]) for line in recorder.warnings]
    assert said == [("scheduler dropped, masks no longer in force", ["fc1.weight"])]


def test_released_optimizers_step_freely_and_the_last_hook_is_taken_off() -> None:
    from prunekit.engine.stepping import hooks as step_hooks

    gc.collect()
    others = len([ref for ref, _ in step_hooks._listeners if ref() is not None])
    model = MLP()
    optimizer = sgd(model.parameters())
    scheduler = half(model, optimizer)
    for _ in scheduler.epochs(1):
        pass
    scheduler._execution.optimizers.release()
    scheduler._execution.optimizers.release()
    backward(model, batches()[0])
    optimizer.step()
    assert zeros(model.fc1.weight) < 48
    assert len(step_hooks._listeners) == others
    assert bool(step_hooks._handles) == bool(others)
    scheduler._execution.optimizers.listen()
    optimizer.step()
    assert zeros(model.fc1.weight) == 48
