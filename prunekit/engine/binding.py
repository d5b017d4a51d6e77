"""The living model: the parameters that bear, at this moment, the names that policies and masks know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy

from prunekit.engine.ledger import Ledger
from prunekit.engine.policies import Policy
from prunekit.engine.quantizers import Quantizers
from prunekit.errors import ArgumentError, PrunekitError
from prunekit.model.parameters import Parameters, without_values
from prunekit.progress import Progress


class Binding:
    """Keeps masks, policies and the quantized forward pass on the parameters that the model has now.

    Layers are replaced, checkpoints loaded with `assign=True`, parametrizations added and removed: then another object
    bears a name, or stands elsewhere. The model is looked through when an epoch begins, and otherwise only where one of
    the places in which its modules keep their modules and parameters holds another object than it did.

    Args:
        model: the network.
        policies: of the whole schedule.
        ledger: whose masks follow, and whose trace is told.
        quantizers: whose forward pass follows.
    """

    def __init__(self, model: Module, policies: Sequence[Policy], ledger: Ledger, quantizers: Quantizers) -> None:
        self._model, self._policies, self._ledger, self._quantizers = model, policies, ledger, quantizers
        self._owners = {name: policy.origin.policy for policy in reversed(policies) for name in policy.parameters}
        self._remember(Parameters.of(model))

    def follow(self) -> None:
        """Look the parameters up again where the model has changed.

        Raises:
            PrunekitError: what no longer fits, all of it; nothing was changed.
        """
        # All in C: this is asked before each mini-batch, of each module and parameter.
        if not all(map(is_, map(dict.get, self._holders, self._keys), self._held)):
            self.look_up(self._ledger.bus.now())

    def look_up(self, now: Progress) -> None:
        """Look all parameters up again.

        Raises:
            PrunekitError: what no longer fits, all of it; nothing was changed.
        """
        found = Parameters.of(self._model)
        known = _with_aliases(found)
        if problems := list(self._problems(known, now)):
            raise PrunekitError("\n".join(problems))
        if self._has_changed():
            self._bind(found, known, now)
        self._remember(found)

    # What does not fit

    def _problems(self, known: Mapping[str, Parameter], now: Progress) -> Iterator[str]:
        """All that keeps policies and masks from going on with these parameters."""
        masks = self._ledger.masks
        live = {name for policy in self._policies if policy.window.is_open(now) for name in policy.parameters}
        for name in dict.fromkeys([*self._owners, *masks]):
            if name not in known:
                yield self._gone(name, known)
            elif (what := without_values(known[name])) and (name in live or name in masks):
                yield f"{name!r}, {self._user(name)}, {what}"
        if all(name in known and not without_values(known[name]) for name in masks):
            yield from masks.unfit(known).values()
            yield from self._tied(known)
        if all(name in known for name in self._owners):
            yield from self._refused(known, now)

    def _user(self, name: str) -> str:
        return f"which {self._owners[name]} owns" if name in self._owners else "which has a mask"

    def _gone(self, name: str, known: Mapping[str, Parameter]) -> str:
        """What to say of a name that no parameter bears any more."""
        beside = name.rpartition(".")[0]
        new = [f"{n!r} {_shape(p)}" for n, p in known.items() if n not in self._known and n.startswith(beside)]
        hint = f"; new beside it: {', '.join(new)}" if new else ""
        return f"{name!r} {_shape(self._known[name])}, {self._user(name)}, is no parameter of the model any more{hint}"

    def _tied(self, known: Mapping[str, Parameter]) -> Iterator[str]:
        """Masks that would have to share a parameter."""
        first: dict[int, str] = {}
        for name in self._ledger.masks:
            other = first.setdefault(id(known[name]), name)
            if other != name:
                yield f"{other!r} and {name!r} are one parameter now, and each has a mask"

    def _refused(self, known: Mapping[str, Parameter], now: Progress) -> Iterator[str]:
        """What components say against parameters whose shape has changed."""
        for policy in self._policies:
            parameters = {name: known[name] for name in policy.parameters}
            changed = [name for name, parameter in parameters.items() if _shape(parameter) != self._shapes[name]]
            if changed and hasattr(policy.component, "check"):
                context = policy.context(self._model, self._ledger.masks, now)
                shapes = ", ".join(f"{n!r} was {self._shapes[n]} and is {_shape(parameters[n])}" for n in changed)
                wrong: Iterable[ArgumentError] = policy.component.check(parameters, context)
                yield from (f"{shapes}, and {policy.origin} says: {error}" for error in wrong)

    # What follows

    def _has_changed(self) -> bool:
        return list(map(id, self._held)) != [id(thing) for _, _, thing in _places(self._model)]

    def _bind(self, found: Parameters, known: Mapping[str, Parameter], now: Progress) -> None:
        masks, quantizers = self._ledger.masks, self._quantizers
        used = {name: known[name] for name in (*self._owners, *masks)}
        catalog = quantizers.looked_up()
        masks.rebind({**found.by_name, **used})
        for policy in self._policies:
            policy.rebind({name: known[name] for name in policy.parameters}, self._model, masks, now)
        quantizers.rebind(catalog)
        self._tell(found, now)

    def _tell(self, found: Parameters, now: Progress) -> None:
        trace, former = self._ledger.trace, self._known
        if replaced := [name for name, p in found.by_name.items() if former.get(name, p) is not p]:
            trace.info("parameters replaced", **now.trace_keys(), parameters=replaced)
        for name, first in self._aliases.items():
            if name in found.by_name and (first in self._owners or first in self._ledger.masks):
                trace.warning("parameters untied", **now.trace_keys(), parameter=name, was=first)

    def _remember(self, found: Parameters) -> None:
        self._known, self._aliases = _with_aliases(found), found.aliases
        self._shapes = {name: _shape(parameter) for name, parameter in self._known.items()}
        places = list(_places(self._model))
        self._holders = [holder for holder, _, _ in places]
        self._keys = [key for _, key, _ in places]
        self._held = [thing for _, _, thing in places]


def _places(model: Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Where a model's modules keep their modules and parameters: the dict, the key and what is there."""
    for module in model.modules():
        for holder in (module._modules, module._parameters):
            yield from ((holder, key, thing) for key, thing in holder.items())


def _with_aliases(parameters: Parameters) -> dict[str, Parameter]:
    """The parameters under all their names."""
    return parameters.by_name | {name: parameters.by_name[first] for name, first in parameters.aliases.items()}


def _shape(parameter: Parameter) -> tuple[int, ...] | None:
    """A parameter's shape; None before a lazy layer has seen its first batch."""
    return None if is_lazy(parameter) else tuple(parameter.shape)
