"""Pruners that look at data: when their hooks are live, what they may return, and what is undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, through_a_file, train_attached, train_explicit
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PluginError,
    PolicySpec,
    PrunekitError,
    Schedule,
    Window,
    hookimpl,
)
from prunekit.components import Context, Selectors
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import Plugins
from prunekit.plugins.registry import Registry
from prunekit.pruning import prune_lowest


@dataclass
class Counting:
    """Hears how often fc1 runs and how often the gradients are known; prunes half of fc1 by magnitude."""

    weights: Selectors = "fc1.weight"
    heard: int = 0
    observed: int = 0
    when_asked: list[tuple[int, int, int]] = field(default_factory=list)

    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        yield context.model.get_submodule("fc1").register_forward_hook(self.hear)

    def hear(self, *_: Any) -> None:
        self.heard += 1

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        assert parameters["fc1.weight"].grad is not None
        self.observed += 1
        return None

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> dict[str, Tensor]:
        self.when_asked.append((context.progress.epoch, self.heard, self.observed))
        return {name: prune_lowest(weight.abs(), 0.5) for name, weight in parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"heard": self.heard, "observed": self.observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heard, self.observed = state["heard"], state["observed"]


@dataclass
class Rebuilding(Counting):
    """Gives what it keeps of fc1 the value 7."""

    def reconstruct(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        return {name: torch.full_like(parameters[name], 7) for name in masks}


def run_of(
    component: Any, when: Window, model: nn.Module | None = None, listeners: tuple[type, ...] = (), **options: Any
) -> CompressionScheduler:
    """A scheduler with this one pruner."""
    model = MLP() if model is None else model
    spec = ComponentSpec("pruner", "p", component)
    schedule = Schedule([spec], [PolicySpec("pruner", "p", when, options)])
    heard = tuple(Listener(cls.__name__, "tests", "0", cls) for cls in listeners)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return CompressionScheduler(schedule, model, optimizer, trace=SILENT, plugins=Plugins(Registry([]), heard))


def component_of(run: CompressionScheduler) -> Any:
    return run.components["pruners.p"]


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# When hooks are live


def test_hooks_are_live_from_the_epoch_before_the_first_active_one_to_the_end_of_the_last() -> None:
    run = run_of(Counting, Window(epochs=[2, 4]))
    live = {-1: hooks_of(run.model)}
    for epoch in range(7):
        run.on_epoch_begin(epoch)
        live[epoch] = hooks_of(run.model)
        run.on_epoch_end(epoch)
        live[epoch + 0.5] = hooks_of(run.model)
    on = {moment for moment, number in live.items() if number}
    assert on == {1, 1.5, 2, 2.5, 3, 3.5, 4}
    assert max(live.values()) == 1, "never twice"


def test_where_the_first_active_epoch_is_0_hooks_are_live_from_the_start() -> None:
    run = run_of(Counting, Window(0, 2))
    assert hooks_of(run.model) == 1
    run.model(torch.ones(1, 12))
    run.on_epoch_begin(0)
    assert component_of(run).when_asked == [(0, 1, 0)]
    run.on_epoch_begin(1)
    assert hooks_of(run.model) == 1
    run.on_epoch_end(1)
    assert hooks_of(run.model) == 0


def test_nothing_is_left_in_the_model_when_training_ends_early() -> None:
    run = run_of(Counting, Window(1, 5))
    train_explicit(run, run.optimizer, range(2))
    assert hooks_of(run.model) == 1
    run.on_train_end()
    assert hooks_of(run.model) == 0


@pytest.mark.parametrize("train", [train_attached, train_explicit])
def test_each_mini_batch_of_these_epochs_is_heard_and_observed_once(train: Any) -> None:
    run = run_of(Counting, Window(epochs=[1, 3]))
    train(run, run.optimizer, 5 if train is train_attached else range(5))
    assert component_of(run).when_asked == [(1, 4, 4), (3, 12, 12)]
    assert (component_of(run).heard, component_of(run).observed) == (16, 16), "epochs 0 to 3, four mini-batches each"


def test_a_run_resumed_between_and_within_epochs_hears_what_the_straight_one_does() -> None:
    straight = run_of(Counting, Window(1, 4))
    train_explicit(straight, straight.optimizer, range(4))
    for stop in (1, 2):
        first = run_of(Counting, Window(1, 4))
        train_explicit(first, first.optimizer, range(stop))
        saved = through_a_file([first.model.state_dict(), first.state_dict()])
        second = run_of(Counting, Window(1, 4), MLP(seed=9))
        second.model.load_state_dict(saved[0])
        second.load_state_dict(saved[1])
        train_explicit(second, second.optimizer, range(stop, 4))
        asked = component_of(first).when_asked + component_of(second).when_asked
        assert asked == component_of(straight).when_asked
        for name, weight in straight.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], weight)


def test_a_run_resumed_within_an_epoch_listens_at_once() -> None:
    run = run_of(Counting, Window(1, 4))
    run.on_epoch_begin(0)
    run.on_minibatch_begin(0, 0, 2)
    run.model(torch.ones(1, 12))
    run.on_minibatch_end(0, 0, 2)
    state = through_a_file(run.state_dict())
    other = run_of(Counting, Window(1, 4))
    assert hooks_of(other.model) == 0
    other.load_state_dict(state)
    assert (hooks_of(other.model), component_of(other).heard) == (1, 1)


def test_a_compiled_model_is_heard_although_it_was_compiled_before() -> None:
    torch._dynamo.reset()
    model: Any = torch.compile(MLP(), backend="eager")
    run = run_of(InCompiled, Window(2, 4), model)
    for epoch in range(4):
        run.on_epoch_begin(epoch)
        model(torch.ones(1, 12))
        run.on_epoch_end(epoch)
    assert component_of(run).heard == 3, "epochs 1, 2 and 3"


class InCompiled(Counting):
    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        yield context.model.get_submodule("_orig_mod.fc1").register_forward_hook(self.hear)

    @torch.compiler.disable
    def hear(self, *_: Any) -> None:
        self.heard += 1


class Deaf(Counting):
    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        yield from super().listen(parameters, context)
        raise RuntimeError("no such module")


def test_who_fails_to_listen_is_named_and_leaves_no_hook_behind() -> None:
    run = run_of(Deaf, Window(1, 2))
    with pytest.raises(RuntimeError, match="no such module") as error:
        run.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in listen by Deaf 'p', policies[0], {__name__}"]
    assert hooks_of(run.model) == 0


# What observing may return


class Early(Counting):
    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        if context.progress.minibatch_of_run != 5:
            return None
        return {name: weight.grad.abs() > 0 for name, weight in parameters.items() if weight.grad is not None}


def test_masks_that_are_returned_while_observing_are_in_force_before_the_step() -> None:
    run = run_of(Early, Window(epochs=[3]))
    changed = []
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        for minibatch, (x, y) in enumerate(batches(2)):
            run.on_minibatch_begin(epoch, minibatch, 2)
            nn.functional.cross_entropy(run.model(x), y).backward()
            run.before_parameter_optimization(epoch, minibatch, 2)
            changed.append("fc1.weight" in run.masks)
            run.on_minibatch_end(epoch, minibatch, 2)
        run.on_epoch_end(epoch)
    assert changed == [False] * 5 + [True], "it observes from epoch 2, the one before the first active one"


class Tampering(Counting):
    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        parameters["fc1.weight"].mul_(2)
        return None


class Astray(Counting):
    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        return {"fc2.weight": torch.ones(4, 8, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Tampering, "observe changed 'fc1.weight' in place; it must return masks and leave weights alone"),
        (Astray, "observe returned a mask for 'fc2.weight', which is none of the policy's parameters"),
    ],
)
def test_an_observer_that_does_what_it_must_not_is_stopped(cls: type, message: str) -> None:
    run = run_of(cls, Window(0, 2))
    with pytest.raises(PluginError) as error:
        train_explicit(run, run.optimizer, range(1))
    assert str(error.value) == message


# New weights


def test_new_weights_are_set_with_the_masks_and_what_is_masked_stays_zero() -> None:
    run = run_of(Rebuilding, Window(epochs=[1]))
    before = run.model.fc1.weight.detach().clone()
    run.on_epoch_begin(0)
    assert torch.equal(run.model.fc1.weight, before)
    run.on_epoch_begin(1)
    mask = prune_lowest(before.abs(), 0.5)
    assert torch.equal(run.model.fc1.weight, torch.where(mask, 7.0, 0.0))


class Veto:
    @hookimpl
    def veto_pruning(self) -> str:
        return "not now"


def test_a_pruning_that_is_vetoed_sets_neither_masks_nor_weights() -> None:
    run = run_of(Rebuilding, Window(epochs=[1]), listeners=(Veto,))
    before = run.model.fc1.weight.detach().clone()
    run.on_epoch_begin(0)
    run.on_epoch_begin(1)
    assert dict(run.masks) == {}
    assert torch.equal(run.model.fc1.weight, before)


class Fails:
    """Fails over what it hears of fc2, when fc1's masks and weights are set already."""

    @hookimpl
    def on_masks_changed(self, changes: Any) -> None:
        if any(change.parameter == "fc2.weight" for change in changes):
            raise PrunekitError("enough")


