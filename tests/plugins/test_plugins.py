"""Listeners: found through entry points, switched off by name, and harmless when they are broken."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from fake_sites import Install, fake_site, refusal, run, schedule
from helpers import MLP, SILENT, pruning, train_attached
from structlog.testing import capture_logs

from prunekit import CompressionScheduler, PluginError, Trace, hookimpl
from prunekit.plugins.entry_points import Offer
from prunekit.plugins.hooks import hook_names
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.registry import Registry
from prunekit.plugins.run_time import RunTimeComponents

LISTENER = """\
from prunekit import hookimpl
heard = []

@hookimpl
def on_epoch_begin(progress):
    heard.append(progress.epoch)
"""
OFFERING = """\
from prunekit import hookimpl
from prunekit.components import Selectors
from prunekit.pruning import prune_lowest

class Dynamic:
    def __init__(self, weights: Selectors) -> None:
        self.weights = weights

    def compute_masks(self, parameters, context):
        return {name: prune_lowest(weight.abs(), 0.25) for name, weight in parameters.items()}

@hookimpl
def find_component(kind, name):
    return Dynamic if (kind, name) == ("pruner", "Dynamic") else None

@hookimpl
def list_components(kind):
    return ["Dynamic"] if kind == "pruner" else None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.delenv("PRUNEKIT_DISABLE", raising=False)
    return fake_site(tmp_path, monkeypatch)


def listens(name: str, value: str) -> dict[str, dict[str, str]]:
    return {"prunekit": {name: value}}


def fakes(names: Any) -> list[str]:
    """Those that a test has installed."""
    return [name for name in names if name.startswith("fake")]


def broken(prefix: str = "fake") -> list[str]:
    return [listener.reason for listener in load_plugins().broken if listener.offer.name.startswith(prefix)]


def train(scheduler: CompressionScheduler, epochs: int) -> None:
    assert scheduler.optimizer is not None
    train_attached(scheduler, scheduler.optimizer, epochs)


def test_a_listener_is_on_every_bus_without_being_named(install: Install) -> None:
    install("fake-ear", "1", listens("fake-ear", "fake_ear"), fake_ear=LISTENER)
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT), 3)
    assert sys.modules["fake_ear"].heard == [0, 1, 2]


@pytest.mark.parametrize("value", ["fake-one", "fake-package-one", " fake-one , no-such-listener", "fake-one,"])
def test_a_listener_is_switched_off_by_its_name_or_its_distribution_s(
    value: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fake-package-one", "1", listens("fake-one", "fake_one"), fake_one=LISTENER)
    install("fake-package-two", "1", listens("fake-two", "fake_two"), fake_two=LISTENER)
    assert fakes(listener.name for listener in load_plugins().listeners) == ["fake-one", "fake-two"]
    monkeypatch.setenv("PRUNEKIT_DISABLE", value)
    monkeypatch.delitem(sys.modules, "fake_one")
    assert fakes(listener.name for listener in load_plugins().listeners) == ["fake-two"]
    assert "fake_one" not in sys.modules


def test_an_object_may_listen_and_its_properties_are_left_alone(install: Install) -> None:
    body = dedent("""\
        from prunekit import hookimpl
        class Ear:
            heard = []
            @property
            def costly(self):
                raise RuntimeError("evaluated")
            @hookimpl
            def on_epoch_begin(self, progress):
                self.heard.append(progress.epoch)
            @staticmethod
            @hookimpl
            def on_epoch_end(metrics): ...
            @classmethod
            @hookimpl
            def on_train_end(cls, masks): cls.heard.append("end")
            @hookimpl
            def find_component(self, kind): ...
        ear = Ear()
    """)
    install("fake-ear", "1", listens("fake-ear", "fake_ear:ear"), fake_ear=body)
    assert broken() == []
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT), 2)
    assert sys.modules["fake_ear"].Ear.heard == [0, 1, "end"]


