"""What arguments of components take by name: curves, granularities, rankings, of prunekit and of third parties."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from prunekit.components.types import marked
from prunekit.errors import ArgumentError, did_you_mean, shortened

T = TypeVar("T")

NAMED = "x-prunekit-named"
"""The key by which the JSON Schema of an argument says what it names."""


@dataclass(frozen=True, eq=False)
class NamedKind(Generic[T]):
    """A kind of things that have names in a schedule and are no components. A new one is such an object and a type:

        CURVE = NamedKind("curve", "curves", CURVES, "a function (initial, final, fraction) -> value", takes(3))
        CurveName = Annotated[Curve | str, ByName(CURVE)]

    Attributes:
        name: in messages, in locks, and in the JSON Schema.
        plural: distributions offer them in the group of entry points `prunekit.<plural>`.
        built_in: prunekit's own, by name.
        shape: what an object must be to be one, in words.
        fits: whether an object is one.
    """

    name: str
    plural: str
    built_in: Mapping[str, T]
    shape: str
    fits: Callable[[object], bool]

    def __str__(self) -> str:
        return self.name

    @property
    def group(self) -> str:
        """The group of entry points under which distributions offer them."""
        return f"prunekit.{self.plural}"

    @property
    def described(self) -> str:
        """The name with its article."""
        return f"a {self.name}"

    def of(self, value: T | str, argument: str = "") -> T:
        """What an argument means: the object itself, or prunekit's own of that name.

        Under a schedule the argument never holds the name of another: before a component is made, prunekit puts what
        is installed in place of its name.

        Args:
            value: what the constructor was given.
            argument: its name; that of the kind, by default.

        Raises:
            ArgumentError: prunekit has none of that name.
        """
        if not isinstance(value, str):
            return value
        if value not in self.built_in:
            what = f"prunekit has no {self.name} {value!r}{did_you_mean(value, self.built_in)}"
            raise ArgumentError(argument or self.name, message=what)
        return self.built_in[value]

    def made(self, offered: object) -> T:
        """What a distribution offers; of a class a new instance.

        Raises:
            ValueError: it is no such thing; the message begins with "is".
        """
        try:
            thing: Any = offered() if isinstance(offered, type) else offered
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"is a class that can't be made without arguments: {what}") from error
        if not self.fits(thing):
            raise ValueError(f"is {type(offered).__name__} {shortened(offered)}, not {self.shape}")
        made: T = thing
        return made


@dataclass(frozen=True)
class ByName:
    """What marks the type of an argument that takes such a thing by its name, or, from Python, the thing itself."""

    kind: NamedKind[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Any text is of the right type: only who knows what is installed can say whether something has that name.
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.kind.built_in), NAMED: self.kind.name}

    def _checked(self, value: object) -> object:
        if isinstance(value, str) or self.kind.fits(value):
            return value
        raise PydanticCustomError("no_name", "must be {what}", {"what": f"the name of {self.kind.described}"})


def named_kind(annotation: Any) -> NamedKind[Any] | None:
    """What an argument of this type takes by name: it is marked, or a member of a union is."""
    marker = marked(annotation, ByName)
    return None if marker is None else marker.kind


def takes(number: int) -> Callable[[object], bool]:
    """A test of objects: whether they can be called with so many arguments.

    >>> takes(2)(lambda weight, groups: None), takes(2)(lambda: None), takes(2)(3)
    (True, False, False)
    """

    def fits(thing: object) -> bool:
        if not callable(thing):
            return False
        try:
            inspect.signature(thing).bind(*range(number))
        except TypeError:
            return False
        except ValueError:  # written in C, without a signature
            return True
        return True

    return fits
