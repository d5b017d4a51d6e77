"""What plugin authors write: the protocols of the component kinds, and what their methods are given and return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from prunekit.errors import ArgumentError
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
        activations: of a quantizer: the name of an activation -> its bits.
        warn: `warn("constant message", key=value)` leaves a line in the trace, with epoch, policy and plugin.
    """

    model: Module
    masks: Mapping[str, Tensor]
    progress: Progress
    window: Window
    targets: Mapping[str, Any]
    selectors: Mapping[str, str]
    warn: Callable[..., None] = lambda message, **values: None
    activations: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Pruner(Protocol):
    """Decides which weights stay. Its constructor's arguments are the YAML keys of its section.

    A pruner may also have `check(parameters, context)`, which yields an `ArgumentError` for each parameter that it
    can't work on, `state_dict()/load_state_dict()`, and what `Observing`, `Listening`, `Scaling` and `Reconstructing`
    describe.
    """

    @property
    def targets(self) -> Targets:
        """The parameters it prunes."""

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """Boolean masks (True keeps), each shaped like its parameter; a name left out keeps the mask it has."""


@runtime_checkable
class Observing(Protocol):
    """A pruner that looks at gradients."""

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        """Gradients are known (`parameter.grad`) and the optimizer is about to step: collect what the ranking needs.

        Masks that are returned are set at once, before the step. Called from the epoch before the first active one to
        the last active one.
        """


@runtime_checkable
class Listening(Protocol):
    """A pruner that looks at what flows through the model."""

    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        """Hooks on modules of `context.model`, from the epoch before the first active one to the last active one.

        Where the first active epoch is 0, from when the scheduler is made: batches that are run through the model
        before training count. prunekit removes the hooks.
        """


@runtime_checkable
class Scaling(Protocol):
    """A pruner under which the forward pass sees what is kept larger than it is."""

    def forward_scales(self, masks: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Parameter -> what its kept weights are multiplied by in the forward pass alone."""


@runtime_checkable
class Reconstructing(Protocol):
    """A pruner that makes up for what it takes away."""

    def reconstruct(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], context: Context
    ) -> Mapping[str, Tensor]:
        """New values for weights, set together with the masks that it has just chosen."""


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


@dataclass(frozen=True)
class Quantizable:
    """What of a module can be quantized; its class, or the function, is its `kind`.

    Attributes:
        kind: its class, or the function.
        weights, bias: it has such parameters.
        activations: it is a ReLU or ReLU6.
        adds: it is a sum of two tensors.
        before_relu: a ReLU or ReLU6 is all that takes what it gives.
    """

    kind: str
    weights: bool = False
    activations: bool = False
    bias: bool = False
    adds: bool = False
    before_relu: bool = False


@dataclass(frozen=True)
class ModuleBits:
    """The bits of one module's parts, None of what is left alone; `given_by` is the key that says so, or no key."""

    weights: int | None = None
    activations: int | None = None
    bias: int | None = None
    given_by: tuple[str, ...] = ()


@runtime_checkable
class QuantizesModules(Protocol):
    """A quantizer that speaks of modules instead of parameters, and of what activations give."""

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        """The bits of every module that gets some; the parameters follow from them, in place of `targets`."""

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterable[ArgumentError]:
        """What of its arguments fits no module."""

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        """As of any quantizer; `context.targets[name]` is the number of bits."""

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        """What goes on in place of an activation's output: the same shape, differentiable in it.

        `context.activations[name]` is the number of bits.
        """

    def parameter_group(self, activations: Sequence[str], device: torch.device) -> Mapping[str, Any]:
        """A group for the optimizer (`params`, and what else it takes), of parameters such as clipping values.

        Empty where there are none. Added when the optimizer is known, so that a checkpoint of it has always the group.
        """


@dataclass(frozen=True)
class Integers:
    """Weights as whole numbers: `(values - zero_point) * scale` is what the forward pass uses in their place.

    Attributes:
        values: whole numbers, in any type, in the weight's shape.
        scale: the distance of two values, in a shape that broadcasts: `[]`, or for one scale a channel `[n, 1, …]`.
        zero_point: the number that stands for 0, shaped like `scale`.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class Levels:
    """What an activation can give: `(n - zero_point) * scale`, the nearest of whole `n` from `least` to `most`."""

    scale: float
    zero_point: int
    least: int
    most: int


@runtime_checkable
class Integral(Protocol):
    """A quantizer whose values are evenly spaced, so that they can be stored and computed with as whole numbers."""

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers | None:
        """The whole numbers behind `quantize(name, weight, context)`; None where there are none."""

    def levels(self, name: str, context: Context) -> Levels | None:
        """What `quantize_activation(name, …, context)` gives; None where that is not known, or not the same for all."""


@runtime_checkable
class Calibrated(Protocol):
    """A quantizer that must see activations of the float model before it can quantize them."""

    def calibration(self) -> AbstractContextManager[None]:
        """While it is open, weights and activations are as they are, and what each activation gives is remembered."""


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
    the unmasked weights. `left_out`: parameters that were asked about and keep the mask they have. `scales`: what the
    forward pass alone multiplies kept weights by.
    """

    masks: Mapping[str, Tensor]
    forward_only: bool = False
    double_copies: bool = False
    left_out: Sequence[str] = ()
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SetWeights:
    """New values for some parameters; what is masked stays zero."""

    values: Mapping[str, Tensor]


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
    """A quantizer works on these modules from now on: name -> `weights`, `activations`, `bias` in bits, and `by`."""

    bits: Mapping[str, Mapping[str, int | str | None]]


Effect = SetMasks | SetWeights | KeepMasks | DropMasks | ZeroWeights | SetLearningRates | ModulesQuantized
"""What a hook implementation may return; prunekit carries it out once all implementations of the event are done."""


@dataclass(frozen=True)
class MaskChange:
    """What became of one parameter; sparsities are counted from the tensor."""

    parameter: str
    sparsity_before: float
    sparsity_after: float
    origin: Origin
