"""How far compression has come: what `scheduler.stage` says between the epochs of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunekit import CompressionScheduler, Trace

AGP = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.25, "final_sparsity": 0.75, "weights": ["0.weight"]}
LEVEL = {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}
RANKED = {"class": "L1RankedStructureParameterPruner", "desired_sparsity": 0.5, "group_type": "Rows"}
L1 = {"class": "L1Regularizer", "reg_regims": {"0.weight": 0.01}, "threshold_criteria": "Mean_Abs"}
WRPN = {"class": "WRPNQuantizer", "bits_weights": 2}
RATE = {"class": "StepLR", "step_size": 2}


def scheduler(*policies: tuple[str, dict[str, Any], dict[str, Any]]) -> CompressionScheduler:
    """A scheduler of policies: kind, component, and the keys of the window."""
    data: dict[str, Any] = {"version": 1, "policies": []}
    for index, (kind, component, keys) in enumerate(policies):
        data.setdefault(f"{kind}s", {})[f"x{index}"] = component
        args = {"args": keys.pop("args")} if "args" in keys else {}
        data["policies"].append({kind: {"instance_name": f"x{index}", **args}, **keys})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return CompressionScheduler.from_dict(data, model, optimizer, trace=Trace(logger=None))


def between(start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"starting_epoch": start, "ending_epoch": end, **more}


def train(run: CompressionScheduler, first: int, end: int) -> list[str]:
    """The stage after each epoch of two mini-batches."""
    stages = []
    for epoch in range(first, end):
        run.on_epoch_begin(epoch)
        for inputs in run.minibatches([torch.ones(3, 4)] * 2):
            assert run.optimizer is not None
            run.optimizer.zero_grad()
            run.total_loss(run.model(inputs).square().sum()).backward()
            run.optimizer.step()
        run.on_epoch_end(epoch)
        stages.append(run.stage)
    return stages


@pytest.mark.parametrize(
    ("policies", "stages"),
    [
        ([], "dense dense dense dense dense"),
        ([("lr_scheduler", RATE, between(0, 4))], "dense dense dense dense dense"),
        ([("pruner", AGP, between(1, 4))], "dense partial partial final final"),
        ([("pruner", AGP, between(1, 5, frequency=3))], "dense partial partial partial final"),
        ([("pruner", AGP, between(1, 4, frequency=2))], "dense partial partial final final"),
        ([("pruner", {**AGP, "curve": "one-shot"}, between(1, 9))], "dense final final final final"),
        ([("pruner", {**RANKED, "weights": ["0.weight"]}, between(2, 9))], "dense dense final final final"),
        ([("pruner", LEVEL, between(1, 9))], "dense partial partial partial partial"),
        ([("pruner", LEVEL, {"epochs": [1, 3]})], "dense partial partial final final"),
        ([("regularizer", L1, between(0, 3))], "dense dense dense dense dense"),
        ([("regularizer", L1, between(0, 3, args={"keep_mask": True}))], "dense dense final final final"),
        ([("quantizer", WRPN, between(2, 9))], "dense dense final final final"),
        (
            [("pruner", AGP, between(0, 2)), ("quantizer", WRPN, between(3, 9))],
            "partial partial partial final final",
        ),
    ],
)  # fmt: skip
def test_a_model_is_final_when_every_window_has_ended_or_is_at_its_target(policies: Any, stages: str) -> None:
    run = scheduler(*[(kind, component, dict(window)) for kind, component, window in policies])
    assert run.stage == "dense"
    assert train(run, 0, 5) == stages.split()
    run.on_train_end()
    assert run.stage == stages.split()[-1]


def test_a_mask_that_prunes_nothing_leaves_the_model_dense() -> None:
    run = scheduler(("pruner", {**AGP, "initial_sparsity": 0.0}, between(0, 3)))
    assert train(run, 0, 3) == ["dense", "partial", "final"]


@pytest.mark.parametrize("done", range(5))
def test_a_restored_state_knows_its_stage(done: int) -> None:
    policies = ("pruner", AGP, between(1, 3)), ("quantizer", WRPN, between(3, 4))
    first, second = (scheduler(*[(kind, part, dict(keys)) for kind, part, keys in policies]) for _ in range(2))
    train(first, 0, done)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.stage == first.stage == ["dense", "dense", "partial", "partial", "final"][done]


def test_within_an_epoch_what_has_ended_counts() -> None:
    run = scheduler(("pruner", AGP, between(0, 2)))
    seen = []
    for _ in run.epochs(3):
        for _ in run.minibatches([0]):
            seen.append(run.stage)
    assert seen == ["partial", "final", "final"]  # the last active epoch begins with the masks of the end
