"""How much to prune: one sparsity, or one that rises from an initial to a final one while a policy's window passes."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.components.context import Context
from prunekit.components.curves import ROUNDING, CurveName, OverTime, Shares, along, curve_of, gives, wrong_ends
from prunekit.components.types import Sparsity
from prunekit.errors import ArgumentError
from prunekit.progress import Progress, Window


@dataclass(kw_only=True)
class FixedSparsity:
    """One sparsity for the whole window, or one that changes along a curve.

    Args:
        desired_sparsity: the fraction of units to prune, 0 to 1: floor(s · n) of n.
    """

    desired_sparsity: OverTime[Sparsity]

    def sparsity(self, context: Context) -> float:
        """The target now."""
        return context.now(self.desired_sparsity)

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
        final = self.final_sparsity
        if final <= self.initial_sparsity:
            what = f"must be above initial_sparsity {self.initial_sparsity}, got {final}"
            raise ArgumentError("final_sparsity", message=what)
        for wrong in wrong_ends(self.curve, {"initial_sparsity": self.initial_sparsity, "final_sparsity": final}):
            raise wrong

    def sparsity(self, context: Context) -> float:
        """The target now."""
        return self.sparsity_at(context.window, context.progress)

    def sparsity_at(self, window: Window, progress: Progress) -> float:
        """The target at a moment of a window."""
        return self.at(window.fraction(progress))

    def at(self, fraction: float) -> float:
        """The target when this fraction of the window, 0 to 1, has passed."""
        curve = curve_of(self.curve)
        # Exact at the ends: a formula may round to just below one, which would be a unit too few.
        sparsity = along(curve, self.initial_sparsity, self.final_sparsity, fraction)
        if not -ROUNDING <= sparsity <= 1 + ROUNDING:
            raise ValueError(f"{gives(curve, sparsity, fraction)}; a sparsity is from 0 to 1")
        return sparsity
