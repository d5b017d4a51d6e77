"""Which parameters a component owns: what its typed arguments say, at their own places, whatever else is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn
from torch.nn import Parameter

from prunekit import (
    ArgumentError,
    ComponentSpec,
    CompressionScheduler,
    PluginError,
    PolicySpec,
    Schedule,
    ScheduleError,
    Trace,
    Window,
)
from prunekit.components import Context, PerParameter, Selectors, Sparsity
from prunekit.components.selecting import GivenSelector, given_selectors
from prunekit.plugins.contract import must_be_component
from prunekit.plugins.registry import Found

SILENT = Trace(logger=None)


def model() -> nn.Sequential:
    """Parameters 0.weight, 0.bias, 1.weight, 1.bias and 2.weight."""
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))


@dataclass(kw_only=True)
class Owner:
    """A pruner that remembers what it was told when it was checked."""

    told: ClassVar[list[Context]] = []
    weights: Selectors
    filters: Selectors | None = None
    levels: PerParameter[Sparsity] | None = None
    curve: str = ""
    count: int = 0

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        self.told.append(context)
        for name, weight in parameters.items():
            if weight.dim() == 1 and self.count:
                yield ArgumentError(*context.keys[name], message=f"{name!r} is a vector")

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {}


class WithShifts(Owner):
    """One that owns biases beside the weights that are selected."""

    def companions(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, str]:
        names = [name for name, _ in context.model.named_parameters()]
        weights = {name: name.replace("weight", "bias") for name in parameters if name.endswith("weight")}
        return {bias: name for name, bias in weights.items() if bias in names}


def problems(cls: type, **args: Any) -> list[tuple[str, str]]:
    """Path within the section, and message, of all that is wrong."""
    schedule = Schedule([ComponentSpec("pruner", "p", cls, args)], [PolicySpec("pruner", "p", Window(0, 1))])
    try:
        CompressionScheduler(schedule, model(), trace=SILENT)
    except ScheduleError as error:
        return [(problem.path.removeprefix("pruners.p."), problem.message) for problem in error.problems]
    return []


def told(cls: type, **args: Any) -> Context:
    """What the component knew when it was checked."""
    Owner.told.clear()
    assert problems(cls, **args) == []
    return Owner.told[-1]


def test_the_selectors_are_read_from_the_arguments_of_their_types() -> None:
    given = {"weights": ["a", "b*"], "levels": {"c": 0.5}, "curve": "linear", "filters": None}
    assert given_selectors(Owner, "pruner", given) == [
        GivenSelector("a", ("weights", 0)),
        GivenSelector("b*", ("weights", 1)),
        GivenSelector("c", ("levels", "c"), 0.5),
    ]
    assert given_selectors(Owner, "pruner", {"weights": "a"}) == [GivenSelector("a", ("weights",))]


def test_settings_and_keys_belong_to_the_selector_that_chose_a_parameter() -> None:
    context = told(Owner, weights=["0.*", "2.weight"], levels={"1.weight": 0.25, "re:1.b.*": 0.5})
    assert dict(context.settings) == {
        "0.weight": None,
        "0.bias": None,
        "1.weight": 0.25,
        "1.bias": 0.5,
        "2.weight": None,
    }
    assert dict(context.keys) == {
        "0.weight": ("weights", 0),
        "0.bias": ("weights", 0),
        "1.weight": ("levels", "1.weight"),
        "1.bias": ("levels", "re:1.b.*"),
        "2.weight": ("weights", 1),
    }


@pytest.mark.parametrize(("one", "other"), list(permutations(["curve", "weights", "filters", "levels"], 2)))
def test_a_selector_is_blamed_at_its_own_key_though_another_key_has_the_same_value(one: str, other: str) -> None:
    """Also where the other key stands first, and where it is a selector itself."""
    values: dict[str, Any] = {"curve": "linear", "weights": "linear", "filters": ["linear"], "levels": {"linear": 0.5}}
    places = {"weights": "weights", "filters": "filters[0]", "levels": "levels.linear"}
    args = {one: values[one], other: values[other]}
    blamed = sorted(places[key] for key in args if key in places)
    got = problems(Owner, **{"weights": "0.weight", **args})
    assert sorted(place for place, message in got if "selects nothing" in message) == blamed


def test_a_check_blames_the_selector_that_chose_the_parameter() -> None:
    got = problems(Owner, weights=["0.weight", "?.bias"], levels={"1.weight": 0.5}, count=1)
    assert got == [
        ("weights[1]", "'0.bias' is a vector"),
        ("levels.1.weight", "'1.weight' is a vector"),
        ("weights[1]", "'1.bias' is a vector"),
    ]


def test_wrong_selectors_are_told_beside_other_wrong_arguments() -> None:
    assert problems(Owner, weights=["0.wieght", 3], count="many", levels={"3.weight": 7}) == [
        ("weights[1]", "must be a valid string, got 3"),
        ("levels.3.weight", "must be less than or equal to 1, got 7"),
        ("count", "must be a valid integer, got 'many'"),
        ("weights[0]", "'0.wieght' selects nothing in the model; nearest are '0.weight', '2.weight', '1.weight'"),
        ("levels.3.weight", "'3.weight' selects nothing in the model; nearest are '2.weight', '1.weight', '0.weight'"),
    ]


@pytest.mark.parametrize("args", [{"weights": []}, {"weights": ""}, {"weights": "*", "levels": {}}])
def test_an_argument_that_selects_nothing_is_refused_by_its_type(args: dict[str, Any]) -> None:
    key = "levels" if "levels" in args else "weights"
    assert problems(Owner, **args) == [(key, "selects nothing: name at least one parameter, or '*'")]


def test_companions_come_along_with_the_setting_and_the_key_of_the_selected_one() -> None:
    context = told(WithShifts, weights="0.weight", levels={"1.weight": 0.5})
    assert dict(context.settings) == {"0.weight": None, "0.bias": None, "1.weight": 0.5, "1.bias": 0.5}
    assert context.keys["0.bias"] == ("weights",)
    assert context.keys["1.bias"] == ("levels", "1.weight")


def test_a_companion_that_is_selected_itself_keeps_its_own_key() -> None:
    assert told(WithShifts, weights=["0.weight", "0.bias"]).keys["0.bias"] == ("weights", 1)


def test_one_selector_in_two_arguments_is_refused_in_the_second() -> None:
    got = problems(Owner, weights="0.weight", filters=["1.weight", "0.weight"])
    assert got == [("filters[1]", "'0.weight' stands in 'weights' already")]


def test_a_component_whose_arguments_name_no_parameter_at_all_is_refused() -> None:
    assert problems(Either) == [("class", "Either selects no parameter; give it 'weights' or 'levels'")]
    assert problems(Either, levels={"2.weight": 0.5}) == []


class Either(Owner):
    def __init__(self, weights: Selectors | None = None, levels: PerParameter[Sparsity] | None = None) -> None:
        super().__init__(weights=weights or "*", levels=levels)


class NoSelectors:
    """A class of every kind that owns parameters, without a word on which."""

    def __init__(self, weights: list[str]) -> None: ...

    def compute_masks(self, parameters: Any, context: Any) -> Any: ...

    def penalty(self, parameters: Any, context: Any) -> Any: ...

    def quantize(self, name: Any, weight: Any, context: Any) -> Any: ...


@pytest.mark.parametrize("kind", ["pruner", "regularizer", "quantizer"])
def test_a_class_that_owns_parameters_must_have_an_argument_that_selects_them(kind: str) -> None:
    with pytest.raises(PluginError) as error:
        must_be_component(Found(NoSelectors, "prunekit-mine", "1"), kind, "Mine")
    assert str(error.value) == (
        f"'Mine' of prunekit-mine is no {kind}: no argument of its constructor selects parameters; "
        "one must be of type Selectors or PerParameter"
    )
