"""A constructor's typed arguments are the schema of a section: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Optional

import pytest
from pydantic import Field
from torch.optim import lr_scheduler

from prunekit.components import NonNegative, Selectors, Sparsity
from prunekit.components.arguments import arguments_of, check_arguments, json_schema, type_name

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]


@dataclass
class Everything:
    sparsity: Sparsity
    weights: Selectors = "*"
    levels: dict[str, Sparsity] = field(default_factory=dict)
    number: int = 3
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    regims: dict[str, tuple[NonNegative, Literal["2D", "3D"]]] = field(default_factory=dict)
    maybe: float | None = None
    block: tuple[int, int, int, int] | None = None
    either: float | list[float] = 0.1
    anything: Any = None


def complaints(cls: type, **values: Any) -> list[str]:
    return [str(error) for error in check_arguments(cls, "pruner", values)]


def complaint(**values: Any) -> str:
    """The one thing wrong with a section of class Everything, or ''."""
    return "\n".join(complaints(Everything, **{"sparsity": 0.5, **values}))


@pytest.mark.parametrize(
    "values",
    [
        *[{"sparsity": 0}, {"sparsity": 1}, {"sparsity": 1e-4}, {"weights": "fc*"}, {"weights": ["a", "b"]}],
        *[{"levels": {"a": 0.5, "*": 1}}, {"number": -(10**30)}, {"flag": True}, {"mode": "b"}],
        *[{"regims": {"a": [2e-6, "3D"]}}, {"maybe": None}, {"maybe": math.inf}, {"block": [1, 2, 3, 4]}],
        *[{"either": 1}, {"either": [0.1, 2]}, {"anything": {"a": [None]}}, {"anything": object()}],
    ],
)
def test_what_its_type_allows_is_accepted(values: dict[str, Any]) -> None:
    assert complaint(**values) == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 8.0}, "sparsity: must be less than or equal to 1, got 8.0"),
        ({"sparsity": -1}, "sparsity: must be greater than or equal to 0, got -1"),
        ({"sparsity": "0.5"}, "sparsity: must be a valid number, got '0.5'"),
        ({"sparsity": True}, "sparsity: must be a valid number, got True"),
        ({"sparsity": None}, "sparsity: must be a valid number, got None"),
        ({"sparsity": [0.5]}, "sparsity: must be a valid number, got [0.5]"),
        ({"sparsity": math.nan}, "sparsity: must be a finite number, got nan"),
        ({"sparsity": math.inf}, "sparsity: must be a finite number, got inf"),
        ({"sparsity": 10**400}, f"sparsity: must be a finite number, got 1{'0' * 56}..."),
        ({"weights": 3}, "weights: must be a valid string or a list, got 3"),
        ({"weights": {"a": 1}}, "weights: must be a valid string or a list, got {'a': 1}"),
        ({"weights": ["a", 1]}, "weights[1]: must be a valid string, got 1"),
        ({"levels": "x"}, "levels: must be a mapping, got 'x'"),
        (
            {"levels": {"a": "x", "b": 2}},
            "levels.a: must be a valid number, got 'x'\nlevels.b: must be less than or equal to 1, got 2",
        ),
        ({"number": 1.0}, "number: must be a valid integer, got 1.0"),
        ({"number": True}, "number: must be a valid integer, got True"),
        ({"number": "3"}, "number: must be a valid integer, got '3'"),
        ({"flag": 1}, "flag: must be a valid boolean, got 1"),
        ({"flag": "on"}, "flag: must be a valid boolean, got 'on'"),
        ({"mode": "c"}, "mode: must be 'a' or 'b', got 'c'"),
        ({"regims": {"w": [1, "4D"]}}, "regims.w[1]: must be '2D' or '3D', got '4D'"),
        ({"regims": {"w": 1}}, "regims.w: must be a list, got 1"),
        ({"regims": {"w": [1]}}, "regims.w: must have more items, got [1]"),
        ({"regims": {"w": [1, "2D", 3]}}, "regims.w: must have at most 2 items, got [1, '2D', 3]"),
        ({"maybe": "x"}, "maybe: must be a valid number, got 'x'"),
        ({"block": [1, 2]}, "block: must have more items, got [1, 2]"),
        ({"block": [1, 2, 3, "x"]}, "block[3]: must be a valid integer, got 'x'"),
        ({"either": "x"}, "either: must be a valid number or a list, got 'x'"),
        ({"either": [0.1, "x"]}, "either[1]: must be a valid number, got 'x'"),
        ({"number": "x" * 99}, f"number: must be a valid integer, got '{'x' * 56}..."),
    ],
)
def test_what_its_type_does_not_allow_is_refused_at_its_place(values: dict[str, Any], message: str) -> None:
    """Peer failures 16 and 22: nothing is converted, and a number out of range says so."""
    assert complaint(**values) == message


def test_an_unknown_key_is_refused_with_the_one_that_was_meant() -> None:
    """Peer failures 10 and 22: a misspelt option is accepted and the default used."""
    assert complaints(Everything, sparsity=0.5, target_sparcity=0.5, weihgts="a") == [
        "target_sparcity: Everything has no argument 'target_sparcity'; did you mean 'sparsity'?",
        "weihgts: Everything has no argument 'weihgts'; did you mean 'weights'?",
    ]


def test_a_missing_key_is_named_with_its_type() -> None:
    @dataclass
    class Needy:
        levels: dict[str, Sparsity]
        shape: Literal["2D", "3D"]
        optional: int = 0

    assert complaints(Needy, optional=1) == [
        "Needy needs 'levels' (dict[str, float])",
        "Needy needs 'shape' (Literal['2D', '3D'])",
    ]


def test_several_things_wrong_are_all_said() -> None:
    assert complaints(Everything, wieghts="a", number="x", flag=2) == [
        "wieghts: Everything has no argument 'wieghts'; did you mean 'weights'?",
        "Everything needs 'sparsity' (float)",
        "number: must be a valid integer, got 'x'",
        "flag: must be a valid boolean, got 2",
    ]


# Which arguments a class has, however it is written


def names_and_types(cls: type) -> dict[str, str]:
    return {argument.name: type_name(argument.annotation) for argument in arguments_of(cls, "pruner")}


@dataclass
class Base:
    level: Sparsity
    extra: Nothing = None
    some: list[Nothing] | None = None
    seed: InitVar[int] = 0
    shared: ClassVar[int] = 1
    hidden: int = field(default=0, init=False)


@dataclass
class Derived(Base):
    _: KW_ONLY
    call: Callable[[int], str] | None = None
    items: Sequence[Annotated[int, Field(ge=1)]] = ()


class Plain:
    def __init__(self, level: Sparsity, extra: Nothing, factor: float = 1, *rest: int, **more: int) -> None: ...


class Inherits(Plain):
    pass


class Overrides(Plain):
    def __init__(self, name: str, bare=3) -> None: ...  # type: ignore[no-untyped-def]


class Pair(NamedTuple):
    left: Sparsity
    right: str = ""


@dataclass
class OwnConstructor(Base):
    def __init__(self, level: str) -> None: ...


class NoConstructor:
    pass


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Base, {"level": "float", "extra": "Any", "some": "Any", "seed": "int"}),
        (
            Derived,
            names_and_types(Base) | {"call": "Callable[[int], str] | None", "items": "Sequence[int]"},
        ),
        (Plain, {"level": "float", "extra": "Any", "factor": "float"}),
        (Inherits, {"level": "float", "extra": "Any", "factor": "float"}),
        (Overrides, {"name": "str", "bare": "Any"}),
        (Pair, {"left": "float", "right": "str"}),
        (NoConstructor, {}),
    ],
)
def test_the_keys_are_the_constructor_s_arguments(cls: type, expected: dict[str, str]) -> None:
    assert names_and_types(cls) == expected


def test_a_type_known_to_type_checkers_only_spoils_its_own_argument_and_no_other() -> None:
    assert complaints(Derived, level=8.0, extra=object(), seed="x", items=[0]) == [
        "level: must be less than or equal to 1, got 8.0",
        "seed: must be a valid integer, got 'x'",
        "items[0]: must be greater than or equal to 1, got 0",
    ]
    assert complaints(Inherits, level=8.0, extra=1) == ["level: must be less than or equal to 1, got 8.0"]
    assert complaints(Pair, left=8.0) == ["left: must be less than or equal to 1, got 8.0"]


def test_a_type_that_can_not_be_checked_takes_anything() -> None:
    class Opaque:
        def __init__(self, a: Plain, b: "list[Missing]") -> None: ...  # type: ignore  # noqa: F821, UP037

    assert complaints(Opaque, a=Inherits(1, 2), b=3) == []


def test_an_lr_scheduler_s_optimizer_is_no_key() -> None:
    keys = {
        name: [argument.name for argument in arguments_of(getattr(lr_scheduler, name), "lr_scheduler")]
        for name in ("StepLR", "MultiStepLR", "CosineAnnealingLR")
    }
    assert keys == {
        "StepLR": ["step_size", "gamma"],
        "MultiStepLR": ["milestones", "gamma"],
        "CosineAnnealingLR": ["T_max", "eta_min"],
    }
    errors = check_arguments(lr_scheduler.MultiStepLR, "lr_scheduler", {"milestones": [1, "x"], "last_epoch": 3})
    assert [str(error) for error in errors] == [
        "last_epoch: MultiStepLR has no argument 'last_epoch'; known are 'gamma', 'milestones'",
        "milestones[1]: must be a valid integer, got 'x'",
    ]


def test_an_iterable_s_items_are_checked() -> None:
    class Lazy:
        def __init__(self, items: Iterable[int]) -> None: ...

    assert complaints(Lazy, items=[1, "x"]) == ["items[1]: must be a valid integer, got 'x'"]


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        *[
            (float, "float"),
            (Sparsity, "float"),
            (dict[str, Sparsity], "dict[str, float]"),
            (None, "None"),
            (Any, "Any"),
        ],
        *[(tuple[int, ...], "tuple[int, ...]"), (Selectors, "str | list[str]"), (Optional[int], "int | None")],  # noqa: UP045
        *[(Literal["a", 1], "Literal['a', 1]"), (Callable[[int], str], "Callable[[int], str]"), (Plain, "Plain")],
        *[(dict[str, tuple[NonNegative, Literal["2D"]]], "dict[str, tuple[float, Literal['2D']]]")],
        *[(Callable[..., Sparsity], "Callable[..., float]"), (type[Plain], "type[Plain]"), (type(None), "None")],
    ],
)
def test_a_type_is_called_as_a_reader_of_yaml_would(annotation: Any, name: str) -> None:
    assert type_name(annotation) == name


def test_the_json_schema_says_the_same() -> None:
    class Small:
        def __init__(self, sparsity: Sparsity, weights: Selectors = "*", thing: Plain | None = None) -> None: ...

    assert json_schema(Small, "pruner") == {
        "properties": {
            "sparsity": {"maximum": 1, "minimum": 0, "type": "number"},
            "weights": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"items": {"type": "string"}, "type": "array", "minItems": 1},
                ],
                "default": "*",
            },
            "thing": {"default": None},
        },
        "required": ["sparsity"],
        "$defs": {},
    }
