"""The optimizers that train a model: those given, those found, and the names of the parameters that each holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer

from prunekit.model.masks import Masks
from prunekit.model.optimizer import groups_of, is_optimizer


@dataclass(frozen=True)
class _Held:
    """What an optimizer held when it was last looked at."""

    optimizer: Callable[[], Optimizer | None]
    model: Mapping[str, Parameter]
    groups: list[list[Parameter]]
    names: frozenset[str]

    def is_current(self, optimizer: Optimizer, model: Mapping[str, Parameter]) -> bool:
        """Whether optimizer and model still have these very parameters."""
        groups = optimizer.param_groups
        if self.model is not model or self.optimizer() is not optimizer or len(groups) != len(self.groups):
            return False
        # By identity and without a loop in Python: it is asked around every step, and `==` compares elements.
        return all(
            len(group["params"]) == len(held) and all(map(is_, group["params"], held))
            for group, held in zip(groups, self.groups, strict=True)
        )


class KnownOptimizers:
    """Optimizers given to a scheduler, and weak references to others that were found to step the model's parameters.

    Args:
        masks: whose `parameters` are the model's as they are now: another mapping whenever they have changed.

    Attributes:
        given: by whoever writes the loop.
        state_left: state that could not be reset and was told of: (class of the optimizer, key).
    """

    def __init__(self, masks: Masks) -> None:
        self.given: list[Optimizer] = []
        self.state_left: set[tuple[str, str]] = set()
        self._masks = masks
        self._forget_all()

    def _forget_all(self) -> None:
        self._found: dict[int, Callable[[], Optimizer | None]] = {}
        self._held: dict[int, _Held] = {}
        self._names: tuple[Mapping[str, Parameter], dict[int, str]] = ({}, {})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: what was found in steps of these optimizers are none of its own."""
        return {"given": self.given, "state_left": self.state_left, "_masks": self._masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_all()

    def __iter__(self) -> Iterator[Optimizer]:
        """All that there are, those given first."""
        yield from self.given
        yield from self.found

    @property
    def found(self) -> list[Optimizer]:
        """Those that nobody has given, in the order in which they first stepped."""
        return [optimizer for ref in list(self._found.values()) if (optimizer := ref()) is not None]

    @property
    def first(self) -> Optimizer | None:
        """The first that was given, or else found."""
        return next(iter(self), None)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of those given: a schedule's learning rates are for these."""
        return groups_of(self.given)

    def is_given(self, optimizer: object) -> bool:
        """Whether it is one of those given."""
        return any(given is optimizer for given in self.given)  # `in` would compare by value

    def find(self, optimizer: Optimizer) -> bool:
        """An optimizer has been found; whether it was not known before."""
        known = self._found.get(id(optimizer))
        if self.is_given(optimizer) or (known is not None and known() is optimizer):
            return False
        self._found[id(optimizer)] = _weak(optimizer, self._found)
        return True

    def forget(self, optimizer: Optimizer) -> None:
        """It is none of those found any more."""
        self._found.pop(id(optimizer), None)

    def names(self, optimizer: Optimizer) -> frozenset[str]:
        """The model's parameters that an optimizer holds; none of somebody else's optimizer."""
        model, held = self._masks.parameters, self._held.get(id(optimizer))
        if held is None or not held.is_current(optimizer, model):
            held = self._look(optimizer, model)
        return held.names

    def all_names(self) -> frozenset[str]:
        """The model's parameters that any of them holds."""
        return frozenset().union(*map(self.names, self))

    def _look(self, optimizer: Optimizer, model: Mapping[str, Parameter]) -> _Held:
        if self._names[0] is not model:
            self._names = model, {id(parameter): name for name, parameter in model.items()}
        groups = [list(group["params"]) for group in optimizer.param_groups]
        names = self._names[1]
        here = frozenset(names[id(p)] for group in groups for p in group if id(p) in names)
        # Weak, and gone with the optimizer: else a foreign model would live as long as this does.
        held = _Held(_weak(optimizer, self._held), model, groups, here)
        self._held[id(optimizer)] = held
        return held


def _weak(optimizer: Optimizer, kept: dict[int, Any]) -> Callable[[], Optimizer | None]:
    """A weak reference that takes what is kept of an optimizer with it."""
    key = id(optimizer)

    def forget(ref: object) -> None:
        # The same address may belong to another object by now.
        if ref in (entry := kept.get(key), getattr(entry, "optimizer", None)):
            del kept[key]

    try:
        return weakref.ref(optimizer, forget)
    except TypeError:  # a class with __slots__
        return lambda: optimizer


def inside(optimizer: object) -> list[Optimizer]:
    """The optimizers that one wraps, at any depth, whatever it calls them."""
    found: dict[int, Any] = {}
    queue: list[Any] = [optimizer]
    while queue:
        for value in list(getattr(queue.pop(), "__dict__", {}).values()):
            for each in value if isinstance(value, list | tuple) else (value,):
                if is_optimizer(each) and each is not optimizer and id(each) not in found:
                    found[id(each)] = each
                    queue.append(each)
    return list(found.values())