@pytest.mark.parametrize(
    ("body", "value", "reason"),
    [
        (
            "import no_such_module",
            "fake_ear",
            "listener 'fake-ear' of fake-ear 1 can't be imported from 'fake_ear': "
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "import sys; sys.exit(3)",
            "fake_ear",
            "listener 'fake-ear' of fake-ear 1 can't be imported from 'fake_ear': SystemExit: 3",
        ),
        (
            LISTENER.replace("on_epoch_begin", "on_epoch_beginn"),
            "fake_ear",
            "fake-ear 1 implements 'on_epoch_beginn', and there is no such hook; did you mean 'on_epoch_begin'?",
        ),
        (
            LISTENER.replace("progress", "progres"),
            "fake_ear",
            "on_epoch_begin of fake-ear 1 takes 'progres', which that hook does not give; did you mean 'progress'?",
        ),
        (
            "from prunekit import hookimpl\n"
            "class Ear:\n    def __init__(self, folder): ...\n    @hookimpl\n    def on_epoch_begin(self): ...\n",
            "fake_ear:Ear",
            "listener 'fake-ear' of fake-ear 1 is a class that can't be made without arguments: "
            "TypeError: Ear.__init__() missing 1 required positional argument: 'folder'",
        ),
        (
            "def on_epoch_begin(progress): ...\n",
            "fake_ear",
            "listener 'fake-ear' of fake-ear 1 implements no hook; is @prunekit.hookimpl missing?",
        ),
        (
            "ear = 3",
            "fake_ear:ear",
            "listener 'fake-ear' of fake-ear 1 implements no hook; is @prunekit.hookimpl missing?",
        ),
    ],
)
def test_a_broken_listener_is_left_out_and_the_run_says_so(
    body: str, value: str, reason: str, install: Install, tmp_path: Path
) -> None:
    """Peer failure 12: it is quarantined, with its traceback, and disturbs nobody."""
    install("fake-ear", "1", listens("fake-ear", value), fake_ear=body)
    install("fake-well", "1", listens("fake-well", "fake_well"), fake_well=LISTENER)
    assert broken() == [reason]
    [left_out] = [listener for listener in load_plugins().broken if listener.offer.name == "fake-ear"]
    assert "Traceback (most recent call last):" in left_out.traceback
    assert reason in left_out.traceback
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture_logs() as lines:
        scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=Trace(level="warning"))
        train(scheduler, 2)
    assert [line for line in lines if "fake" in str(line)] == [
        {"event": "plugin broken", "log_level": "warning", "plugin": "fake-ear 1", "error": reason}
    ]
    assert sys.modules["fake_well"].heard == [0, 1]
    assert scheduler.sparsity("fc1.weight") == 0.5


def test_a_broken_listener_shows_its_own_traceback(install: Install) -> None:
    """Peer failure 12."""
    install("fake-ear", "1", listens("fake-ear", "fake_ear"), fake_ear="def cause():\n    return 1 / 0\ncause()\n")
    [left_out] = [listener for listener in load_plugins().broken if listener.offer.name == "fake-ear"]
    assert 'fake_ear.py", line 2, in cause' in left_out.traceback
    assert "ZeroDivisionError: division by zero" in left_out.traceback


# Components that are only known at run time


def test_a_listener_s_component_is_found_and_listed(install: Install, tmp_path: Path) -> None:
    install("fake-maker", "0.7", listens("fake-maker", "fake_maker"), fake_maker=OFFERING)
    registry = load_plugins().registry
    assert "Dynamic" in registry.names("pruner")
    assert "Dynamic" not in registry.names("regularizer")
    for name in ("Dynamic", "fake-maker:Dynamic"):
        found = registry.find("pruner", name)
        assert (found.cls.__name__, found.distribution, found.version) == ("Dynamic", "fake-maker", "0.7")
    scheduler = run(schedule("Dynamic"), tmp_path)
    scheduler.on_epoch_begin(0)
    assert (scheduler.sparsity("fc1.weight"), scheduler.state_dict()["plugins"]) == (0.25, {"fake-maker": "0.7"})


def test_an_entry_point_goes_before_a_listener(install: Install) -> None:
    install("fake-maker", "0.7", listens("fake-maker", "fake_maker"), fake_maker=OFFERING)
    install("fake-static", "1", {"prunekit.pruners": {"Dynamic": "fake_static:Dynamic"}}, fake_static=OFFERING)
    registry = load_plugins().registry
    assert registry.find("pruner", "Dynamic").distribution == "fake-static"


