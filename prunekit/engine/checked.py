"""What the steps of building hand on: the network, components that were made, and policies that were checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.nn import Module, Parameter
from torch.optim import Optimizer

from prunekit.components.arguments import arguments_of
from prunekit.components.curves import Change, changes_in, varies
from prunekit.components.origin import Origin
from prunekit.components.selecting import GivenSelector
from prunekit.model.parameters import Parameters
from prunekit.plugins.lock import Entry
from prunekit.plugins.registry import Found
from prunekit.quantization.catalog import Catalog, catalog
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.schedule.yaml_source import Path_, plain

Keys = tuple[str | int, ...]
"""The way to a value among a component's arguments: `("alpha", "curve")`."""


@dataclass
class GivenModel:
    """The network that a schedule is for, and the optimizers of its run, as far as they are known."""

    model: Module
    optimizers: Sequence[Optimizer] = ()

    @cached_property
    def parameters(self) -> Parameters:
        """Its parameters as they are now."""
        return Parameters.of(self.model)

    @cached_property
    def catalog(self) -> Catalog:
        """All in it that can be quantized."""
        return catalog(self.model)

    @property
    def catalog_if_asked(self) -> Catalog | None:
        """The catalog, where a quantizer has asked for it; making one traces the forward pass."""
        made: Catalog | None = vars(self).get("catalog")  # where cached_property keeps it
        return made


@dataclass(frozen=True)
class Owned:
    """The parameters of a policy in the model's order, each with its selector's setting and key."""

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, chosen: Mapping[str, GivenSelector], network: GivenModel) -> Owned:
        """What selectors have chosen."""
        parameters = {name: weight for name, weight in network.parameters.by_name.items() if name in chosen}
        settings = {name: chosen[name].setting for name in parameters}
        return cls(parameters, settings, {name: chosen[name].key for name in parameters})


@dataclass(frozen=True)
class BitsPlan:
    """What a quantizer that speaks of modules quantizes besides its parameters.

    Attributes:
        activations: the name of each -> its bits.
        modules: module -> its bits as the trace tells them, and by which line of the schedule.
        untraceable: modules whose activation functions can't be found, with the reason.
    """

    activations: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, int | str | None]] = field(default_factory=dict)
    untraceable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Used:
    """What a key of the schedule names: a class, or a curve or the like.

    Attributes:
        place: of the key: `("pruners", "agp", "curve")`.
        kind: of what it names.
        name: without the distribution that may stand before it.
        found: the thing itself, and whose it is.
    """

    place: Path_
    kind: str
    name: str
    found: Found

    @property
    def entry(self) -> Entry:
        """What a lock says of it."""
        return self.found.entry(self.kind, self.name)


@dataclass(frozen=True)
class FoundComponent:
    """What a component of the schedule names.

    Attributes:
        of_class: its class.
        named: what its arguments name, by the keys that lead there.
        usable: every name in its arguments means something.
    """

    of_class: Used
    named: Mapping[Keys, Used] = field(default_factory=dict)
    usable: bool = True

    def arguments(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with what they name in place of the names."""
        there = plain(args) if any(len(keys) > 1 for keys in self.named) else dict(args)
        for (*way, last), used in self.named.items():
            inner: Any = there
            for key in way:
                inner = inner[key]
            inner[last] = used.found.value
        return there

    @property
    def of_plugins(self) -> list[Used]:
        """All of it but what is prunekit's own."""
        return [used for used in (self.of_class, *self.named.values()) if not used.found.is_built_in]


@dataclass(frozen=True)
class Made:
    """A component of the schedule.

    Attributes:
        spec: what the schedule says of it.
        found: its class, and whose that is.
        key: by which its state is kept.
        args: of its constructor; in place of a name what it names.
        component: the object; None where the arguments are wrong.
        levels: where its `levels` stand, if a policy has replaced them.
    """

    spec: ComponentSpec
    found: Found
    key: str
    args: Mapping[str, Any]
    component: Any = None
    levels: Path_ | None = None

    def place(self, keys: Path_) -> Path_:
        """Where these keys of its arguments stand in the schedule."""
        if self.levels is not None and keys[:1] == ("levels",):
            return (*self.levels, *keys[1:])
        return (*self.spec.path, *keys)

    def changes(self) -> Iterator[tuple[Keys, Change]]:
        """The curves among its arguments, and the keys that lead to each."""
        for argument in arguments_of(self.found.cls, self.spec.kind):
            if varies(argument.annotation):
                given = self.args.get(argument.name, argument.default)
                yield from changes_in(given, (argument.name,))

    @property
    def class_path(self) -> Path_:
        """Where the schedule names its class."""
        return (*self.spec.path, "class")


@dataclass(frozen=True)
class Checked:
    """A policy with nothing wrong in what it and its component say: all that it takes to bind it."""

    policy: PolicySpec
    made: Made
    args: Any = None
    owned: Owned = field(default_factory=Owned)
    bits: BitsPlan = field(default_factory=BitsPlan)

    @property
    def origin(self) -> Origin:
        """By whose hand the policy's effects are."""
        spec, found = self.made.spec, self.made.found
        component = f"{spec.class_name} {spec.name!r}"
        return Origin(f"policies[{self.policy.place}]", component, found.distribution, found.version)

    def place(self, *keys: str | int) -> Path_:
        """Where these keys of the policy's own stand in the schedule."""
        return ("policies", self.policy.place, self.policy.kind, *keys)
