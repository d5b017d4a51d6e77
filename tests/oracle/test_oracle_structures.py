"""Reference numbers of structures: thresholds of groups, where the reference divides by another number, and tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle_replay import Replay, arrays, assert_as_recorded, assert_same
from torch import Tensor

from prunekit.pruning import Groups, granularities

OTHER_DIVISOR = ["structure_mean_abs", "structure_cols_filters_mean_abs"]
THRESHOLDS = {"Mean_Abs": 0.7, "Max": 1.3, "L1": 4.0, "L2": 2.0, "Mean_L1": 0.7, "Mean_L2": 0.3}


@pytest.mark.parametrize("name", OTHER_DIVISOR)
def test_all_but_rows_and_columns_equal_the_reference(name: str) -> None:
    assert_as_recorded(Replay(name), ignore=("fc.weight",))


@pytest.mark.parametrize("name", OTHER_DIVISOR)
def test_a_row_or_column_is_divided_by_its_own_number_of_elements(name: str) -> None:
    replay, data = Replay(name), arrays(name)
    (spec,) = replay.scheduler.schedule.components
    threshold, group = spec.args["reg_regims"]["fc.weight"]
    inside = {"Rows": 1, "Cols": 0}[group]
    weight, differs = data["init/fc.weight"].clone(), False
    for moment, e, m in replay.run():
        if moment == "begin":
            kept = (weight.abs().mean(inside, keepdim=True) > threshold).expand_as(weight)
            assert torch.equal(replay.mask("fc.weight"), kept)
            differs = differs or not torch.equal(kept, data["mask_begin/fc.weight"][e] != 0)
            weight = weight * kept
        if moment == "mbend":
            weight = (weight + data["delta/fc.weight"][e, m]) * kept
            assert_same(replay.weight("fc.weight"), weight, f"fc.weight at {e}, {m}")
    assert differs, "the reference has another outcome"


def magnitudes(groups: Groups, weight: Tensor, criterion: str) -> Tensor:
    if criterion in ("L1", "L2"):
        return {"L1": groups.l1, "L2": groups.l2}[criterion](weight)
    if criterion == "Mean_L2":
        return groups.l2(weight) / groups.size
    return groups.max_abs(weight) if criterion == "Max" else groups.mean_abs(weight)


@pytest.mark.parametrize("criterion", THRESHOLDS)
@pytest.mark.parametrize("group", ["2D", "3D", "Filters", "Channels", "Rows", "Cols"])
def test_groups_above_a_threshold_are_those_of_the_table(group: str, criterion: str) -> None:
    data: dict[str, Any] = arrays("tables")
    weight = data["w2" if group in ("Rows", "Cols") else "w4"]
    (granularity,) = granularities(group)
    groups = granularity.groups(weight)
    keep = magnitudes(groups, weight, criterion) > THRESHOLDS[criterion]
    mask = groups.spread(keep)
    if group in ("Rows", "Cols") and criterion.startswith("Mean"):
        # The reference divides a row by the number of rows, and a column by the number of columns.
        factor = groups.size / groups.number
        swapped = magnitudes(groups, weight, criterion) * factor > THRESHOLDS[criterion]
        keep, mask = swapped, groups.spread(swapped)
    assert torch.equal(keep, data[f"thr/{group}/{criterion}/map"] != 0)
    assert torch.equal(mask, data[f"thr/{group}/{criterion}/mask"] != 0)


def test_the_norms_of_filters_are_those_of_the_table() -> None:
    (filters,) = granularities("Filters")
    groups = filters.groups(arrays("tables")["w4"])
    assert (groups.number, groups.size) == (4, 12)
