"""What plugin authors write: the protocols of the component kinds, and what their methods are given and return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.progress import Progress, Window

Kind = Literal["pruner", "regularizer", "quantizer", "lr_scheduler", "extension"]
SECTIONS: dict[str, Kind] = {
    "pruners": "pruner",
    "regularizers": "regularizer",
    "quantizers": "quantizer",
    "lr_schedulers": "lr_scheduler",
    "extensions": "extension",
}
"""The schedule's section of each kind of component, in the order in which they are written."""

Sparsity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A fraction of zeros, from 0 to 1."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number that is not negative."""
Selectors = str | list[str]
"""Which parameters: one exact name, glob or `re:` pattern, or several."""
Targets = Sequence[str] | Mapping[str, Any]
"""Selectors of parameters; in a mapping each comes with its setting."""


@dataclass(frozen=True)
class Context:
    """What a component may know while it decides.

    Attributes:
        model: the network being trained.
        masks: the masks in force, by parameter name (True keeps).
        progress: epoch and mini-batch.
        window: the policy's window of epochs.
        targets: parameter name -> the setting of the selector that chose it (None without settings).
        selectors: parameter name -> that selector, as the schedule spells it.
        warn: `warn("constant message", key=value)` leaves a line in the trace, with epoch, policy and plugin.
    """

    model: Module
    masks: Mapping[str, Tensor]
    progress: Progress
    window: Window
    targets: Mapping[str, Any]
    selectors: Mapping[str, str]
    warn: Callable[..., None] = lambda message, **values: None


@runtime_checkable
class Pruner(Protocol):
    """Decides which weights stay. Its constructor's arguments are the YAML keys of its section.

    A pruner may also have `check(parameters, context)`, which yields an `ArgumentError` for each parameter that it
    can't work on, and `state_dict()/load_state_dict()`.
    """

    @property
    def targets(self) -> Targets:
        """The parameters it prunes."""

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """Boolean masks (True keeps), each shaped like its parameter; a name left out keeps the mask it has."""


@runtime_checkable
class Regularizer(Protocol):
    """Adds a penalty to the loss.

    With `compute_masks(parameters, context)` too it drops weights once after each mini-batch (`threshold_criteria`).
    """

    @property
    def targets(self) -> Targets:
        """The parameters it penalises."""

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        """The scalar to add to the loss, differentiable in the parameters."""


@runtime_checkable
class Quantizer(Protocol):
    """Decides which values the forward pass uses for the weights, while its policy's window is open.

    The float weights stay: the optimizer updates them under their own names, and gradients reach them through
    `quantize`. A masked weight stays zero.
    """

    @property
    def targets(self) -> Targets:
        """The parameters that it quantizes."""

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        """The values that the forward pass uses for `weight`: the same shape and type, differentiable in it.

        Asked whenever the module that owns the parameter reads it. Rounding needs a straight-through estimator (Bengio
        et al. 2013, arXiv 1308.3432): `weight + (rounded - weight).detach()`.
        """


@runtime_checkable
class Stateful(Protocol):
    """A component with something to remember between epochs, in types that `torch.load(weights_only=True)` reads."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""


class Origin(NamedTuple):
    """By whose hand: the policy, its component, and the distribution that offers it."""

    policy: str
    component: str
    plugin: str
    version: str

    def __str__(self) -> str:
        parts = (self.component, self.policy, f"{self.plugin} {self.version}".strip())
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class LossTerm:
    """A named scalar that is added to the loss."""

    name: str
    value: Tensor


@dataclass(frozen=True)
class SetMasks:
    """New masks for some parameters, in place of the ones their pruner set before.

    `forward_only`: masked in the forward pass, not after the optimizer's step. `double_copies`: the optimizer updates
    the unmasked weights. `left_out`: parameters that were asked about and keep the mask they have.
    """

    masks: Mapping[str, Tensor]
    forward_only: bool = False
    double_copies: bool = False
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class KeepMasks:
    """From now on the masks of these parameters are enforced after every optimizer step."""

    names: Sequence[str]


@dataclass(frozen=True)
class DropMasks:
    """The masks of these parameters are forgotten; their weights stay as they are."""

    names: Sequence[str]


@dataclass(frozen=True)
class ZeroWeights:
    """Weights to set to zero once (False zeroes); with `keep` the zeros stay, besides any pruner's mask."""

    masks: Mapping[str, Tensor]
    keep: bool = False


@dataclass(frozen=True)
class SetLearningRates:
    """New values for each of the optimizer's parameter groups: `lr`, and what else a schedule cycles."""

    groups: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ModulesQuantized:
    """A quantizer has prepared these modules: name -> bits of weights and activations."""

    bits: Mapping[str, Mapping[str, int | None]]


Effect = SetMasks | KeepMasks | DropMasks | ZeroWeights | SetLearningRates | ModulesQuantized
"""What a hook implementation may return; prunekit carries it out once all implementations of the event are done."""


@dataclass(frozen=True)
class MaskChange:
    """What became of one parameter; sparsities are counted from the tensor."""

    parameter: str
    sparsity_before: float
    sparsity_after: float
    origin: Origin
