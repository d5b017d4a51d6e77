"""Gradient ranking: the filters without which the loss changes least, to first order, go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components import Context
from prunekit.model import Parameters
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner


@dataclass(kw_only=True)
class GradientRanked(RankedPruner):
    """Ranks groups by |Σ w · ∂L/∂w|, averaged over the mini-batches since the last pruning.

    To first order that is by how much the loss L changes where the group becomes zero. Where no mini-batch has been
    seen since then, the gradients that the parameters hold are taken. Mini-batches whose gradients are not finite, as
    automatic mixed precision has them now and then, do not count.

    Args:
        group_type: `3D` or `Filters`, the filters of a convolution.
        granularity: in place of `group_type`: `{dim: 0}` and on (`size`, `heads`, `parts`) or `{shape: […]}`, of any
            tensor.
    """

    group_type: Literal["3D", "Filters"] | None = None
    kwargs: None = field(default=None, init=False)
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _warned: bool = field(default=False, init=False, repr=False)

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor | None:
        sums = self._seen.get(name)
        if sums is None or not sums[-1]:
            sums = self._of(Parameters.of(context.model).by_name[name], context)
        if sums is None or not sums[-1]:
            self._warn(name, context)
            return None
        return (sums[:-1] / sums[-1]).to(weight.device)

    def observe(self, parameters: Mapping[str, Parameter], context: Context) -> None:
        """Add what this mini-batch says of each group."""
        for name, weight in parameters.items():
            more = self._of(weight, context)
            if more is not None:
                self._seen[name] = self._seen[name].to(more.device) + more if name in self._seen else more

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        masks = super().compute_masks(parameters, context)
        self._seen = {}
        return masks

    def state_dict(self) -> dict[str, Any]:
        """Per parameter the sum of each group over the mini-batches since the last pruning and, last, their number."""
        return {"seen": dict(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the sums of `state_dict()`."""
        self._seen = dict(state["seen"])

    def _of(self, weight: Parameter, context: Context) -> Tensor | None:
        """|Σ w · ∂L/∂w| of each group and a one; all zeros where it is not finite; None without a gradient."""
        gradient = context.gradient(weight, finite=False)
        if gradient is None:
            return None
        wide = torch.promote_types(weight.dtype, torch.float32)  # in 16 bits the products would vanish or overflow
        values = self.groups(weight).sum(weight.detach().to(wide) * gradient.to(wide)).abs()
        values = values.to(torch.float32 if weight.device.type == "mps" else torch.float64)
        finite = values.isfinite().all()  # stays on the device: nobody waits for it
        return torch.cat([torch.where(finite, values, 0), finite.to(values.dtype).reshape(1)])

    def _warn(self, name: str, context: Context) -> None:
        if not self._warned:
            context.warn("no gradient yet, nothing pruned", parameter=name)
        self._warned = True


@dataclass(kw_only=True)
class GradientRankedFilterPruner(FixedSparsity, GradientRanked):
    """Prunes the filters of each tensor without which the loss changes least, to first order, at once.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv 1611.06440,
    equations 7 and 8, with the filter's weights in place of its activations.
    """


@dataclass(kw_only=True)
class GradientRankedFilterPruner_AGP(GradualSparsity, GradientRanked):  # noqa: N801  # the language's name
    """Prunes the filters of each tensor without which the loss changes least, along a sparsity curve.

    Molchanov et al. 2017, arXiv 1611.06440, equations 7 and 8, with the filter's weights in place of its activations,
    as gradually as Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
