"""Listeners given from Python: checked, ordered and traced as installed ones are, without a distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, pruning, without_listeners
from structlog.testing import capture_logs
from torch import nn
from torch.utils.data import DataLoader

from prunekit import (
    Application,
    CompressionScheduler,
    Lock,
    Progress,
    Schedule,
    ScheduleError,
    Trace,
    Trust,
    hookimpl,
    load_plugins,
    train,
)
from prunekit.components import Selectors
from prunekit.plugins.listeners import Listener
from prunekit.pruning import prune_lowest

ORDER: list[str] = []


class Ear:
    """Hears epochs."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    @hookimpl
    def on_epoch_begin(self, progress: Progress) -> None:
        self.heard.append(progress.epoch)
        ORDER.append(type(self).__name__)


class Second(Ear):
    """Another."""


class Eager:
    """Fails as it is made."""

    def __init__(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def on_epoch_begin(self) -> None: ...


class Misspelt:
    @hookimpl
    def on_epoch_start(self) -> None: ...


class WrongArgument:
    @hookimpl
    def on_epoch_begin(self, epoch: int) -> None: ...


def scheduler(listeners: Any, **options: Any) -> CompressionScheduler:
    options = {"trace": SILENT, "plugins": without_listeners(), **options}
    return CompressionScheduler.from_dict(pruning(), MLP(), listeners=listeners, **options)


def refusal(*listeners: object, **options: Any) -> list[str]:
    with pytest.raises(ScheduleError) as error:
        scheduler(listeners, **options)
    return str(error.value).split("\n")


def test_an_object_a_module_and_a_class_hear_events_after_those_installed_in_their_order() -> None:
    ORDER.clear()
    module = ModuleType("my_script.listening")
    module.on_epoch_begin = hookimpl(lambda: ORDER.append("module"))  # type: ignore[attr-defined]
    installed = Listener("installed", "acme", "1.0", Ear)
    plugins = replace(without_listeners(), listeners=(installed,))
    ear = Ear()
    scheduler([Second, module, ear], plugins=plugins).on_epoch_begin(0)
    assert ORDER == ["Ear", "Second", "module", "Ear"]
    assert ear.heard == [0]


def test_it_is_traced_under_the_name_of_its_class_and_module() -> None:
    with capture_logs() as lines:
        scheduler([Ear(), Second], trace=Trace(level="debug")).on_epoch_begin(0)
    ran = [(line["component"], line["plugin"], line["version"]) for line in lines if line["event"] == "hook ran"]
    assert ran[-2:] == [("Ear", __name__, ""), ("Second", __name__, "")]


def test_it_may_veto_and_return_effects() -> None:
    class Guard:
        @hookimpl
        def veto_pruning(self) -> str:
            return "never"

    guarded = scheduler([Guard()])
    guarded.on_epoch_begin(0)
    assert dict(guarded.masks) == {}


def test_one_object_may_listen_to_two_schedulers_and_a_class_has_an_instance_for_each() -> None:
    ear = Ear()
    for epoch in (1, 2):
        scheduler([ear]).on_epoch_begin(epoch)
    assert ear.heard == [1, 2]
    Counted.made = 0
    first, second = scheduler([Counted]), scheduler([Counted])
    for run in (first, second):
        run.on_epoch_begin(0)
    assert Counted.made == 2


class Counted(Ear):
    """Counts its instances."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.made += 1


def test_all_that_is_wrong_is_said_at_once_and_before_anything_is_changed() -> None:
    ear, here = Ear(), f", {__name__}"
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = [Misspelt(), WrongArgument, object(), 3, ear, ear, Second, Second, Eager]
    schedule = Schedule.from_dict({**pruning(), "pruners": {"p": {"class": "Nobody"}}})
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler(schedule, model, optimizer, listeners=given, trace=SILENT)
    first, *others = str(error.value).split("\n")
    assert first.startswith("<dict>: pruners.p.class: no pruner is registered as 'Nobody'")
    assert others == [
        f"<python>: listeners[0]: Misspelt{here} implements 'on_epoch_start', and there is no such hook; "
        "did you mean 'on_epoch_end'?",
        f"<python>: listeners[1]: on_epoch_begin of WrongArgument{here} takes 'epoch', which that hook does not give; "
        "known are 'masks', 'model', 'optimizer', 'progress'",
        "<python>: listeners[2]: object, builtins implements no hook; is @prunekit.hookimpl missing?",
        "<python>: listeners[3]: int, builtins implements no hook; is @prunekit.hookimpl missing?",
        "<python>: listeners[5]: is on the bus already, and would hear every event twice",
        "<python>: listeners[7]: is on the bus already, and would hear every event twice",
        f"<python>: listeners[8]: listener 'Eager' of {__name__} is a class that can't be made without arguments: "
        "RuntimeError: no",
    ]
    assert optimizer._optimizer_step_post_hooks == {}


def test_what_is_installed_already_does_not_hear_twice() -> None:
    installed = Listener("ear", "acme", "1.0", Ear)
    plugins = replace(without_listeners(), listeners=(installed,))
    assert refusal(Ear, plugins=plugins) == [
        "<python>: listeners[0]: is on the bus already, and would hear every event twice"
    ]


class Offers:
    """A listener that knows a pruner."""

    class Quarter:
        """Prunes a quarter."""

        def __init__(self, weights: Selectors) -> None: ...

        def compute_masks(self, parameters: Any, context: Any) -> Any:
            return {name: prune_lowest(weight.abs(), 0.25) for name, weight in parameters.items()}

    @hookimpl
    def find_component(self, kind: str, name: str) -> type | None:
        return self.Quarter if (kind, name) == ("pruner", "Quarter") else None

    @hookimpl
    def list_components(self, kind: str) -> list[str]:
        return ["Quarter"] if kind == "pruner" else []


def test_it_may_offer_components_too_and_two_of_one_name_are_an_error() -> None:
    def quarter(*listeners: object) -> CompressionScheduler:
        schedule = pruning("Quarter", weights=["fc1.weight"])
        return CompressionScheduler.from_dict(schedule, MLP(), trace=SILENT, listeners=listeners)

    run = quarter(Offers())
    run.on_epoch_begin(0)
    assert run.sparsity("fc1.weight") == 0.25
    with pytest.raises(ScheduleError, match=f"{__name__} and {__name__} both offer pruner 'Quarter'"):
        quarter(Offers(), Offers())
    with pytest.raises(ScheduleError, match="no pruner is registered as 'Quarter'"):
        quarter()


def application() -> Application:
    torch.manual_seed(0)
    model = MLP()
    loader = DataLoader([(x, y) for xs, ys in batches(2) for x, y in zip(xs, ys, strict=True)], batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Application(model, optimizer, loader, loader, nn.functional.cross_entropy)


def test_train_takes_listeners_and_they_stand_in_the_lock_of_the_run(tmp_path: Path) -> None:
    ear = Ear()
    train(application(), pruning(), 2, run_dir=tmp_path, listeners=[ear])
    assert ear.heard == [0, 1]
    lock = Lock.read(tmp_path)
    [entry] = [entry for entry in lock.entries if entry.name == "Ear"]
    assert (entry.kind, entry.distribution, entry.version, len(entry.sha256)) == ("listener", __name__, "", 64)


def test_a_lock_holds_for_given_listeners_as_for_others(tmp_path: Path) -> None:
    train(application(), pruning(), 1, run_dir=tmp_path, listeners=[Ear()])
    locked = load_plugins(Trust(lock=Lock.read(tmp_path)))
    missing = f"listener 'Ear' of {__name__} is in the lock {tmp_path / 'plugins.lock.json'}, and is not loaded now"
    assert refusal(plugins=locked) == [f"{tmp_path / 'plugins.lock.json'}: {missing}"]
    scheduler([Ear()], plugins=locked)
    assert refusal(Ear(), Second, plugins=locked) == [
        f"{tmp_path / 'plugins.lock.json'}: listener 'Second' of {__name__} is not in the lock "
        f"{tmp_path / 'plugins.lock.json'}"
    ]
