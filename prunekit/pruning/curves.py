"""Sparsity curves: how the target rises from an initial to a final sparsity while a policy's window passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from prunekit.components.context import Context
from prunekit.components.named_kind import ByName, NamedKind, takes
from prunekit.components.types import Sparsity
from prunekit.errors import ArgumentError
from prunekit.progress import Progress, Window

Curve = Callable[[float, float, float], float]
"""(initial sparsity, final sparsity, fraction of the window that has passed, 0 to 1) -> sparsity."""
Shares = Annotated[list[Sparsity], Field(min_length=2)]
"""A curve of the user's own: the share of the way at equal distances, such as [0, 0.8, 1]; straight between them."""

_ROUNDING = 1e-9


def cubic(initial: float, final: float, fraction: float) -> float:
    """Fast at first, slower as little is left. Zhu & Gupta 2017, arXiv 1710.01878, equation 1."""
    return final + (initial - final) * (1 - fraction) ** 3


def linear(initial: float, final: float, fraction: float) -> float:
    """The same number of weights at each step."""
    return initial * (1 - fraction) + final * fraction  # exact at both ends


def exponential(initial: float, final: float, fraction: float) -> float:
    """The same fraction of what is left at each step: what is kept falls from 1 - initial to 1 - final geometrically.

    Frankle & Carbin 2019, arXiv 1803.03635, section 1: "each iteration prunes p^(1/n) % of the weights that survive".
    """
    kept: float = (1 - initial) ** (1 - fraction) * (1 - final) ** fraction
    return 1 - kept


def one_shot(initial: float, final: float, fraction: float) -> float:
    """All of it at the first active epoch."""
    return final


def through(shares: list[float]) -> Curve:
    """A curve through given shares of the way, at equal distances over the window.

    >>> through([0, 0.8, 1])(0.0, 0.5, 0.25)
    0.2
    """

    def curve(initial: float, final: float, fraction: float) -> float:
        place = fraction * (len(shares) - 1)
        # At the very end nothing begins any more: it is the end of the last piece.
        left = min(math.floor(place), len(shares) - 2)
        share = shares[left] + (shares[left + 1] - shares[left]) * (place - left)
        return linear(initial, final, share)

    return curve


CURVES: Mapping[str, Curve] = {"cubic": cubic, "linear": linear, "exponential": exponential, "one-shot": one_shot}
"""Every curve of prunekit by its name in a schedule."""
CURVE = NamedKind("curve", "curves", CURVES, "a function (initial, final, fraction) -> sparsity", takes(3))
CurveName = Annotated[Curve | str, ByName(CURVE)]
"""A curve, by its name in a schedule: prunekit's own, or one that a distribution offers."""


@dataclass(kw_only=True)
class FixedSparsity:
    """One sparsity for the whole window.

    Args:
        desired_sparsity: the fraction of units to prune, 0 to 1: floor(s · n) of n.
    """

    desired_sparsity: Sparsity

    def sparsity(self, context: Context) -> float:
        """The target now."""
        return self.desired_sparsity

    def frees(self, name: str, context: Context) -> bool:
        """Whether nothing is to be pruned: every parameter is let go."""
        return self.sparsity(context) == 0


@dataclass(kw_only=True)
class GradualSparsity:
    """A sparsity that rises while the window passes, and reaches the final one at the last active epoch.

    Args:
        initial_sparsity: the fraction of units to prune at the first active epoch, 0 to 1.
        final_sparsity: the fraction at the last active epoch, above the initial one.
        curve: how it rises between them: `cubic` (AGP), `linear`, `exponential` (a constant fraction of what is left),
            `one-shot` (all at once), a curve that is installed, or shares of the way at equal distances, such as
            [0, 0.8, 1].
    """

    initial_sparsity: Sparsity
    final_sparsity: Sparsity
    curve: CurveName | Shares = "cubic"

    def __post_init__(self) -> None:
        # A pruner has several parents with keys to check; the last of them is `object`, which checks none.
        getattr(super(), "__post_init__", lambda: None)()
        if self.final_sparsity <= self.initial_sparsity:
            what = f"must be above initial_sparsity {self.initial_sparsity}, got {self.final_sparsity}"
            raise ArgumentError("final_sparsity", message=what)
        if self._curve() is exponential and self.final_sparsity == 1:
            what = "exponential never prunes all: a fraction of what is left always leaves something"
            raise ArgumentError("curve", message=what)
        if isinstance(self.curve, list) and self.curve[-1] != 1:
            what = f"must end with 1, where final_sparsity is reached, got {self.curve[-1]}"
            raise ArgumentError("curve", len(self.curve) - 1, message=what)

    def sparsity(self, context: Context) -> float:
        """The target now."""
        return self.sparsity_at(context.window, context.progress)

    def sparsity_at(self, window: Window, progress: Progress) -> float:
        """The target at a moment of a window."""
        return self.at(window.fraction(progress))

    def at(self, fraction: float) -> float:
        """The target when this fraction of the window, 0 to 1, has passed."""
        curve = self._curve()
        sparsity = curve(self.initial_sparsity, self.final_sparsity, fraction)
        if not -_ROUNDING <= sparsity <= 1 + _ROUNDING:
            name = getattr(curve, "__qualname__", type(curve).__qualname__)
            what = f"curve {name!r} gives {sparsity} when {fraction} of the window has passed"
            raise ValueError(f"{what}; a sparsity is from 0 to 1")
        if fraction in (0, 1):  # a formula may round to just below the end, which would be a unit too few
            end = (self.initial_sparsity, self.final_sparsity)[int(fraction)]
            return end if abs(sparsity - end) <= _ROUNDING else sparsity
        return sparsity

    def _curve(self) -> Curve:
        return through(self.curve) if isinstance(self.curve, list) else CURVE.of(self.curve, "curve")
