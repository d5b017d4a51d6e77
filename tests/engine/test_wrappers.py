"""Implementations that wrap others: traced where they change results, blamed where they fail, or refused by name."""

from __future__ import annotations

from collections.abc import Generator
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import MLP, Recorder, without_listeners
from on_the_bus import Returns, rows

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PluginError,
    PolicySpec,
    Schedule,
    ScheduleError,
    Trace,
    Window,
    hookimpl,
)
from prunekit.components import LossTerm, Result, SetMasks
from prunekit.hookspecs import decision, event, notification, offer
from prunekit.plugins.hooks import HOOKS, hook_names

FIRST = SetMasks({"fc1.weight": rows(1)})
SECOND = SetMasks({"fc2.weight": torch.zeros(4, 8, dtype=torch.bool)})
MINE = f"Wraps, {__name__}"


class Wraps:
    """A listener that hands the results of others to a function, and returns what that returns."""

    def __init__(self, change: Any, before: Any = lambda: None) -> None:
        self.change, self.before = change, before

    @hookimpl(wrapper=True)
    def on_epoch_begin(self) -> Generator[None, Any, Any]:
        self.before()
        return self.change((yield))


def wrapped(listener: object, *returned: Any, level: Any = "info") -> tuple[CompressionScheduler, Recorder]:
    """A scheduler under whose event components return these, and a listener that wraps it."""
    names = [f"r{index}" for index in range(len(returned))]
    components = [ComponentSpec("extension", n, Returns, {"what": w}) for n, w in zip(names, returned, strict=True)]
    logger = Recorder()
    options = {"trace": Trace(logger=logger, level=level), "plugins": without_listeners(), "listeners": [listener]}
    schedule = Schedule(components, [PolicySpec("extension", name, Window(0, 4)) for name in names])
    return CompressionScheduler(schedule, MLP(), **options), logger  # type: ignore[arg-type]


def changed(logger: Recorder) -> list[tuple[list[str], list[str]]]:
    return [(line["were"], line["became"]) for line in logger.events("results changed")]


def by(index: int) -> str:
    return f"by Returns 'r{index}', policies[{index}], {Returns.__module__}"


# What a wrapper does is said


def test_a_wrapper_that_drops_masks_leaves_a_line_with_whose_they_were() -> None:
    scheduler, logger = wrapped(Wraps(lambda results: []), FIRST, [SECOND, FIRST])
    scheduler.on_epoch_begin(0)
    assert dict(scheduler.masks) == {}
    (line,) = logger.events("results changed")
    assert line == {
        "level": "info",
        "event": "results changed",
        "hook": "on_epoch_begin",
        "policy": "",
        "component": "Wraps",
        "plugin": __name__,
        "version": "",
        "epoch": 0,
        "were": [f"SetMasks of fc1.weight {by(0)}", f"SetMasks of fc2.weight, SetMasks of fc1.weight {by(1)}"],
        "became": [],
    }


def test_what_a_wrapper_appends_is_its_own() -> None:
    scheduler, logger = wrapped(Wraps(lambda results: [*results, SECOND]), FIRST)
    scheduler.on_epoch_begin(0)
    assert list(scheduler.masks) == ["fc1.weight", "fc2.weight"]
    kept = f"SetMasks of fc1.weight {by(0)}"
    assert changed(logger) == [([kept], [kept, f"SetMasks of fc2.weight by {MINE}"])]
    assert [line["component"] for line in logger.events("masks changed")] == ["Returns 'r0'", "Wraps"]
    assert scheduler.changes["fc2.weight"][0][1].origin == ("", "Wraps", __name__, "")


def test_what_a_wrapper_puts_in_place_of_a_result_is_its_own_whatever_it_says() -> None:
    scheduler, logger = wrapped(Wraps(lambda results: [Result(results[0].origin, SECOND)]), FIRST)
    scheduler.on_epoch_begin(0)
    assert changed(logger) == [([f"SetMasks of fc1.weight {by(0)}"], [f"SetMasks of fc2.weight by {MINE}"])]
    assert [line["component"] for line in logger.events("masks changed")] == ["Wraps"]