class Second(Counting):
    def __init__(self, weights: Selectors = "fc2.weight") -> None:
        super().__init__(weights)


def test_new_weights_are_undone_when_a_listener_fails_over_a_later_effect() -> None:
    model = MLP()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    specs = [ComponentSpec("pruner", "one", Rebuilding), ComponentSpec("pruner", "two", Second)]
    schedule = Schedule(specs, [PolicySpec("pruner", spec.name, Window(epochs=[1])) for spec in specs])
    plugins = Plugins(Registry([]), (Listener("fails", "tests", "0", Fails),))
    run = CompressionScheduler(schedule, model, trace=SILENT, plugins=plugins)
    run.on_epoch_begin(0)
    with pytest.raises(PrunekitError, match="enough"):
        run.on_epoch_begin(1)
    assert dict(run.masks) == {}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


class Misfit(Rebuilding):
    def reconstruct(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        return {"fc1.weight": torch.ones(3)}


class InPlace(Rebuilding):
    def reconstruct(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        parameters["fc1.weight"].zero_()
        return {}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Misfit, "the values of 'fc1.weight' must be floating (8, 12), got torch.float32 (3,)"),
        (InPlace, "reconstruct changed 'fc1.weight' in place"),
    ],
)
def test_new_weights_that_do_not_fit_are_refused_before_a_mask_is_set(cls: type, message: str) -> None:
    run = run_of(cls, Window(epochs=[1]))
    run.on_epoch_begin(0)
    with pytest.raises(PluginError) as error:
        run.on_epoch_begin(1)
    assert message in str(error.value)
    assert dict(run.masks) == {}
