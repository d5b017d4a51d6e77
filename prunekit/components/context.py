"""What a component may know while it decides, and what it may remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Module

from prunekit.components.curves import Change, value_at
from prunekit.components.gradients import Gradients
from prunekit.progress import Progress, Window


@dataclass(frozen=True)
class Context:
    """What a component may know while it decides.

    Attributes:
        model: the network being trained.
        masks: the masks in force, by parameter name (True keeps).
        progress: where training stands: epoch, mini-batch, step of the optimizer.
        window: when the policy acts; ask it with `progress`.
        settings: parameter name -> the setting of the selector that chose it (None without settings).
        keys: parameter name -> where that selector stands among the component's keys, such as `("weights", 2)`: what an
            `ArgumentError` about the parameter begins with.
        activations: of a quantizer: the name of an activation -> its bits.
        warn: `warn("constant message", key=value)` leaves a line in the trace, with epoch, policy and plugin.
        gradients: where `gradient` takes them from.
    """

    model: Module
    masks: Mapping[str, Tensor]
    progress: Progress
    window: Window
    settings: Mapping[str, Any]
    keys: Mapping[str, tuple[str | int, ...]]
    warn: Callable[..., None] = lambda message, **values: None
    activations: Mapping[str, int] = field(default_factory=dict)
    gradients: Gradients = field(default_factory=Gradients)

    def gradient(self, parameter: Tensor, *, finite: bool = True) -> Tensor | None:
        """The gradient of a parameter [its shape]: dense where the layer makes it sparse; None where there is none.

        Under mixed precision it is without the scale, also where the optimizer takes that out by itself. One that is
        not finite is all zeros, and a warning says so once; with `finite=False` it is handed on as it is.
        """
        return self.gradients.of(parameter, self.warn if finite else None)

    def now(self, value: float | Change) -> float:
        """The value of an argument of type `OverTime` at this moment of the window.

        Raises:
            ValueError: a curve leaves what lies between its ends.
        """
        return value_at(value, self.window.fraction(self.progress)) if isinstance(value, Mapping) else value

    def at_the_end(self) -> Context:
        """The same when the last active epoch of the window begins, to check what will be asked for then."""
        return replace(self, progress=self.window.closing)


@runtime_checkable
class Stateful(Protocol):
    """A component with something to remember between epochs, in types that `torch.load(weights_only=True)` reads."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
