"""Pruners: what they must have, what they may have besides, and what a schedule may say of their policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from prunekit.components.context import Context
from prunekit.components.types import NonNegativeInt
from prunekit.errors import ArgumentError
from prunekit.progress import Progress, Window


@runtime_checkable
class Pruner(Protocol):
    """Decides which weights stay. Its constructor's arguments are the YAML keys of its section.

    It owns the parameters that its arguments of type `Selectors` or `PerParameter` select. A pruner may also have
    `check(parameters, context)`, which yields an `ArgumentError` for each parameter that it can't work on,
    `state_dict()/load_state_dict()`, and what `Gradual`, `Freeing`, `Accompanied`, `Observing`, `Listening`, `Scaling`,
    `Reconstructing` and `Regrowing` describe.
    """

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        """Boolean masks (True keeps), each shaped like its parameter; a name left out keeps the mask it has."""


@runtime_checkable
class Gradual(Protocol):
    """A pruner whose target changes while its window passes: a run that cuts the window off is warned about."""

    def sparsity_at(self, window: Window, progress: Progress) -> float:
        """The target at a moment of the window."""


@runtime_checkable
class Freeing(Protocol):
    """A pruner that may be asked for no sparsity at all, and so to let go what was pruned before."""

    def frees(self, name: str, context: Context) -> bool:
        """Whether the target of a parameter is 0 by its own words, and not by rounding, nor for the time being.

        Its mask is then dropped, and `compute_masks` is not asked about it.
        """


@runtime_checkable
class Accompanied(Protocol):
    """A pruner that also owns parameters which nobody has selected, beside selected ones."""

    def companions(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, str]:
        """Further parameter -> the selected one that it goes with, whose setting and key it shares.

        One that is selected itself stays what it is.
        """


@runtime_checkable
class Observing(Protocol):
    """A pruner that looks at gradients."""

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor] | None:
        """Gradients are known (`context.gradient(parameter)`) and the optimizer is about to step: collect what the
        ranking needs.

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
class Regrowing(Protocol):
    """A pruner under which pruned weights come back and are trained again: it says `regrows: ClassVar[bool] = True`.

    What the optimizer remembers of such a weight dates from before it was pruned, or from gradients while it was: it is
    set back where a weight comes back whose mask was enforced.
    """

    regrows: ClassVar[bool]


@dataclass(frozen=True)
class PrunerArguments:
    """The `args` of a pruner's policy."""

    mini_batch_pruning_frequency: NonNegativeInt = 0
    mask_on_forward_only: bool = False
    use_double_copies: bool = False
    mask_gradients: bool = False
    keep_mask: bool = False
    discard_masks_at_minibatch_end: bool = False
    skip_first_minibatch: bool = False
    fold_batchnorm: bool = False
    reset_optimizer_state: bool = False
    levels: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mask_gradients and not self.mask_on_forward_only:
            raise ArgumentError(
                "mask_gradients", message="needs mask_on_forward_only: true, or weights are masked anyway"
            )
        if self.keep_mask and self.discard_masks_at_minibatch_end:
            raise ArgumentError("keep_mask", message="discard_masks_at_minibatch_end: true leaves no mask to keep")