def test_a_list_that_is_changed_in_place_is_a_change_too() -> None:
    def clear(results: list[Result]) -> list[Result]:
        results.clear()
        return results

    scheduler, logger = wrapped(Wraps(clear), FIRST)
    scheduler.on_epoch_begin(0)
    assert changed(logger) == [([f"SetMasks of fc1.weight {by(0)}"], [])]


def test_so_is_a_mask_that_is_written_to() -> None:
    def prune_more(results: list[Result]) -> list[Result]:
        results[0].value.masks["fc1.weight"][0] = False
        return results

    scheduler, logger = wrapped(Wraps(prune_more), SetMasks({"fc1.weight": rows(1)}))
    scheduler.on_epoch_begin(0)
    assert torch.equal(scheduler.masks["fc1.weight"], rows(0, 1))
    assert len(changed(logger)) == 1


def test_a_wrapper_that_changes_nothing_leaves_no_line_at_info_and_one_at_debug() -> None:
    for level, ran in (("info", []), ("debug", ["Returns 'r0'", "Wraps"])):
        scheduler, logger = wrapped(Wraps(lambda results: results), FIRST, level=level)
        scheduler.on_epoch_begin(0)
        assert list(scheduler.masks) == ["fc1.weight"]
        assert changed(logger) == []
        assert [line["component"] for line in logger.events("hook ran")] == ran


def test_a_wrapper_may_change_loss_terms() -> None:
    class Softens:
        @hookimpl(wrapper=True)
        def before_backward_pass(self) -> Generator[None, Any, Any]:
            (result,) = yield
            return [LossTerm("soft", result.value.value / 2)]

    scheduler, logger = wrapped(Softens(), None)
    scheduler.on_epoch_begin(0)
    scheduler.components["extensions.r0"].what = LossTerm("hard", torch.tensor(4.0))
    assert scheduler.total_loss(torch.tensor(1.0)).item() == 3
    assert changed(logger) == [([f"LossTerm 'hard' {by(0)}"], [f"LossTerm 'soft' by Softens, {__name__}"])]


@pytest.mark.parametrize(("answer", "masks"), [(None, ["fc1.weight"]), ("never", [])])
def test_a_wrapper_may_lift_a_veto_or_give_another_reason(answer: str | None, masks: list[str]) -> None:
    class Vetoes:
        @hookimpl
        def veto_pruning(self) -> str:
            return "not today"

        @hookimpl(wrapper=True)
        def on_epoch_begin(self) -> Generator[None, Any, Any]:
            return (yield)

    class Overrules:
        @hookimpl(wrapper=True)
        def veto_pruning(self) -> Generator[None, Any, Any]:
            assert (yield).value == "not today"
            return answer

    logger = Recorder()
    options = {"trace": Trace(logger=logger), "plugins": without_listeners()}
    schedule = wrapped(Vetoes(), FIRST)[0].schedule
    scheduler = CompressionScheduler(schedule, MLP(), listeners=[Overrules(), Vetoes()], **options)  # type: ignore[arg-type]
    scheduler.on_epoch_begin(0)
    assert list(scheduler.masks) == masks
    became = [] if answer is None else [f"never by Overrules, {__name__}"]
    assert changed(logger) == [([f"not today by Vetoes, {__name__}"], became)]


# Who fails is blamed


def boom(*_: Any) -> Any:
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize("listener", [Wraps(boom), Wraps(lambda results: results, before=boom)])
def test_a_wrapper_that_fails_is_blamed_and_nothing_is_done(listener: Wraps) -> None:
    scheduler, logger = wrapped(listener, FIRST)
    with pytest.raises(ZeroDivisionError) as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {MINE}"]
    (line,) = logger.events("hook failed")
    assert (line["component"], line["error"]) == ("Wraps", "ZeroDivisionError: boom")
    assert dict(scheduler.masks) == {}


