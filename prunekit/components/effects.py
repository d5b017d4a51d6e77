"""What hook implementations return, and by whose hand it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


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
