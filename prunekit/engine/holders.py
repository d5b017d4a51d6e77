"""The schedulers that there are: two must not prune or quantize one parameter, nor set one learning rate."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

from torch.nn import Module
from torch.optim import Optimizer

from prunekit.components.kinds import LR_SCHEDULER, QUANTIZER
from prunekit.engine.policies import Policy, QuantizationPolicy
from prunekit.model.wrappers import unwrapped
from prunekit.quantization.forward import QuantizedForward
from prunekit.trace import Trace


class Holder(Protocol):
    """What holds parameters of a model: a scheduler."""

    model: Module
    trace: Trace

    @property
    def optimizer(self) -> Optimizer | None:
        """The first that it knows."""

    @property
    def policies(self) -> Sequence[Policy]:
        """What each owns."""

    @property
    def quantized(self) -> QuantizedForward:
        """What the forward pass reads."""

    @property
    def attached(self) -> bool:
        """Whether it has hooks on model and optimizers."""

    def give_way(self) -> None:
        """Take them off, and leave the weights alone."""


# The one thing that schedulers share, because nothing else connects two of them: a notebook cell that is run twice
# makes a second one for the same parameters, and the hooks of the first stay on an optimizer whose name is gone. Weak,
# so that it keeps none of them alive.
_SCHEDULERS: WeakSet[Holder] = WeakSet()


def take_hold(holder: Holder) -> None:
    """From now on a scheduler acts: another that prunes or quantizes the same parameters is closed, with a warning."""
    if any(other.attached and _shared(holder, other) for other in _others(holder)):
        gc.collect()  # one whose name is gone may be waiting for nothing else
    for other in _others(holder):
        _part(holder, other)
    _SCHEDULERS.add(holder)


def _others(holder: Holder) -> list[Holder]:
    return [other for other in _SCHEDULERS if other is not holder]


def _shared(holder: Holder, older: Holder) -> dict[tuple[str, int, str], str]:
    """What both decide about."""
    its = _held(older)
    return {key: name for key, name in _held(holder).items() if key in its}


def _part(holder: Holder, older: Holder) -> None:
    shared = _shared(holder, older)
    if shared and older.attached:
        older.give_way()
        holder.trace.warning("older scheduler closed", parameters=list(dict.fromkeys(shared.values())))
    if any(kind == QUANTIZER.name for kind, _, _ in shared):
        older.quantized.clear()  # which stays in the model where a run has ended: it was its result
    rates = [_rates(older), _rates(holder)]
    if older.attached and holder.optimizer is older.optimizer and all(rates):
        holder.trace.warning("two schedulers set one learning rate", older=rates[0], newer=rates[1])


def _rates(holder: Holder) -> list[str]:
    """The policies that set learning rates."""
    return [str(policy.origin) for policy in holder.policies if policy.kind is LR_SCHEDULER]


def _held(holder: Holder) -> Mapping[tuple[str, int, str], str]:
    """What no two schedulers may decide about: (kind, parameter or model by its id, name in that model) -> name."""
    held: dict[tuple[str, int, str], str] = {}
    for policy in holder.policies:
        if policy.kind.exclusive and policy.kind.owns_parameters:
            held |= {(policy.kind.name, id(parameter), ""): name for name, parameter in policy.parameters.items()}
        if isinstance(policy, QuantizationPolicy):
            model = unwrapped(holder.model)[1]
            held |= {(policy.kind.name, id(model), name): name for name in policy.activations}
    return held