def test_the_names_that_a_listener_answers_to_are_near_names_too(install: Install, tmp_path: Path) -> None:
    install("fake-maker", "0.7", listens("fake-maker", "fake_maker"), fake_maker=OFFERING)
    assert refusal(schedule("Dynamik"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: no pruner is registered as 'Dynamik'; did you mean 'Dynamic'? (fake-maker 0.7)"
    ]
    assert refusal(schedule("Dynamic", "extensions"), tmp_path) == [
        "s.yaml:4:12: extensions.p.class: 'Dynamic' is a pruner, not an extension; "
        "it belongs under 'pruners' (fake-maker 0.7)"
    ]
    assert refusal(schedule("fake-other:Dynamic"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: 'Dynamic' is offered by fake-maker 0.7, not by 'fake-other'"
    ]


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("'Dynamic'", "returned 'Dynamic', not a class"),
        ("[Dynamic]", "returned [<class 'fake_bad.Dynamic'>], not a class"),
    ],
)
def test_a_listener_that_fails_to_find_disturbs_no_other(
    answer: str, what: str, install: Install, tmp_path: Path
) -> None:
    """Peer failure 12."""
    body = OFFERING.replace('Dynamic if (kind, name) == ("pruner", "Dynamic") else None', answer)
    body = body.replace('["Dynamic"]', "1 / 0")
    install("fake-bad", "0.1", listens("fake-bad", "fake_bad"), fake_bad=body)
    assert refusal(schedule("Dynamic"), tmp_path) == [
        f"s.yaml:4:12: pruners.p.class: no pruner 'Dynamic': find_component of fake-bad 0.1 {what}"
    ]
    install("fake-maker", "0.7", listens("fake-maker", "fake_maker"), fake_maker=OFFERING)
    run(schedule("Dynamic"), tmp_path)


def test_of_two_listeners_that_answer_to_one_name_the_schedule_says_which() -> None:
    def offering(cls: type) -> ModuleType:
        module = ModuleType(f"offers_{cls.__name__}")
        module.find_component = hookimpl(lambda name: cls if name == "X" else None)  # type: ignore[attr-defined]
        return module

    listeners = [Listener("a", "dist-a", "1", offering(int)), Listener("b", "dist-b", "1", offering(str))]
    registry = Registry(run_time=RunTimeComponents(listeners))
    assert registry.find("pruner", "dist-a:X").cls is int
    assert registry.find("pruner", "dist-b:X").cls is str
    with pytest.raises(PluginError, match="dist-a 1 and dist-b 1 both offer pruner 'X'; say which: class: dist-a:X"):
        registry.find("pruner", "X")


def test_hooks_are_found_without_evaluating_anything() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"evaluated {name}")

    class Friendly:
        def __getattr__(self, name: str) -> Any:
            return lambda: None

    class Component:
        hostile, friendly = Hostile(), Friendly()

        @property
        def on_train_end(self) -> None:
            raise RuntimeError("evaluated")

        @hookimpl
        def on_minibatch_end(self, masks: Any, progress: Any, more: int = 3, *rest: Any, **others: Any) -> None: ...

        @hookimpl
        def on_epoch_end(self) -> None: ...

        def on_epoch_begin(self, anything: int) -> None:
            """Not marked: not a hook."""

    assert hook_names(Component(), "x") == hook_names(Component, "x") == ["on_epoch_end", "on_minibatch_end"]


@pytest.mark.parametrize("argument", ["epoch", "self_", "loss"])
def test_an_argument_that_a_hook_does_not_give_is_refused(argument: str) -> None:
    module = ModuleType("listener")
    namespace: dict[str, Any] = {}
    exec(f"def on_epoch_begin({argument}): ...", namespace)
    module.on_epoch_begin = hookimpl(namespace["on_epoch_begin"])  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=f"^on_epoch_begin of me takes '{argument}', which that hook does not give; "):
        hook_names(module, "me")


def test_an_offer_shows_its_distribution_and_version(install: Install) -> None:
    install("Fake.Name", "1.0rc1", {"prunekit.pruners": {"Fake": "fake_name:Fake"}})
    offers: list[Offer] = [offer for offer in Registry().offers if offer.name == "Fake"]
    assert [(str(offer), offer.kind, offer.entry_point.value) for offer in offers] == [
        ("Fake.Name 1.0rc1", "pruner", "fake_name:Fake")
    ]
