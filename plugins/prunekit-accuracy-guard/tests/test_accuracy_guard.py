"""The guard: what it holds, what it lets pass, and what it says."""

from __future__ import annotations

import pytest
import torch
from prunekit_accuracy_guard import AccuracyGuard
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, PrunekitError
from prunekit.testing import check_component


def scheduler(levels=("0.25", "0.5", "0.75"), **keys):
    """A scheduler that asks for another level in each epoch, and its model of four weights."""
    pruners = {
        f"p{i}": {"class": "SparsityLevelParameterPruner", "levels": {"weight": float(s)}} for i, s in enumerate(levels)
    }
    policies = [{"pruner": {"instance_name": f"p{i}"}, "epochs": [i]} for i in range(len(levels))]
    schedule = {
        "version": 1,
        "pruners": pruners,
        "extensions": {"guard": {"class": "AccuracyGuard", **keys}},
        "policies": [*policies, {"extension": {"instance_name": "guard"}, "starting_epoch": 0, "ending_epoch": 9}],
    }
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    return CompressionScheduler.from_dict(schedule, model)


def sparsities(metrics, **keys):
    run = scheduler(**keys)
    seen = []
    for epoch, value in enumerate(metrics):
        run.on_epoch_begin(epoch)
        seen.append(run.sparsity("weight"))
        run.on_epoch_end(epoch, {"max": value, "min": 1 - value})
    return seen


def test_nothing_more_is_pruned_while_the_metric_is_under_the_floor():
    assert sparsities([0.9, 0.9, 0.9], floor=0.8) == [0.25, 0.5, 0.75]
    assert sparsities([0.7, 0.9, 0.9], floor=0.8) == [0.25, 0.25, 0.75]
    assert sparsities([0.7, 0.7, 0.9], floor=0.8) == [0.25, 0.25, 0.25]


def test_the_floor_itself_is_enough_and_the_metric_is_the_one_that_is_named():
    assert sparsities([0.8, 0.8, 0.8], floor=0.8) == [0.25, 0.5, 0.75]
    assert sparsities([0.8, 0.8, 0.8], floor=0.8, metric="min") == [0.25, 0.25, 0.25]


def test_a_step_that_prunes_no_more_passes():
    run = scheduler(levels=("0.75", "0.25"), floor=0.8)
    run.on_epoch_begin(0)
    run.on_epoch_end(0, {"max": 0.1})
    run.on_epoch_begin(1)
    assert int(run.masks["weight"].sum()) == 3


def test_the_trace_has_each_veto_with_its_reason():
    with capture_logs() as lines:
        sparsities([0.7, 0.9], floor=0.8)
    (veto,) = [line for line in lines if line["event"] == "pruning vetoed"]
    assert (veto["policy"], veto["epoch"], veto["parameters"]) == ("policies[1]", 1, ["weight"])
    assert veto["reason"] == "'max' was 0.7 after epoch 0, under 0.8"
    assert veto["by"] == "AccuracyGuard 'guard', policies[3], prunekit-accuracy-guard 0.1.0"


def test_a_loop_that_reports_nothing_is_told():
    run = scheduler(floor=0.8)
    run.on_epoch_begin(0)
    with pytest.raises(PrunekitError, match="AccuracyGuard needs the metric 'max' at each epoch's end, got 'min'"):
        run.on_epoch_end(0, {"min": 1.0})


def test_it_keeps_the_laws():
    check_component(AccuracyGuard, floor=0.5)
