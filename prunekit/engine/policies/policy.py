"""What all policies have in common: a component, its window, what it owns, and when it is on the bus."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.components.context import Context
from prunekit.components.curves import Change
from prunekit.components.kinds import EXTENSION, Kind
from prunekit.components.origin import Origin
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.problems import Problems
from prunekit.model.optimizer import Groups
from prunekit.plugins.hooks import Implementations
from prunekit.progress import Progress, Window


@dataclass(eq=False)
class Policy:
    """One component and its window.

    Attributes:
        index: its place in the schedule's list.
        kind: of its components.
        name: the component's instance name.
        component: the object made from the schedule's section.
        origin: by whose hand its effects are.
        window: when it acts.
        parameters: what it owns, by name.
        settings: parameter name -> the setting of the selector that chose it.
        keys: parameter name -> where that selector stands among the component's keys.
        changes: the curves among the component's arguments, by the keys that lead to each.
        warn: where a component's warnings go.
    """

    kind: ClassVar[Kind]
    index: int
    name: str
    component: Any
    origin: Origin
    window: Window
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    changes: Mapping[tuple[str | int, ...], Change] = field(default_factory=dict)
    warn: Callable[..., None] = lambda message, **values: None
    _implementations: dict[tuple[str, ...], Implementations] = field(default_factory=dict)

    @classmethod
    def make_component(cls, component_class: type, arguments: Mapping[str, Any], groups: Groups) -> Any:
        """What a component of this kind becomes: an object of its class. `groups` are those of the optimizers.

        Raises:
            Exception: what the constructor raised.
        """
        return component_class(**arguments)

    @classmethod
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        """The policy that was checked; what is wrong with policies of this kind alone is said.

        Without a network it owns nothing.
        """
        spec, owned = checked.policy, checked.owned
        return cls(
            index=spec.place,
            name=spec.instance_name,
            component=checked.made.component,
            origin=checked.origin,
            window=spec.window,
            parameters=owned.parameters,
            settings=owned.settings,
            keys=owned.keys,
            changes=dict(checked.made.changes()),
        )

    def implementations(self, progress: Progress) -> Iterator[Implementations]:
        """What is on the bus now: the component's own hooks while the window is open, then the policy's."""
        if self.window.is_open(progress):
            own = self._implementations.get(("own",)) or Implementations.of(self.component, self.origin)
            self._implementations["own",] = own
            if own.hooks:
                yield own
        hooks = dict(self.hooks(progress))
        if hooks:
            # The same object for the same hooks: the bus sees by it that nothing has changed.
            key = tuple(hooks)
            if key not in self._implementations:
                self._implementations[key] = Implementations(self.origin, hooks)
            yield self._implementations[key]

    def hooks(self, progress: Progress) -> Iterable[tuple[str, Callable[..., Any]]]:
        """The policy's own implementations that are live now."""
        return ()

    def lacks(self, metrics: Mapping[str, float] | None) -> str:
        """What it would need of the metrics with which an epoch ends, in words; empty if it needs no more than these.

        A hook of its component's own may look at them.
        """
        own = Implementations.of(self.component, self.origin).hooks.get("on_epoch_end")
        looks = own is not None and "metrics" in inspect.signature(own).parameters
        return f"{self.origin}: needs metrics, got none" if looks and metrics is None else ""

    def prepare(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> None:
        """Look out for what must be known later; asked before training too, and whenever windows may open."""

    def rebind(
        self, parameters: Mapping[str, Parameter], model: Module, masks: Mapping[str, Tensor], progress: Progress
    ) -> None:
        """The same names are borne by these parameters now, or the modules around them are others."""
        self.parameters = parameters

    def end_training(self) -> None:
        """Leave nothing behind in the model."""

    def context(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Context:
        """What its component may know."""
        warn = partial(self.warn, **self.origin._asdict(), **progress.trace_keys())
        return Context(model, masks, progress, self.window, self.settings, self.keys, warn)

    def state_dict(self) -> dict[str, Any]:
        """What the policy itself must remember across a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`."""


@dataclass(eq=False)
class HookPolicy(Policy):
    """A component that acts through hooks of its own: an extension."""

    kind = EXTENSION
