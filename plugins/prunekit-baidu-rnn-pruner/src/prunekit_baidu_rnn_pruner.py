"""Pruning with one threshold for a whole run, which rises slowly at first and faster from a given epoch on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError, Window
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
        ramp, window = context.window.first + self.ramp_epoch_offset, context.window
        if ramp >= window.ending_epoch:
            what = f"the ramp would start at epoch {ramp}, and the window ends with epoch {window.ending_epoch - 1}"
            yield ArgumentError("ramp_epoch_offset", message=what)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        threshold = self.threshold(context.progress.epoch, context.window)
        return {name: weight.abs() > threshold for name, weight in parameters.items()}

    def threshold(self, epoch: int, window: Window) -> float:
        """What a magnitude must exceed in this epoch."""
        start, ramp = window.first, window.first + self.ramp_epoch_offset
        theta = 2 * self.q / (2 * (ramp - start) + 3 * (window.ending_epoch - ramp))
        if epoch < ramp:
            return theta * (epoch - start + 1)
        return theta * (ramp - start + 1) + self.ramp_slope_mult * theta * (epoch - ramp + 1)