def test_a_wrapper_is_not_blamed_for_what_another_raises() -> None:
    class Fails:
        @hookimpl
        def on_epoch_begin(self) -> None:
            boom()

    logger = Recorder()
    options = {"trace": Trace(logger=logger), "plugins": without_listeners()}
    both = [Wraps(lambda results: results), Fails()]
    scheduler = CompressionScheduler(Schedule([], []), MLP(), listeners=both, **options)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError) as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by Fails, {__name__}"]
    assert [line["component"] for line in logger.events("hook failed")] == ["Fails"]


def test_a_wrapper_that_hides_a_failure_leaves_a_line() -> None:
    class Hides:
        @hookimpl(wrapper=True)
        def on_epoch_begin(self) -> Generator[None, Any, Any]:
            try:
                return (yield)
            except ZeroDivisionError:
                return [SECOND]

    class Fails:
        @hookimpl
        def on_epoch_begin(self) -> None:
            boom()

    logger = Recorder()
    options = {"trace": Trace(logger=logger), "plugins": without_listeners()}
    scheduler = CompressionScheduler(Schedule([], []), MLP(), listeners=[Fails(), Hides()], **options)  # type: ignore[arg-type]
    scheduler.on_epoch_begin(0)
    assert list(scheduler.masks) == ["fc2.weight"]
    became = f"SetMasks of fc2.weight by Hides, {__name__}"
    assert changed(logger) == [(["ZeroDivisionError: boom"], [became])]


@pytest.mark.parametrize(
    ("returned", "shown"), [(None, "None"), (FIRST, "SetMasks"), (3, "3")], ids=["nothing", "a bare effect", "a number"]
)
def test_a_wrapper_that_forgets_to_return_the_list_is_told_so(returned: Any, shown: str) -> None:
    scheduler, _ = wrapped(Wraps(lambda results: returned), FIRST)
    with pytest.raises(PluginError, match=f"^a wrapper must return the list of results, got {shown}") as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {MINE}"]
    assert dict(scheduler.masks) == {}


def test_what_a_wrapper_appends_must_be_an_effect() -> None:
    scheduler, _ = wrapped(Wraps(lambda results: [*results, 3]), FIRST)
    with pytest.raises(PluginError, match=f"^on_epoch_begin of {MINE} returned 3; an effect or None was expected"):
        scheduler.on_epoch_begin(0)


class YieldsTwice:
    @hookimpl(wrapper=True)
    def on_epoch_begin(self) -> Generator[None, Any, Any]:
        yield
        yield


class MayYield:
    @hookimpl(wrapper=True)
    def on_epoch_begin(self) -> Generator[None, Any, Any]:
        if self is None:
            yield
        return []


@pytest.mark.parametrize(("listener", "message"), [(YieldsTwice(), "yields twice"), (MayYield(), "did not yield")])
def test_a_wrapper_yields_once(listener: object, message: str) -> None:
    scheduler, _ = wrapped(listener, FIRST)
    with pytest.raises(PluginError, match=f"^a wrapper must yield once, and this one {message}") as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {type(listener).__name__}, {__name__}"]


# What a hook does not allow is refused by name


def marked(hook: str, **options: Any) -> ModuleType:
    def implementation() -> Any:
        yield

    implementation.__name__ = hook
    module = ModuleType("listener")
    setattr(module, hook, hookimpl(**options)(implementation))
    return module


def allowed(hook: str, **options: Any) -> bool:
    try:
        return hook_names(marked(hook, **options), "me") == [hook]
    except PluginError:
        return False


def test_each_hook_allows_what_its_mark_says() -> None:
    for hook, role in HOOKS.items():
        options = ("tryfirst", "trylast", "wrapper", "hookwrapper", "optionalhook")
        assert tuple(option for option in options if allowed(hook, **{option: True})) == role.options, hook
    assert {role.name: role.options for role in (event, decision, notification, offer)} == {
        "event": ("tryfirst", "trylast", "wrapper"),
        "decision": ("tryfirst", "trylast", "wrapper"),
        "notification": ("tryfirst", "trylast"),
        "offer": (),
    }


