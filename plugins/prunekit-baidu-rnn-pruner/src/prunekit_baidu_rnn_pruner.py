"""Pruning with one threshold for a whole run, which rises slowly at first and faster from a given epoch on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError, Progress, Window
from prunekit.components import Context, NonNegative, NonNegativeInt, Selectors


@dataclass(kw_only=True)
class BaiduRNNPruner:
    """Keeps the weights w with |w| > eps, a threshold that rises by a slope theta, and from the ramp on by phi.

    Narang et al. 2017, "Exploring sparsity in recurrent neural networks", arXiv 1704.05119, equation 1 and algorithm 1,
    with epochs in place of iterations. In the epoch e of a window from S to E with its ramp at R = S + offset

        theta = 2 q / (2 (R - S) + 3 (E - R))        phi = ramp_slope_mult * theta
        eps = theta * (e - S + 1)                                      before R
        eps = theta * (R - S + 1) + phi * (e - R + 1)                  from R on

    The paper's frequency cancels out of it, so that an epoch has the same threshold however often it is active.

    Args:
        q: the magnitude that the threshold is to reach at about the window's end, such as the 90th percentile of a
            trained network's |w|.
        ramp_epoch_offset: how many epochs after the window's first one the threshold begins to rise faster.
        ramp_slope_mult: how much faster; the paper recommends 1.5 to 2.
        weights: the parameters (names, globs, `re:` patterns), tensors of any shape, all with the same threshold.
    """

    q: NonNegative
    ramp_epoch_offset: NonNegativeInt
    ramp_slope_mult: NonNegative
    weights: Selectors

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """An error where the ramp lies behind the window's end."""
        window = context.window
        if self.ramp_epoch_offset >= window.length:
            ramp, last = window.label(self.ramp_epoch_offset), window.label(window.length - 1)
            what = f"the ramp would start at {ramp}, and the window ends with {last}"
            yield ArgumentError("ramp_epoch_offset", message=what)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        threshold = self.threshold(context.progress, context.window)
        return {name: weight.abs() > threshold for name, weight in parameters.items()}

    def threshold(self, progress: Progress, window: Window) -> float:
        """What a magnitude must exceed now."""
        elapsed, offset = window.elapsed(progress), self.ramp_epoch_offset  # e - S and R - S
        theta = 2 * self.q / (2 * offset + 3 * (window.length - offset))
        if elapsed < offset:
            return theta * (elapsed + 1)
        return theta * (offset + 1) + self.ramp_slope_mult * theta * (elapsed - offset + 1)
