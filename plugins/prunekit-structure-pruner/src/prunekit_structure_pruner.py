"""Structure pruning by thresholds: kernels, filters, channels, rows or columns that are small go as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import Parameter

from prunekit import ArgumentError
from prunekit.components import Context, NonNegative, PerParameter
from prunekit.pruning import Groups, check_group_types, groups_of

GroupType = Literal["2D", "3D", "Filters", "Channels", "Rows", "Cols", "4D"]
"""The groups of one tensor, by their names in the schedule language."""


@dataclass(kw_only=True)
class StructureParameterPruner:
    """Keeps the groups of weights whose mean |w| (`Mean_Abs`) or largest |w| (`Max`) is above a threshold.

    Magnitude pruning (Han et al. 2015, arXiv 1506.02626) of whole structures, as Mao et al. 2017, "Exploring the
    regularity of sparse structure in convolutional neural networks", arXiv 1705.08922, section 3, compare them. The
    mean of a group divides by its own number of elements.

    Args:
        reg_regims: the parameters (names, globs, `re:` patterns), each with [threshold, group type]: `2D` (kernels),
            `3D` or `Filters` (outputs of a convolution), `Channels` (its inputs), `4D` (all of it), `Rows` (outputs of
            a matrix) or `Cols` (its inputs).
        threshold_criteria: what of a group is compared: the mean (`Mean_Abs`) or the largest (`Max`) magnitude.
    """

    reg_regims: PerParameter[tuple[NonNegative, GroupType]]
    threshold_criteria: Literal["Mean_Abs", "Max"]

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter that has no such groups."""
        group_types = {name: group for name, (_, group) in context.settings.items()}
        return check_group_types(parameters, group_types, get_args(GroupType), context)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        masks = {}
        for name, weight in parameters.items():
            threshold, group = context.settings[name]
            (groups,) = groups_of(weight, group)
            masks[name] = groups.spread(self._magnitudes(weight, groups) > threshold)
        return masks

    def _magnitudes(self, weight: Tensor, groups: Groups) -> Tensor:
        return groups.max_abs(weight) if self.threshold_criteria == "Max" else groups.mean_abs(weight)
