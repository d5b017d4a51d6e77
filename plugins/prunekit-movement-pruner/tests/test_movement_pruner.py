"""Movement pruning: what the scores are, whom they prune, and that pruned weights can come back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MLP, GivenGradients
from hypothesis import given, settings, strategies as st
from prunekit_movement_pruner import MovementPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Trace, Window
from prunekit.components import Context
from prunekit.testing import check_component

README = Path(__file__).parents[1] / "README.md"
STRAIGHT_THROUGH = {"mask_on_forward_only": True, "use_double_copies": True, "keep_mask": True}


def start(
    net: nn.Module, rate: float = 0.0, window: Any = None, args: Any = None, **keys: Any
) -> tuple[CompressionScheduler, torch.optim.Optimizer]:
    keys = {"weights": "*", "initial_sparsity": 0, "final_sparsity": 0.5, **keys}
    schedule = {
        "version": 1,
        "pruners": {"movement": {"class": "MovementPruner", **keys}},
        "policies": [{"pruner": {"instance_name": "movement", "args": args or {}}, **(window or {"epochs": [1]})}],
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    return CompressionScheduler.from_dict(schedule, net, optimizer, trace=Trace(level="warning")), optimizer


def train(net: nn.Module, run: CompressionScheduler, optimizer: Any, *epochs: list[dict[str, list[float]]]) -> Any:
    """Epochs of gradients; the masks in each epoch, of vectors by name."""
    seen = []
    for epoch in run.epochs(len(epochs)):
        seen.append({name: mask.tolist() for name, mask in run.masks.items()})
        for gradients in run.minibatches(epochs[epoch]):
            optimizer.zero_grad()
            net(gradients).backward()
            optimizer.step()
    return seen


def scores(run: CompressionScheduler) -> dict[str, list[float]]:
    saved = run.state_dict()["components"]["pruners.movement"]["scores"]
    return {name: score.tolist() for name, score in saved.items()}


# The scores


def test_the_importance_is_minus_the_sum_of_weight_times_gradient_over_mini_batches():
    net = GivenGradients(a=[1.0, 2.0, -3.0])
    run, optimizer = start(net, rate=1.0)
    train(net, run, optimizer, [{"a": [1.0, 0.5, 1.0]}, {"a": [2.0, -1.0, 0.0]}], [])
    # First 1 · 1, 2 · 0.5 and -3 · 1, then with the weights 0, 1.5 and -4: 0, -1.5 and 0.
    assert scores(run) == {"a": [-1.0, -1 + 1.5, 3.0]}


def test_the_learning_rate_of_the_optimizer_does_not_matter():
    seen = []
    for rate in (0.0, 1e-9):
        net = GivenGradients(a=[1.0, 2.0, -3.0])
        run, optimizer = start(net, rate=rate)
        train(net, run, optimizer, [{"a": [1.0, 0.5, 1.0]}], [])
        seen.append(scores(run))
    assert seen == [{"a": [-1.0, -1.0, 3.0]}] * 2


def test_scores_are_gathered_from_the_epoch_before_the_first_active_one_to_the_last_active_one():
    net = GivenGradients(a=[1.0, 1.0])
    run, optimizer = start(net, window={"epochs": [2, 3]}, args=STRAIGHT_THROUGH)
    train(net, run, optimizer, *[[{"a": [10.0**epoch, 0.0]}] for epoch in range(5)])
    assert scores(run) == {"a": [-1110.0, 0.0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_16_bit_weights_are_summed_in_32(dtype):
    net = GivenGradients(a=torch.tensor([1.0, 1.0], dtype=dtype))
    run, optimizer = start(net)
    train(net, run, optimizer, [{"a": [256.0, 1.0]}] + [{"a": [1.0, 1.0]}] * 100, [])  # 256 + 1 is 256 in bfloat16
    assert scores(run) == {"a": [-356.0, -101.0]}
    assert net.a.dtype == dtype


def test_a_score_is_what_a_gradient_step_on_a_mask_that_lets_gradients_through_makes_of_it():
    """Section 4: a = (W ⊙ M) x with the gradient of M as if M were S, so S moves by -∂L/∂S with α_S = 1."""
    net, x, y = MLP(), torch.randn(6, 12), torch.randint(0, 4, (6,))
    run, optimizer = start(net, weights="fc1.weight", window={"epochs": [1, 2]}, args=STRAIGHT_THROUGH)
    expected, raw = torch.zeros(8, 12), net.fc1.weight.detach().clone()
    for _ in run.epochs(3):
        for _ in run.minibatches([0, 1]):
            mask = run.masks.get("fc1.weight", torch.ones(8, 12)).float()
            importance = mask.clone().requires_grad_()
            masked = {"fc1.weight": raw * importance}
            loss = nn.functional.cross_entropy(torch.func.functional_call(net, masked, (x,)), y)
            expected -= torch.autograd.grad(loss, importance)[0]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    saved = run.state_dict()["components"]["pruners.movement"]["scores"]["fc1.weight"]
    torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-7)


# Which weights


def test_weights_that_move_towards_zero_go_however_large_they_are():
    net = GivenGradients(a=[1.0, 2.0, 3.0, 4.0])
    run, optimizer = start(net, args={})
    seen = train(net, run, optimizer, [{"a": [1.0, -1.0, 1.0, 0.0]}], [])
    assert seen == [{}, {"a": [False, True, False, True]}]
    assert net.a.tolist() == [0, 2, 0, 4]


def test_of_equal_scores_those_that_come_first_go():
    net = GivenGradients(a=[1.0, 1.0, 1.0, 1.0])
    run, optimizer = start(net)
    assert train(net, run, optimizer, [{"a": [1.0] * 4}], []) == [{}, {"a": [False, False, True, True]}]


def test_each_tensor_is_ranked_by_itself_or_all_together():
    for scope, masks in (
        ("tensor", {"a": [False, False, True, True], "b": [False, True]}),
        ("global", {"a": [False, False, False, True], "b": [True, True]}),
    ):
        net = GivenGradients(a=[1.0, 1.0, 1.0, 1.0], b=[1.0, 1.0])
        run, optimizer = start(net, scope=scope)
        assert train(net, run, optimizer, [{"a": [6.0, 5.0, 4.0, 3.0], "b": [2.0, 1.0]}], []) == [{}, masks]


@pytest.mark.parametrize(
    ("keys", "pruned"),
    [
        ({}, [0, 2, 3, 4]),  # 0, 0.5 · (1 - (2/3)³) = 0.35, 0.5 · (1 - (1/3)³) = 0.48 and 0.5 of 8, rounded down
        ({"curve": "linear"}, [0, 1, 2, 4]),
        ({"curve": "one-shot"}, [4, 4, 4, 4]),
        ({"initial_sparsity": 0.25}, [2, 3, 3, 4]),
        ({"final_sparsity": 1}, [0, 5, 7, 8]),
    ],
)
def test_the_sparsity_rises_along_the_curve(keys, pruned):
    net = GivenGradients(a=[float(i) for i in range(8)])
    run, optimizer = start(net, window={"starting_epoch": 1, "ending_epoch": 5}, **keys)
    seen = train(net, run, optimizer, *[[{"a": [1.0] * 8}]] * 5)
    assert [masks.get("a", []).count(False) for masks in seen[1:]] == pruned


def test_only_weights_are_pruned():
    net = GivenGradients(a=[1.0, 2.0], b=[1.0, 2.0])
    run, optimizer = start(net, weights=["b"])
    assert train(net, run, optimizer, [{"a": [1.0, 1.0], "b": [1.0, 1.0]}], [])[1] == {"b": [True, False]}


def test_nothing_is_pruned_while_no_gradient_has_been_seen():
    net = GivenGradients(a=[1.0, 2.0])
    run, optimizer = start(net, window={"epochs": [0, 1]}, final_sparsity=0.5)
    assert train(net, run, optimizer, [{"a": [1.0, 1.0]}], []) == [{}, {"a": [True, False]}]


# Coming back

SWING = [{"a": [1.0, -1.0]}], [{"a": [-4.0, 0.0]}], []


def test_with_the_three_args_a_pruned_weight_keeps_its_value_and_comes_back_when_its_score_has_risen():
    net = GivenGradients(a=[1.0, 1.0])
    window = {"starting_epoch": 1, "ending_epoch": 3}
    run, optimizer = start(net, window=window, args=STRAIGHT_THROUGH, initial_sparsity=0.5, final_sparsity=0.6)
    seen = train(net, run, optimizer, *SWING)
    assert seen == [{}, {"a": [False, True]}, {"a": [True, False]}]
    assert scores(run) == {"a": [3.0, 1.0]}
    assert net.a.tolist() == [1, 0]  # keep_mask


def test_without_them_it_is_zero_and_its_score_stands_still():
    net = GivenGradients(a=[1.0, 1.0])
    window = {"starting_epoch": 1, "ending_epoch": 3}
    run, optimizer = start(net, window=window, initial_sparsity=0.5, final_sparsity=0.6)
    seen = train(net, run, optimizer, *SWING)
    assert seen == [{}, {"a": [False, True]}, {"a": [False, True]}]
    assert scores(run) == {"a": [-1.0, 1.0]}


def test_masks_may_move_within_an_epoch():
    net = GivenGradients(a=[1.0, 1.0])
    args = {**STRAIGHT_THROUGH, "mini_batch_pruning_frequency": 1}
    run, optimizer = start(net, args=args)
    train(net, run, optimizer, [{"a": [1.0, -1.0]}], [{"a": [-4.0, 0.0]}, {"a": [0.0, 0.0]}])
    assert run.masks["a"].tolist() == [True, False]


# What is warned of and refused


def test_a_parameter_without_a_gradient_is_left_as_it_is_with_a_warning():
    net = GivenGradients(a=[1.0, 2.0], b=[3.0, 4.0])
    with capture_logs() as lines:
        run, optimizer = start(net)
        seen = train(net, run, optimizer, [{"a": [1.0, 1.0]}], [])
    assert seen[1] == {"a": [True, False]}
    warned = [(line["event"], line["parameter"]) for line in lines if line["log_level"] == "warning"]
    assert warned == [("no gradient, left as it is", "b")]


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": "fc9.weight"}, "weights", "'fc9.weight' selects nothing in the model"),
        ({"final_sparsity": 75}, "final_sparsity", "must be less than or equal to 1, got 75"),
        ({"initial_sparsity": 0.5}, "final_sparsity", "must be above initial_sparsity 0.5, got 0.5"),
        ({"scope": "layer"}, "scope", "got 'layer'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        start(MLP(), **{"weights": "*.weight", **keys})
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.movement.{path}", True)


# For any scores


def masks_of(values: dict[str, list[float]], sparsity: float, scope: Any) -> dict[str, list[bool]]:
    pruner = MovementPruner(weights="*", initial_sparsity=0, final_sparsity=1, curve="linear", scope=scope)
    pruner.load_state_dict({"scores": {name: torch.tensor(score) for name, score in values.items()}})
    net = GivenGradients(**values)
    window = Window(0, 1001)
    context = Context(net, {}, Progress(round(sparsity * 1000)), window, dict.fromkeys(values), {})
    return {name: mask.tolist() for name, mask in pruner.compute_masks(dict(net.named_parameters()), context).items()}


vectors = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(deadline=None)
@given(vectors, vectors, st.integers(0, 1000), st.integers(0, 1000), st.sampled_from(["tensor", "global"]))
def test_counts_are_exact_and_masks_nest_while_scores_stand_still(a, b, one, other, scope):
    low, high = sorted([one / 1000, other / 1000])
    looser, tighter = (masks_of({"a": a, "b": b}, sparsity, scope) for sparsity in (low, high))
    for masks, sparsity in ((looser, low), (tighter, high)):
        gone = {name: mask.count(False) for name, mask in masks.items()}
        if scope == "tensor":
            assert [gone.get("a", 0), gone.get("b", 0)] == [
                math.floor(sparsity * len(a)),
                math.floor(sparsity * len(b)),
            ]
        else:
            assert sum(gone.values()) == math.floor(sparsity * (len(a) + len(b)))
    for name, mask in tighter.items():
        assert all(stays <= stayed for stays, stayed in zip(mask, looser.get(name, [True] * 12), strict=False))


# The schedule of the card


def test_the_schedule_of_the_card_ends_where_it_says():
    text = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    net = MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(text), net, optimizer, trace=Trace(level="error"))
    data = [(torch.randn(8, 12), torch.randint(0, 4, (8,))) for _ in range(3)]
    for epoch in run.epochs(10):
        for x, y in run.minibatches(data):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
            if epoch > 7:
                assert (int((net.fc1.weight == 0).sum()), int((net.fc2.weight == 0).sum())) == (72, 24)
    assert (run.sparsity("fc1.weight"), run.sparsity("fc2.weight")) == (0.75, 0.75)


# The laws of every component


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_it_keeps_the_laws(scope):
    check_component(MovementPruner, weights="*.weight", initial_sparsity=0.25, final_sparsity=0.75, scope=scope)