@pytest.mark.parametrize(
    ("hook", "options", "message"),
    [
        (
            "on_masks_changed",
            {"wrapper": True},
            "on_masks_changed of me is marked wrapper=True; a notification allows only tryfirst, trylast: "
            "nothing is returned that could be changed",
        ),
        (
            "find_component",
            {"tryfirst": True},
            "find_component of me is marked tryfirst=True; an offer allows no option: "
            "all are asked, and two that offer one name are an error",
        ),
        (
            "on_epoch_begin",
            {"hookwrapper": True},
            "on_epoch_begin of me is marked hookwrapper=True, which prunekit does not know; "
            "a wrapper is marked wrapper=True",
        ),
        (
            "on_state_saved",
            {"hookwrapper": True},
            "on_state_saved of me is marked hookwrapper=True, which prunekit does not know: "
            "nothing is returned that could be changed",
        ),
        (
            "on_epoch_end",
            {"specname": "on_train_end"},
            "on_epoch_end of me is marked specname='on_train_end'; an event allows only tryfirst, trylast, wrapper: "
            "these change what is returned, and in which order",
        ),
    ],
)
def test_what_a_hook_does_not_allow_is_refused_by_name(hook: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as error:
        hook_names(marked(hook, **options), "me")
    assert str(error.value) == message


def test_a_wrapper_that_can_not_yield_is_refused() -> None:
    module = ModuleType("listener")
    module.on_epoch_begin = hookimpl(wrapper=True)(lambda progress: [progress])  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"^on_epoch_begin of me is marked wrapper=True and does not yield: it must"):
        hook_names(module, "me")


class WrapsNotification:
    @hookimpl(wrapper=True)
    def on_window_open(self) -> Generator[None, Any, Any]:
        return (yield)


def test_a_component_that_wraps_what_it_may_not_is_a_problem_of_the_schedule() -> None:
    spec = ComponentSpec("extension", "w", WrapsNotification)
    schedule = Schedule([spec], [PolicySpec("extension", "w", Window(0, 1))])
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler(schedule, MLP())
    assert str(error.value) == (
        f"<python>: extensions.w.class: on_window_open of {__name__} is marked wrapper=True; "
        "a notification allows only tryfirst, trylast: nothing is returned that could be changed"
    )


# Notifications


def test_what_a_notification_returns_is_not_lost_in_silence() -> None:
    class Returning:
        @hookimpl
        def on_masks_changed(self) -> Any:
            return SECOND

    scheduler, logger = wrapped(Returning(), FIRST)
    with pytest.raises(PluginError) as error:
        scheduler.on_epoch_begin(0)
    who = f"Returning, {__name__}"
    assert str(error.value).startswith(f"on_masks_changed of {who} returned SetMasks(masks=")
    assert str(error.value).endswith("; nothing is done with what it returns")
    assert error.value.__notes__ == [f"raised in on_masks_changed by {who}"]
    assert dict(scheduler.masks) == {}
    assert [line["event"] for line in logger.lines if line["level"] != "info"] == ["hook failed", "effects undone"]


def test_the_mark_of_an_implementation_orders_it() -> None:
    order: list[str] = []

    def note(name: str, **options: Any) -> ModuleType:
        module = ModuleType(name)
        module.on_epoch_begin = hookimpl(**options)(lambda: order.append(name))  # type: ignore[attr-defined]
        return module

    listeners = [note("last", trylast=True), note("a"), note("b"), note("first", tryfirst=True)]
    options = {"trace": Trace(logger=None), "plugins": without_listeners()}
    CompressionScheduler(Schedule([], []), MLP(), listeners=listeners, **options).on_epoch_begin(0)  # type: ignore[arg-type]
    assert order == ["first", "a", "b", "last"]


def test_an_argument_with_a_default_is_no_obstacle() -> None:
    class Optional:
        @hookimpl
        def on_epoch_begin(self, model: Any = None, mine: int = 3) -> None:
            assert mine == 3

    scheduler, _ = wrapped(Optional(), FIRST)
    scheduler.on_epoch_begin(0)
