"""What is given to a scheduler in the wrong place is told by its name, and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, pruning

from prunekit import CompressionScheduler, PrunekitError, Schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": "mine.yaml"},
            "schedule must be a Schedule, got 'mine.yaml'; CompressionScheduler.from_yaml reads a file",
        ),
        (
            {"schedule": {"version": 1}},
            "schedule must be a Schedule, got {'version': 1}; CompressionScheduler.from_dict takes a dict",
        ),
        ({"schedule": None}, "schedule must be a Schedule, got None"),
        ({"model": [1]}, "model must be a torch.nn.Module, got [1]"),
        ({"trace": "runs/mine"}, "trace must be a Trace, got 'runs/mine'; Trace('runs/mine') writes to that folder"),
        ({"trace": 3}, "trace must be a Trace, got 3"),
        ({"listeners": 3}, "listeners must be a sequence of listeners, got 3"),
        ({"optimizer": 3}, "an optimizer has param_groups and step(), got 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_of_another_kind_is_refused_by_its_name(arguments: dict[str, Any], message: str) -> None:
    right = {"schedule": Schedule([], []), "model": MLP(), "trace": SILENT}
    with pytest.raises(PrunekitError) as refused:
        CompressionScheduler(**{**right, **arguments})
    assert str(refused.value) == message


def test_a_path_may_be_any_path() -> None:
    with pytest.raises(PrunekitError, match="from_yaml reads a file"):
        CompressionScheduler(Path("mine.yaml"), MLP())  # type: ignore[arg-type]


def test_a_name_that_the_model_lacks_is_told_with_the_nearest() -> None:
    scheduler = CompressionScheduler.from_dict(
        pruning(levels={"fc1.weight": 0.5}), torch.nn.DataParallel(MLP()), trace=SILENT
    )
    assert scheduler.sparsity("module.fc1.weight") == 0
    with pytest.raises(PrunekitError) as refused:
        scheduler.sparsity("fc1.wieght")
    assert str(refused.value) == "the model has no parameter 'fc1.wieght'; did you mean 'module.fc1.weight'?"


def test_a_value_of_many_lines_is_told_on_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())
    assert str(model).count("\n") == 3
    with pytest.raises(PrunekitError) as refused:
        CompressionScheduler(Schedule([], []), model, model)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "an optimizer has param_groups and step(), got Sequential( (0): Linear(in_features=2, out_features=1, bi..."
    )
