"""The bus: which hooks run, in which order, by whose hand, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import structlog
import torch
from helpers import MLP, SILENT, Recorder, batches, pruning, train_attached, window, without_listeners
from on_the_bus import Dashboard
from torch import Tensor

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PluginError,
    PolicySpec,
    Progress,
    Schedule,
    ScheduleError,
    Trace,
    Window,
    hookimpl,
)
from prunekit.components import Context, LossTerm, Selectors, SetLearningRates, SetMasks, ZeroWeights
from prunekit.components.origin import Origin
from prunekit.engine.bus import EventBus
from prunekit.model.masks import Masks
from prunekit.plugins.hooks import HOOKS, Implementations
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import load_plugins

SCHEDULE = {
    "version": 1,
    "pruners": {
        "agp": {
            "class": "AutomatedGradualPruner",
            "initial_sparsity": 0.0,
            "final_sparsity": 0.5,
            "weights": ["fc1.weight"],
        },
        "level": {"class": "SparsityLevelParameterPruner", "levels": {"fc2.weight": 0.5}},
    },
    "regularizers": {
        "l1": {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.01}, "threshold_criteria": "Max"},
    },
    "lr_schedulers": {"decay": {"class": "ExponentialLR", "gamma": 0.5}},
    "policies": [
        {"lr_scheduler": {"instance_name": "decay"}, **window(1, 9)},
        {"pruner": {"instance_name": "agp"}, **window(0, 3, 2)},
        {"regularizer": {"instance_name": "l1"}, **window(1, 2)},
        {"pruner": {"instance_name": "level", "args": {"mini_batch_pruning_frequency": 3}}, "epochs": [1]},
    ],
}


def test_golden_trace_of_a_whole_run() -> None:
    model, logger = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trace = Trace(level="debug", logger=logger)
    options = {"epochs": 4, "trace": trace, "plugins": without_listeners()}
    scheduler = CompressionScheduler.from_dict(SCHEDULE, model, optimizer, **options)
    train_attached(scheduler, optimizer, 4, batches(2))
    assert logger.hooks() == [
        "0 on_epoch_begin policies[1]",
        "1 on_epoch_begin policies[3]",
        "1.0 on_minibatch_begin policies[3]",
        "1.0 before_backward_pass policies[2]",
        "1.0 on_minibatch_end policies[2]",
        "1.1 on_minibatch_begin policies[3]",
        "1.1 before_backward_pass policies[2]",
        "1.1 on_minibatch_end policies[2]",
        "1 on_epoch_end policies[0]",
        "2 on_epoch_begin policies[1]",
        "2 on_epoch_end policies[0]",
        "3 on_epoch_end policies[0]",
    ]
    effects = [(line["level"], line["event"], line.get("policy", ""), line.get("epoch")) for line in logger.lines]
    assert [effect for effect in effects if effect[0] == "info"] == [
        ("info", "training begins", "", None),
        ("info", "window opens", "policies[1]", 0),
        ("info", "nothing pruned", "policies[1]", 0),
        ("info", "window opens", "policies[0]", 1),
        ("info", "window opens", "policies[2]", 1),
        ("info", "window opens", "policies[3]", 1),
        ("info", "masks changed", "policies[3]", 1),
        ("info", "masks changed", "policies[3]", 1),
        ("info", "learning rate changed", "policies[0]", 1),
        ("info", "loss terms", "", 1),
        ("info", "weights zeroed", "policies[2]", 1),
        ("info", "window closes", "policies[2]", 1),
        ("info", "window closes", "policies[3]", 1),
        ("info", "masks changed", "policies[1]", 2),
        ("info", "learning rate changed", "policies[0]", 2),
        ("info", "window closes", "policies[1]", 2),
        ("info", "learning rate changed", "policies[0]", 3),
        ("info", "training ends", "", None),
    ]
    changed = logger.events("masks changed")
    assert changed[0]["sparsity"] == {"fc2.weight": [0.0, 0.5]}
    assert changed[0]["plugin"] == "prunekit-level-pruner"
    assert changed[2]["sparsity"] == {"fc1.weight": [changed[2]["sparsity"]["fc1.weight"][0], 0.5]}
    assert [(line["before"], line["after"]) for line in logger.events("learning rate changed")] == [
        ([1.0], [0.25]),
        ([0.25], [0.125]),
        ([0.125], [0.0625]),
    ]


def test_logged_sparsity_is_counted_from_the_tensors() -> None:
    """Peers line 17: zeros that no mask made count as well."""
    model, logger = MLP(), Recorder()
    with torch.no_grad():
        model.fc1.weight[0] = 0
    trace = Trace(logger=logger)
    scheduler = CompressionScheduler.from_dict({**SCHEDULE, "policies": SCHEDULE["policies"][3:]}, model, trace=trace)
    with torch.no_grad():
        model.fc2.weight[:, 0] = 0
    scheduler.on_epoch_begin(1)
    (line,) = logger.events("masks changed")
    assert line["sparsity"] == {"fc2.weight": [4 / 32, 0.5]}


def test_idle_policies_are_not_on_the_bus() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    policies = [{"pruner": {"instance_name": "agp"}, **window(10 * i + 5, 10 * i + 10)} for i in range(20)]
    options = {"trace": SILENT, "plugins": without_listeners()}
    scheduler = CompressionScheduler.from_dict({**SCHEDULE, "policies": policies}, model, optimizer, **options)
    scheduler.on_epoch_begin(0)
    assert [hook for hook in HOOKS if scheduler._execution.bus.hears(hook)] == []


# Plugins that fail


class Fails:
    """A pruner that prunes fc2 and then fails in epoch 1."""

    def __init__(self, weights: Selectors = "fc2.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> Mapping[str, Tensor]:
        if context.progress.epoch == 1:
            raise RuntimeError("out of luck")
        return {name: weight > 0 for name, weight in parameters.items()}


def fails_with(component: type, kind: str = "pruner", first: str = "agp") -> tuple[CompressionScheduler, Recorder, MLP]:
    agp = Schedule.from_dict({**SCHEDULE, "policies": []}).component("pruner", first)
    assert agp is not None
    broken = ComponentSpec(kind, "broken", component)
    policies = [PolicySpec("pruner", first, Window(0, 4)), PolicySpec(kind, "broken", Window(0, 4))]
    model, logger = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = Schedule([agp, broken], policies)
    return CompressionScheduler(schedule, model, optimizer, trace=Trace(logger=logger)), logger, model


def test_a_failing_plugin_is_named_and_leaves_masks_and_model_as_they_were() -> None:
    scheduler, logger, model = fails_with(Fails)
    scheduler.on_epoch_begin(0)
    masks = {name: mask.clone() for name, mask in scheduler.masks.items()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of luck") as error:
        scheduler.on_epoch_begin(1)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by Fails 'broken', policies[1], {__name__}"]
    (line,) = logger.events("hook failed")
    assert {key: line[key] for key in ("level", "hook", "policy", "component", "plugin", "epoch", "error")} == {
        "level": "error",
        "hook": "on_epoch_begin",
        "policy": "policies[1]",
        "component": "Fails 'broken'",
        "plugin": __name__,
        "epoch": 1,
        "error": "RuntimeError: out of luck",
    }
    assert list(scheduler.masks) == list(masks)
    assert all(torch.equal(scheduler.masks[name], mask) for name, mask in masks.items())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


class WrongShape:
    def __init__(self, weights: Selectors = "fc2.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> Mapping[str, Tensor]:
        return {"fc2.weight": torch.ones(3, dtype=torch.bool)}


class NotBoolean:
    def __init__(self, weights: Selectors = "fc2.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> Mapping[str, Tensor]:
        return {"fc2.weight": torch.ones(4, 8)}


class ForeignName:
    def __init__(self, weights: Selectors = "fc2.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> Mapping[str, Tensor]:
        return {"fc1.weight": torch.ones(8, 12, dtype=torch.bool)}


class ChangesWeights:
    def __init__(self, weights: Selectors = "fc2.weight") -> None: ...

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> Mapping[str, Tensor]:
        return {name: weight.abs_() > 0.1 for name, weight in parameters.items()}


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (ChangesWeights, "compute_masks changed 'fc2.weight' in place; it must return masks and leave weights alone"),
        (WrongShape, r"the mask of 'fc2.weight' must be torch.bool \(4, 8\), got torch.bool \(3,\)"),
        (NotBoolean, r"the mask of 'fc2.weight' must be torch.bool \(4, 8\), got torch.float32 \(4, 8\)"),
        (ForeignName, "a mask for 'fc1.weight', which is none of the policy's parameters"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_anything_changes(component: type, message: str) -> None:
    scheduler, _, _ = fails_with(component)
    with pytest.raises(PluginError, match=message):
        scheduler.on_epoch_begin(0)
    assert dict(scheduler.masks) == {}


class ReturnsNonsense:
    @hookimpl
    def on_epoch_begin(self) -> Any:
        return 3


class Misspelt:
    @hookimpl
    def on_epoch_bgin(self) -> None: ...


def test_a_hook_that_returns_nonsense_is_named() -> None:
    scheduler, _, _ = fails_with(ReturnsNonsense, "extension")
    with pytest.raises(
        PluginError, match=r"on_epoch_begin of ReturnsNonsense 'broken'.* returned 3; an effect or None"
    ):
        scheduler.on_epoch_begin(0)


def test_a_misspelt_hook_is_found_before_training() -> None:
    with pytest.raises(
        ScheduleError, match="'on_epoch_bgin', and there is no such hook; did you mean 'on_epoch_begin'"
    ):
        fails_with(Misspelt, "extension")


class NeverAsked:
    @hookimpl
    def find_component(self, kind: str, name: str) -> type | None:
        return None


def test_a_component_that_offers_others_is_refused_since_nobody_would_ask_it() -> None:
    with pytest.raises(ScheduleError, match=r"a component is never asked: find_component belongs in a listener"):
        fails_with(NeverAsked, "extension")


# Components with hooks of their own, and listeners


class Counts:
    """An extension that counts the mini-batches it hears of and adds a loss term."""

    heard: list[Progress]

    def __init__(self, strength: float = 1.0) -> None:
        self.heard, self.strength = [], strength

    @property
    def trap(self) -> None:
        raise AssertionError("a property was evaluated")

    @hookimpl
    def on_minibatch_begin(self, progress: Progress) -> None:
        self.heard.append(progress)

    @hookimpl
    def before_backward_pass(self, loss: Tensor) -> LossTerm:
        return LossTerm("counted", loss.detach() * self.strength)


def test_a_components_own_hooks_are_live_while_its_window_is_open() -> None:
    schedule = Schedule([ComponentSpec("extension", "c", Counts)], [PolicySpec("extension", "c", Window(1, 6, 2))])
    scheduler = CompressionScheduler(schedule, MLP(), trace=SILENT)
    for epoch in range(7):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, 0, 1)
        loss = scheduler.before_backward_pass(epoch, 0, 1, torch.tensor(2.0))
        assert loss.item() == (4.0 if 1 <= epoch <= 5 else 2.0)
        scheduler.on_minibatch_end(epoch, 0, 1)
        scheduler.on_epoch_end(epoch)
    counts = scheduler.components["extensions.c"]
    assert counts.heard == [Progress(epoch, 0, 1, step=epoch, minibatch_of_step=0) for epoch in range(1, 6)]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    listener = Dashboard()
    installed = load_plugins()
    mine = Listener("dashboard", "my-dashboard", "2.0", listener)
    monkeypatch.setattr("prunekit.scheduler.load_plugins", lambda: replace(installed, listeners=(mine,)))
    return listener


def test_listeners_hear_of_every_effect(dashboard: Dashboard) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = {**SCHEDULE, "policies": [*SCHEDULE["policies"][:1], *SCHEDULE["policies"][3:]]}
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT)
    train_attached(scheduler, optimizer, 2, batches(2))
    scheduler.load_state_dict(scheduler.state_dict())
    pruned = (1, [("fc2.weight", 0.5, "prunekit-level-pruner")])
    assert dashboard.seen == [
        ("open", "policies[0]"),
        ("open", "policies[1]"),
        pruned,
        pruned,
        ("lr", [1.0], [0.25]),
        ("close", "policies[1]"),
        ("saved", 2),
        ("restored", 1),
    ]


def test_a_window_opens_again_for_listeners_of_a_resumed_run(dashboard: Dashboard) -> None:
    schedule = {**SCHEDULE, "policies": SCHEDULE["policies"][1:2]}
    first = CompressionScheduler.from_dict(schedule, MLP(), trace=SILENT)
    first.on_epoch_begin(0)
    first.on_epoch_end(0)
    state = first.state_dict()
    dashboard.seen.clear()
    second = CompressionScheduler.from_dict(schedule, MLP(), trace=SILENT)
    second.load_state_dict(state)
    second.on_epoch_begin(1)
    assert dashboard.seen == [("restored", 0), ("open", "policies[0]")]


def test_a_listener_that_fails_over_what_it_hears_undoes_the_effect(dashboard: Dashboard) -> None:
    dashboard.fail = True
    model = MLP()
    before = model.fc2.weight.detach().clone()
    scheduler = CompressionScheduler.from_dict({**SCHEDULE, "policies": SCHEDULE["policies"][3:]}, model, trace=SILENT)
    with pytest.raises(RuntimeError, match="disk full") as error:
        scheduler.on_epoch_begin(1)
    assert error.value.__notes__ == ["raised in on_masks_changed by dashboard, my-dashboard 2.0"]
    assert torch.equal(model.fc2.weight, before)
    assert dict(scheduler.masks) == {}
    assert dict(scheduler.changes) == {}


class Drops:
    """An extension that zeroes fc2 for once, as a regularizer does, and in its first epoch also masks fc1."""

    @hookimpl
    def on_minibatch_end(self, progress: Progress) -> Any:
        dropped = ZeroWeights({"fc2.weight": torch.zeros(4, 8, dtype=torch.bool)})
        chosen = SetMasks({"fc1.weight": torch.zeros(8, 12, dtype=torch.bool)})
        return [dropped, chosen, dropped] if progress.epoch == 0 else dropped


def dropping(model: MLP) -> CompressionScheduler:
    schedule = Schedule([ComponentSpec("extension", "d", Drops)], [PolicySpec("extension", "d", Window(0, 3))])
    return CompressionScheduler(schedule, model, trace=SILENT)


def test_what_no_listener_hears_of_is_not_copied(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[set[str]] = []
    snapshot = Masks.snapshot
    monkeypatch.setattr(Masks, "snapshot", lambda self, names: [copied.append(set(names)), snapshot(self, names)][1])
    scheduler = dropping(model := MLP())
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, 0, 1)
        scheduler.on_minibatch_end(epoch, 0, 1)
    assert copied == [{"fc1.weight", "fc2.weight"}]
    assert int(model.fc2.weight.count_nonzero()) == 0


def test_a_listener_that_fails_undoes_what_was_zeroed_for_once_too(dashboard: Dashboard) -> None:
    scheduler = dropping(model := MLP())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    dashboard.fail = True
    with pytest.raises(RuntimeError, match="disk full"):
        scheduler.on_minibatch_end(0, 0, 1)
    dashboard.fail = False
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert dict(scheduler.masks) == {}
    scheduler.on_epoch_end(0)
    assert dashboard.seen == [("open", "policies[0]")]  # and no word of weights zeroed in that epoch


def test_implementations_run_in_the_order_given_and_listeners_last() -> None:
    order: list[str] = []

    def live(name: str) -> Implementations:
        return Implementations(Origin(name, name, "", ""), {"on_epoch_begin": lambda: order.append(name)})

    class Last:
        @hookimpl
        def on_epoch_begin(self) -> None:
            order.append("listener")

    bus = EventBus(SILENT, lambda: Progress(0), [Listener("last", "last", "1", Last())])
    bus.set_live([live("a"), live("b"), live("c")])
    bus.fire("on_epoch_begin", model=None, masks={}, optimizer=None, progress=Progress(0))
    assert order == ["a", "b", "c", "listener"]
    bus.set_live([live("d")])
    bus.fire("on_epoch_begin", model=None, masks={}, optimizer=None, progress=Progress(0))
    assert order == ["a", "b", "c", "listener", "d", "listener"]


class Ear:
    """A listener that is a class: who hears what?"""

    made: ClassVar[list[Ear]] = []

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.made.append(self)

    @hookimpl
    def on_epoch_begin(self, progress: Progress) -> None:
        self.heard.append(progress.epoch)


def test_a_listener_that_is_a_class_has_an_instance_for_each_scheduler() -> None:
    Ear.made.clear()
    given = replace(load_plugins(), listeners=(Listener("ear", "my-ear", "1.0", Ear),))
    first, second = (CompressionScheduler.from_dict(pruning(), MLP(), trace=SILENT, plugins=given) for _ in "ab")
    first.on_epoch_begin(0)
    second.on_epoch_begin(1)
    second.on_epoch_begin(2)
    assert [ear.heard for ear in Ear.made] == [[0], [1, 2]]


def test_two_schedulers_share_no_bus() -> None:
    first, second = (
        CompressionScheduler.from_dict(SCHEDULE, MLP(), torch.optim.SGD(MLP().parameters()), trace=SILENT) for _ in "ab"
    )
    buses = [scheduler._execution.bus for scheduler in (first, second)]
    before = [bus.callers for bus in buses]
    first.on_epoch_begin(0)
    assert [bus.callers is callers for bus, callers in zip(buses, before, strict=True)] == [False, True]


def test_an_effect_may_come_from_any_hook() -> None:
    class Warmup:
        @hookimpl
        def on_minibatch_begin(self, progress: Progress) -> SetLearningRates:
            return SetLearningRates([{"lr": progress.minibatch_of_run / 10}])

    optimizer = torch.optim.SGD(MLP().parameters(), lr=1.0)
    schedule = Schedule([ComponentSpec("extension", "w", Warmup)], [PolicySpec("extension", "w", Window(0, 1))])
    scheduler = CompressionScheduler(schedule, MLP(), optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 3, 4)
    assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (SetMasks({"fc1.weight": torch.ones(8, 12)}), r"must be torch.bool \(8, 12\), got torch.float32 \(8, 12\)"),
        (SetMasks({"fc1.weight": torch.ones(1, 12, dtype=torch.bool)}), r"must be torch.bool \(8, 12\), got"),
        (SetMasks({"fc1.wieght": torch.ones(8, 12, dtype=torch.bool)}), "no parameter 'fc1.wieght'; did you mean"),
        (SetLearningRates([{"lrr": 1.0}]), "the optimizer's groups have no 'lrr'; did you mean 'lr'?"),
        (SetLearningRates([]), "values for 0 parameter groups; the optimizer has 1"),
    ],
)
def test_an_effect_that_does_not_fit_is_refused_before_any_is_carried_out(effect: Any, message: str) -> None:
    class Confused:
        @hookimpl
        def on_epoch_begin(self) -> Any:
            return [SetMasks({"fc2.weight": torch.zeros(4, 8, dtype=torch.bool)}), effect]

    scheduler, logger, model = fails_with(Confused, "extension")
    before = model.fc2.weight.detach().clone()
    with pytest.raises(PluginError, match=message) as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by Confused 'broken', policies[1], {__name__}"]
    (line,) = logger.events("hook failed")
    assert (line["hook"], line["policy"], line["plugin"]) == ("on_epoch_begin", "policies[1]", __name__)
    assert dict(scheduler.masks) == {}
    assert torch.equal(model.fc2.weight, before)


def test_the_applications_structlog_sees_the_lines() -> None:
    with structlog.testing.capture_logs() as lines:
        scheduler = CompressionScheduler.from_dict({**SCHEDULE, "policies": SCHEDULE["policies"][3:]}, MLP())
        scheduler.on_epoch_begin(1)
    assert [line["event"] for line in lines if line["log_level"] == "info"] == [
        "training begins",
        "window opens",
        "masks changed",
    ]
