"""The accuracy guard: what it holds, what it lets pass, what it says, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from prunekit_accuracy_guard import AccuracyGuard, prunes_more
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, PrunekitError, ScheduleError
from prunekit.testing import check_component

AGP = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.0, "final_sparsity": 0.5, "weights": ["weight"]}


def schedule(guard: dict[str, Any], window: dict[str, Any] | None = None, **pruners: dict[str, Any]) -> dict[str, Any]:
    """AGP over epochs 0 to 4 (or other pruners, the n-th in epoch n), and a guard over epochs 0 to 5."""
    agp = {"pruner": {"instance_name": "agp"}, "starting_epoch": 0, "ending_epoch": 5}
    steps = [{"pruner": {"instance_name": name}, "epochs": [epoch]} for epoch, name in enumerate(pruners)]
    held = {"extension": {"instance_name": "guard"}, **(window or {"starting_epoch": 0, "ending_epoch": 6})}
    return {
        "version": 1,
        "pruners": pruners or {"agp": AGP},
        "extensions": {"guard": {"class": "AccuracyGuard", **guard}},
        "policies": [*(steps or [agp]), held],
    }


def network() -> nn.Module:
    """Sixteen weights: 1 … 16."""
    model = nn.Linear(16, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 17).reshape(1, 16))
    return model


def pruned(plan: dict[str, Any], metrics: Iterable[float], key: str = "max") -> list[int]:
    """How many weights are zero in each epoch; the metric of each is what it ends with."""
    model = network()
    run = CompressionScheduler.from_dict(plan, model)
    counts = []
    for epoch, value in enumerate(metrics):
        run.on_epoch_begin(epoch)
        counts.append(int((model.weight == 0).sum()))
        run.on_epoch_end(epoch, metrics={key: value})
    return counts


# What is held


def test_a_network_that_stays_good_is_pruned_along_the_curve():
    assert pruned(schedule({"floor": 0.9}), [0.9] * 6) == [0, 4, 7, 7, 8, 8]


def test_a_network_that_is_not_good_enough_is_held_and_then_catches_up_along_the_curve():
    # AGP wants 0, 4, 7, 7, 8 zeros; epochs 1 and 2 end too badly.
    assert pruned(schedule({"floor": 0.9}), [0.95, 0.6, 0.8, 0.95, 0.95, 0.95]) == [0, 4, 4, 4, 8, 8]


def test_a_step_that_is_vetoed_in_the_last_active_epoch_is_not_made_up_for():
    assert pruned(schedule({"floor": 0.9}), [0.95, 0.95, 0.95, 0.6, 0.95, 0.95]) == [0, 4, 7, 7, 7, 7]


def test_what_is_vetoed_changes_neither_masks_nor_weights():
    model = network()
    run = CompressionScheduler.from_dict(schedule({"floor": 0.9}), model)
    for epoch, metric in enumerate([0.95, 0.6, 0.6]):
        run.on_epoch_begin(epoch)
        run.on_epoch_end(epoch, metrics={"max": metric})
    assert model.weight.tolist() == [[0.0] * 4 + [float(n) for n in range(5, 17)]]
    assert run.masks["weight"].tolist() == [[False] * 4 + [True] * 12]


@pytest.mark.parametrize(
    ("guard", "key", "zeros"),
    [
        ({"floor": 0.5}, "max", [0, 4, 7]),
        ({"floor": 0.75}, "max", [0, 4, 7]),  # at the bound it is good enough
        ({"floor": 0.8}, "max", [0, 0, 0]),
        ({"ceiling": 0.8}, "min", [0, 4, 7]),
        ({"ceiling": 0.75}, "min", [0, 4, 7]),
        ({"ceiling": 0.5}, "min", [0, 0, 0]),
        ({"floor": 0}, "max", [0, 4, 7]),
        ({"ceiling": 0}, "min", [0, 0, 0]),
    ],
)
def test_floor_is_a_lower_bound_of_max_and_ceiling_an_upper_bound_of_min(guard, key, zeros):
    assert pruned(schedule(guard), [0.75] * 3, key) == zeros


@pytest.mark.parametrize(("guard", "key"), [({"floor": -1e9}, "max"), ({"ceiling": 1e9}, "min")])
def test_a_metric_that_is_nan_is_out_of_every_bound(guard, key):
    assert pruned(schedule(guard), [math.nan] * 3, key) == [0, 0, 0]


# What passes


def levels(sparsity: float) -> dict[str, Any]:
    return {"class": "SparsityLevelParameterPruner", "levels": {"weight": sparsity}}


def test_before_the_first_metric_nothing_is_vetoed():
    assert pruned(schedule({"floor": 0.9}, half=levels(0.5)), [0.0]) == [8]


def test_a_step_that_prunes_no_weight_that_is_kept_now_passes():
    plan = schedule({"floor": 0.9}, half=levels(0.5), again=levels(0.5), quarter=levels(0.25), three=levels(0.75))
    model = network()
    run = CompressionScheduler.from_dict(plan, model)
    counts = []
    for epoch in range(4):
        run.on_epoch_begin(epoch)
        counts.append(int((~run.masks["weight"]).sum()))
        run.on_epoch_end(epoch, metrics={"max": 0.0})
    assert counts == [8, 8, 4, 4]


def test_trading_a_kept_weight_for_a_pruned_one_prunes_more():
    now, other = torch.tensor([True, False]), torch.tensor([False, True])
    both, none = torch.tensor([True, True]), torch.tensor([False, False])
    masks = {"weight": now}
    assert [prunes_more(masks, {"weight": mask}) for mask in (now, both, other, none)] == [False, False, True, True]
    assert [prunes_more({}, {"weight": mask}) for mask in (both, now)] == [False, True]
    assert prunes_more(masks, {"weight": now, "bias": other})


@pytest.mark.parametrize(
    ("window", "zeros"),
    [
        ({"starting_epoch": 0, "ending_epoch": 6}, [0, 0, 0, 0, 0, 0]),
        ({"starting_epoch": 0, "ending_epoch": 3}, [0, 0, 0, 7, 8, 8]),  # from epoch 3 on it is over
        (
            {"starting_epoch": 2, "ending_epoch": 4},
            [0, 4, 7, 7, 8, 8],
        ),  # at 2 no metric yet; at 3 nothing more is asked
        ({"epochs": [0, 2]}, [0, 0, 0, 7, 8, 8]),  # between active epochs the window is open
    ],
)
def test_it_holds_while_its_window_is_open(window, zeros):
    assert pruned(schedule({"floor": 0.9}, window), [0.5] * 6) == zeros


def test_every_pruner_is_held():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    pruners = {n: {"class": "SparsityLevelParameterPruner", "levels": {f"{n}.weight": 0.5}} for n in "01"}
    plan = schedule({"floor": 0.9})
    plan["pruners"] = pruners
    plan["policies"] = [*({"pruner": {"instance_name": n}, "epochs": [1]} for n in "01"), plan["policies"][-1]]
    run = CompressionScheduler.from_dict(plan, model)
    run.on_epoch_begin(0)
    run.on_epoch_end(0, metrics={"max": 0.5})
    run.on_epoch_begin(1)
    assert dict(run.masks) == {}


# What is told


def test_the_trace_says_whose_step_was_held_by_whose_hand_and_why():
    with capture_logs() as lines:
        pruned(schedule({"floor": 0.9}), [0.95, 0.62, 0.95, 0.95])
    assert [line for line in lines if line["event"] == "pruning vetoed"] == [
        {
            "event": "pruning vetoed",
            "log_level": "info",
            "hook": "on_epoch_begin",
            "policy": "policies[0]",
            "component": "AutomatedGradualPruner 'agp'",
            "plugin": "prunekit-agp-pruner",
            "version": "0.1.0",
            "epoch": 2,
            "parameters": ["weight"],
            "by": "AccuracyGuard 'guard', policies[1], prunekit-accuracy-guard 0.1.0",
            "reason": "metric 'max' was 0.62 after epoch 1, below the floor 0.9",
        }
    ]


def test_a_ceiling_has_words_of_its_own():
    with capture_logs() as lines:
        pruned(schedule({"ceiling": 0.25}), [0.5, 0.5], "min")
    reasons = [line["reason"] for line in lines if line["event"] == "pruning vetoed"]
    assert reasons == ["metric 'min' was 0.5 after epoch 0, above the ceiling 0.25"]


def test_a_metric_just_below_the_floor_is_not_rounded_to_it():
    with capture_logs() as lines:
        pruned(schedule({"floor": 0.9}), [0.89999999, 0.9])
    reasons = [line["reason"] for line in lines if line["event"] == "pruning vetoed"]
    assert reasons == ["metric 'max' was 0.89999999 after epoch 0, below the floor 0.9"]


@pytest.mark.parametrize(
    ("guard", "metrics", "message"),
    [
        (
            {"floor": 0.9},
            None,
            "AccuracyGuard needs the metric 'max' of each epoch, got none; call scheduler.report(max=…) before it "
            "ends, or scheduler.on_epoch_end(epoch, metrics={'max': …})",
        ),
        (
            {"ceiling": 0.9},
            {"max": 1.0, "top5": 1.0},
            "AccuracyGuard needs the metric 'min' of each epoch, got only 'max', 'top5'; call scheduler.report(min=…) "
            "before it ends, or scheduler.on_epoch_end(epoch, metrics={'min': …})",
        ),
    ],
)
def test_a_loop_that_does_not_give_the_metric_is_told_what_to_call(guard, metrics, message):
    run = CompressionScheduler.from_dict(schedule(guard), network())
    run.on_epoch_begin(0)
    with pytest.raises(PrunekitError) as error:
        run.on_epoch_end(0, metrics=metrics)
    assert str(error.value) == message
    assert error.value.__notes__ == [
        "raised in on_epoch_end by AccuracyGuard 'guard', policies[1], prunekit-accuracy-guard 0.1.0"
    ]


# Resuming


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_run_decides_as_the_straight_one(tmp_path: Path, cut: int):
    metrics = [0.95, 0.6, 0.8, 0.95, 0.95, 0.95]
    model = network()
    run = CompressionScheduler.from_dict(schedule({"floor": 0.9}), model)
    counts = []
    for epoch, metric in enumerate(metrics):
        if epoch == cut:
            torch.save((model.state_dict(), run.state_dict()), tmp_path / "state")
            weights, state = torch.load(tmp_path / "state", weights_only=True)
            model = network()
            model.load_state_dict(weights)
            run = CompressionScheduler.from_dict(schedule({"floor": 0.9}), model)
            run.load_state_dict(state)
        run.on_epoch_begin(epoch)
        counts.append(int((model.weight == 0).sum()))
        run.on_epoch_end(epoch, metrics={"max": metric})
    assert counts == [0, 4, 4, 4, 8, 8]


def test_the_reason_after_a_resume_names_the_epoch_of_the_metric():
    first = CompressionScheduler.from_dict(schedule({"floor": 0.9}), network())
    first.on_epoch_begin(0)
    first.on_epoch_end(0, metrics={"max": 0.5})
    with capture_logs() as lines:
        second = CompressionScheduler.from_dict(schedule({"floor": 0.9}), network())
        second.load_state_dict(first.state_dict())
        second.on_epoch_begin(1)
    reasons = [line["reason"] for line in lines if line["event"] == "pruning vetoed"]
    assert reasons == ["metric 'max' was 0.5 after epoch 0, below the floor 0.9"]


# What is refused


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ("", "5:5: extensions.guard: AccuracyGuard needs 'floor' (for the metric 'max') or 'ceiling' (for 'min')"),
        (
            "    floor: 0.9\n    ceiling: 0.5",
            "7:14: extensions.guard.ceiling: must not stand beside floor 0.9, got 0.5",
        ),
        ("    floor: .nan", "6:12: extensions.guard.floor: must be a finite number, got nan"),
        ("    ceiling: .inf", "6:14: extensions.guard.ceiling: must be a finite number, got inf"),
        ("    flor: 0.9", "6:5: extensions.guard.flor: AccuracyGuard has no argument 'flor'; did you mean 'floor'?"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_stands(tmp_path: Path, guard: str, message: str):
    file = tmp_path / "schedule.yaml"
    file.write_text(f"""\
version: 1
pruners: {{}}
extensions:
  guard:
    class: AccuracyGuard
{guard}
policies:
  - extension: {{instance_name: guard}}
    epochs: [0]
""")
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_yaml(file, network())
    assert str(error.value) == f"{file}:{message}"


@pytest.mark.parametrize("arguments", [{"floor": 0.5}, {"ceiling": 0.4}], ids=str)
def test_it_keeps_the_laws(arguments):
    check_component(AccuracyGuard, **arguments)
