"""Effects: refused before anything is touched, carried out whole or not at all, and known by name in one file."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MLP, Recorder, without_listeners
from on_the_bus import Dashboard, Returns, rows

import prunekit
from prunekit import ComponentSpec, CompressionScheduler, PluginError, PolicySpec, Schedule, Trace, Window, hookimpl
from prunekit.components import (
    DropMasks,
    Effect,
    KeepMasks,
    LossTerm,
    ModulesQuantized,
    SetLearningRates,
    SetMasks,
    SetWeights,
    ZeroWeights,
)
from prunekit.components.effects import Announcement, Network, effect_names
from prunekit.components.origin import Origin
from prunekit.model.masks import Masks


def returning(
    what: Any, listeners: Sequence[object] = ()
) -> tuple[CompressionScheduler, torch.optim.Optimizer, Recorder, MLP]:
    model, logger = MLP(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = Schedule([ComponentSpec("extension", "r", Returns, {"what": what})], [EVERY])
    options = {"trace": Trace(logger=logger), "plugins": without_listeners(), "listeners": listeners}
    return CompressionScheduler(schedule, model, optimizer, **options), optimizer, logger, model  # type: ignore[arg-type]


EVERY = PolicySpec("extension", "r", Window(0, 4))
WHO = f"Returns 'r', policies[0], {Returns.__module__}"


def state(scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, model: MLP) -> Any:
    """All that effects touch, as plain data."""
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    masks = {name: mask.tolist() for name, mask in scheduler.masks.items()}
    return weights, masks, dict(scheduler.changes), [group["lr"] for group in optimizer.param_groups]


# What may be returned


def test_a_third_party_has_no_effects_of_its_own() -> None:
    for base in (Effect, SetMasks):
        with pytest.raises(PluginError) as error:
            type("Mine", (base,), {"__module__": "acme"})
        assert str(error.value) == (
            "acme.Mine can't be an effect of its own: prunekit could neither veto it nor undo it; return SetMasks, "
            "SetWeights, KeepMasks, DropMasks, ZeroWeights, SetLearningRates, ModulesQuantized"
        )


@pytest.mark.parametrize("nonsense", [3, "SetMasks", SetMasks, LossTerm("l", torch.ones(()))])
def test_what_is_no_effect_is_refused_with_what_may_be_returned(nonsense: Any) -> None:
    scheduler, *_ = returning([None, [nonsense]])
    with pytest.raises(PluginError) as error:
        scheduler.on_epoch_begin(0)
    message = str(error.value)
    assert message.startswith(f"on_epoch_begin of {WHO} returned ")
    assert message.endswith(f"; an effect or None was expected: {', '.join(effect_names())}")
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {WHO}"]


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (
            SetMasks({"fc1.weight": rows(0).to_sparse()}),
            r"torch.bool \(8, 12\), got torch.bool .* torch.sparse",
        ),
        (SetMasks({"fc1.weight": rows(0).to("meta")}), r"torch.bool \(8, 12\), got torch.bool \(8, 12\) on meta"),
        (SetMasks({"fc1.weight": [True]}), r"must be torch.bool \(8, 12\), got \[True\]"),  # type: ignore[dict-item]
        (SetMasks([rows(0)]), r"masks must be a mapping of parameter names to tensors, got \[tensor\("),  # type: ignore[arg-type]
        (SetMasks({}, scales={"fc1.weight": "2"}), "the scale of 'fc1.weight' must be a number, got '2'"),  # type: ignore[dict-item]
        (SetWeights({"fc1.weight": rows(0)}), r"must be floating \(8, 12\), got torch.bool \(8, 12\)"),
        (SetWeights({"fc3.weight": rows(0)}), "no parameter 'fc3.weight'; did you mean 'fc2.weight'"),
        (KeepMasks(["fc3.weight"]), "no parameter 'fc3.weight'; did you mean"),
        (DropMasks(["fc3.weight"]), "no parameter 'fc3.weight'; did you mean"),
        (ZeroWeights({"fc1.weight": rows(0).float()}), "must be torch.bool"),
        (SetLearningRates([{"lr": "fast"}]), "'lr' of the optimizer's groups must be a number, got 'fast'"),
    ],
)
def test_what_can_not_be_carried_out_is_refused_before_anything_is(effect: Effect, message: str) -> None:
    scheduler, optimizer, logger, model = returning([SetMasks({"fc1.weight": rows(1)}), effect])
    before = state(scheduler, optimizer, model)
    with pytest.raises(PluginError, match=f"on_epoch_begin of .* returned what does not fit: .*{message}"):
        scheduler.on_epoch_begin(0)
    assert state(scheduler, optimizer, model) == before
    assert [line["event"] for line in logger.lines if line["level"] != "info"] == ["hook failed"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, "the loss term 'l' must be a scalar tensor, got 3.0"),
        (torch.ones(2), "the loss term 'l' must be a scalar tensor, got a tensor of shape (2,)"),
    ],
)
def test_a_loss_term_that_is_no_scalar_is_refused_with_its_name(value: Any, message: str) -> None:
    scheduler, *_ = returning(LossTerm("l", value))
    scheduler.on_epoch_begin(1)  # in which it returns nothing yet
    with pytest.raises(PluginError) as error:
        scheduler.total_loss(torch.ones(()))
    assert str(error.value) == message
    assert error.value.__notes__ == [f"raised in before_backward_pass by {WHO}"]


def test_an_effect_is_no_loss_term() -> None:
    scheduler, *_ = returning(DropMasks(()))
    scheduler.on_epoch_begin(1)  # in which it returns nothing yet
    with pytest.raises(PluginError, match=r"before_backward_pass of .* returned DropMasks\(.*; a LossTerm or None was"):
        scheduler.total_loss(torch.ones(()))


# All of it, or nothing


def fails(*_: Any, **__: Any) -> Any:
    raise MemoryError("no more")


def test_what_fails_for_want_of_memory_fails_before_anything_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {"fc2.weight": torch.ones(4, 8)}
    scheduler, optimizer, logger, model = returning(
        [SetMasks({"fc1.weight": rows(1)}), SetLearningRates([{"lr": 0.5}]), SetWeights(new)]
    )
    before = state(scheduler, optimizer, model)
    monkeypatch.setattr(Masks, "prepare_weights", fails)
    monkeypatch.setattr(Masks, "snapshot", lambda *_: pytest.fail("nobody hears of it: nothing is to be copied"))
    with pytest.raises(MemoryError) as error:
        scheduler.on_epoch_begin(0)
    assert state(scheduler, optimizer, model) == before
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {WHO}"]
    assert [line["event"] for line in logger.lines if line["level"] != "info"] == ["hook failed"]


FAILING_LAST = [
    SetMasks({"fc1.weight": rows(1)}),
    ZeroWeights({"fc2.weight": torch.zeros(4, 8, dtype=torch.bool)}),
    SetLearningRates([{"lr": 0.5}]),
    SetWeights({"fc2.weight": torch.ones(4, 8)}),
]


def test_a_failure_within_an_effect_undoes_all_of_them_where_somebody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, optimizer, logger, model = returning(FAILING_LAST, [Dashboard()])
    before = state(scheduler, optimizer, model)
    monkeypatch.setattr(Masks, "prepare_weights", lambda *_: fails)
    with pytest.raises(MemoryError) as error:
        scheduler.on_epoch_begin(0)
    assert error.value.__notes__ == [f"raised in on_epoch_begin by {WHO}"]
    assert state(scheduler, optimizer, model) == before
    assert [line["event"] for line in logger.lines if line["level"] != "info"] == ["hook failed", "effects undone"]
    monkeypatch.undo()
    scheduler.on_epoch_end(0)
    assert logger.events("weights zeroed") == []


def test_what_could_not_be_undone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, _, logger, _ = returning(FAILING_LAST)
    monkeypatch.setattr(Masks, "prepare_weights", lambda *_: fails)
    with pytest.raises(MemoryError):
        scheduler.on_epoch_begin(0)
    assert [line for line in logger.lines if line["event"].startswith("effects")] == [
        {"level": "error", "event": "effects not undone", "hook": "on_epoch_begin", "epoch": 0}
    ]
    assert dict(scheduler.changes) == {}, "what has failed is not on the account"


FIRST = SetMasks({"fc1.weight": rows(1)})


@pytest.mark.parametrize(
    ("effects", "gone", "masks"),
    [
        ([FIRST, SetMasks({"fc1.weight": rows(2)})], {1, 2}, {"fc1.weight": rows(2)}),
        ([FIRST, ZeroWeights({"fc1.weight": rows(2)}, keep=True)], {1, 2}, {"fc1.weight": rows(1, 2)}),
        ([ZeroWeights({"fc1.weight": rows(2)}, keep=True), FIRST], {1, 2}, {"fc1.weight": rows(1, 2)}),
        ([SetMasks({"fc1.weight": rows(1)}, forward_only=True), KeepMasks(["fc1.weight"])], {1}, FIRST.masks),
        ([FIRST, DropMasks(["fc1.weight"])], {1}, {}),
        ([FIRST, SetWeights({"fc1.weight": torch.ones(8, 12)})], {1}, FIRST.masks),
    ],
)
def test_an_effect_builds_on_those_before_it_in_the_same_event(
    effects: list[Effect], gone: set[int], masks: dict[str, torch.Tensor]
) -> None:
    scheduler, _, _, model = returning(effects)
    scheduler.on_epoch_begin(0)
    assert {index for index, row in enumerate(model.fc1.weight) if not row.any()} == gone
    assert {name: mask.tolist() for name, mask in scheduler.masks.items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }


def test_one_instance_may_be_returned_twice() -> None:
    scheduler, _, logger, _ = returning([SetMasks({"fc1.weight": rows(1)})] * 2)
    scheduler.on_epoch_begin(0)
    sparsities = [line["sparsity"]["fc1.weight"] for line in logger.events("masks changed")]
    assert sparsities == [[0, 0.125], [0.125, 0.125]]


# One place


def test_the_engine_knows_no_effect_by_name() -> None:
    engine = Path(prunekit.__file__).parent / "engine"
    for module in ("ledger", "bus", "epoch_sums", "wrappers"):
        text = (engine / f"{module}.py").read_text(encoding="utf-8")
        assert [name for name in effect_names() if name in text] == [], module


def test_a_new_effect_is_one_class() -> None:
    """Carried out, told, heard of and undone, without a word about it elsewhere."""

    @dataclass(frozen=True)
    class Doubles(Effect):
        name: str
        __module__ = Effect.__module__

        @property
        def parameters(self) -> Sequence[str]:
            return [self.name]

        @property
        def heard_in(self) -> str:
            return "on_loss_terms"

        def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
            values = network.parameters[self.name].detach()
            values.mul_(2)
            yield Announcement(
                "doubled", {"parameter": self.name}, hook="on_loss_terms", arguments={"means": {self.name: 2}}
            )

    class Hears:
        fail = False

        @hookimpl
        def on_loss_terms(self, means: Any) -> None:
            heard.append(means)
            if self.fail:
                raise RuntimeError("deaf")

    heard: list[Any] = []
    listener = Hears()
    scheduler, optimizer, logger, model = returning(Doubles("fc2.bias"), [listener])
    bias = model.fc2.bias.detach().clone()
    scheduler.on_epoch_begin(0)
    assert torch.equal(model.fc2.bias, bias * 2)
    assert heard == [{"fc2.bias": 2}]
    (line,) = logger.events("doubled")
    assert (line["parameter"], line["policy"], line["hook"]) == ("fc2.bias", "policies[0]", "on_epoch_begin")
    before, listener.fail = state(scheduler, optimizer, model), True
    with pytest.raises(RuntimeError, match="deaf"):
        scheduler.on_epoch_begin(0)
    assert state(scheduler, optimizer, model) == before
    del Doubles, scheduler
    gc.collect()


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (SetMasks({"a": rows(1), "b": rows(2)}), "SetMasks of a, b"),
        (SetWeights({"a": torch.ones(())}), "SetWeights of a"),
        (KeepMasks(["a"]), "KeepMasks of a"),
        (DropMasks([]), "DropMasks"),
        (ZeroWeights({"a": rows(1)}), "ZeroWeights of a"),
        (SetLearningRates([{"lr": 1.0}]), "SetLearningRates"),
        (ModulesQuantized({"fc1": {}}), "ModulesQuantized"),
    ],
)
def test_every_effect_says_itself_in_words(effect: Effect, words: str) -> None:
    assert str(effect) == words
