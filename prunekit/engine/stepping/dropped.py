"""A scheduler that nobody has closed and nobody keeps: whoever trains on is told that its masks are not in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import ref

from torch.nn import Parameter
from torch.optim import Optimizer

from prunekit.trace import Trace


@dataclass(frozen=True)
class Dropped:
    """What outlives a scheduler: it knows neither that nor the model, and keeps neither alive.

    Attributes:
        trace: where it is said.
        in_force: the parameters whose masks were enforced.
    """

    trace: Trace
    in_force: Mapping[str, ref[Parameter]]

    def matters(self) -> bool:
        """Whether any of these parameters is still there to be trained."""
        return any(reference() is not None for reference in self.in_force.values())

    def tell(self, optimizer: Optimizer) -> bool:
        """An optimizer steps; whether there is nothing more to say."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        # By identity: what is compared are tensors, and an address may be another's only once the parameter is gone.
        there = {name: parameter for name, each in self.in_force.items() if (parameter := each()) is not None}
        if names := [name for name, parameter in there.items() if id(parameter) in held]:
            self.trace.warning("scheduler dropped, masks no longer in force", parameters=names)
        return bool(names) or not there
