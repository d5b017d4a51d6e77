"""SNIP: which connections the first gradients keep, and when."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MLP, GivenGradients
from hypothesis import given, settings, strategies as st
from prunekit_snip_pruner import SNIPPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace
from prunekit.testing import check_component

README = Path(__file__).parents[1] / "README.md"


def start(
    net: nn.Module, rate: float = 0.0, window: Any = None, **keys: Any
) -> tuple[CompressionScheduler, torch.optim.Optimizer]:
    schedule = {
        "version": 1,
        "pruners": {"snip": {"class": "SNIPPruner", "weights": "*", **keys}},
        "policies": [{"pruner": {"instance_name": "snip"}, **(window or {"epochs": [0]})}],
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    return CompressionScheduler.from_dict(schedule, net, optimizer, trace=Trace(level="warning")), optimizer


def train(net: nn.Module, run: CompressionScheduler, optimizer: Any, *epochs: list[dict[str, list[float]]]) -> Any:
    """Epochs of gradients; the masks after each mini-batch, of vectors by name."""
    seen = []
    for epoch in run.epochs(len(epochs)):
        for gradients in run.minibatches(epochs[epoch]):
            optimizer.zero_grad()
            net(gradients).backward()
            optimizer.step()
            seen.append({name: mask.tolist() for name, mask in run.masks.items()})
    return seen


# Which weights


def test_the_lowest_of_weight_times_gradient_go_of_all_tensors_together():
    net = GivenGradients(a=[1.0, -2.0, 3.0, 4.0], b=[10.0, 1.0])
    run, optimizer = start(net, desired_sparsity=0.5)
    gradients = {"a": [5.0, 4.0, 0.0, -1.0], "b": [0.1, 6.0]}
    # |w g| is 5, 8, 0, 4 and 1, 6: the three lowest are 0, 1 and 4.
    (masks,) = train(net, run, optimizer, [gradients])
    assert masks == {"a": [True, True, False, False], "b": [False, True]}
    assert (net.a.tolist(), net.b.tolist()) == ([1, -2, 0, 0], [0, 1])


def test_it_is_the_derivative_of_the_loss_by_a_switch_on_each_connection_normalised():
    """Equations 4 to 6, computed as they stand there."""
    net = MLP()
    x, y = torch.randn(16, 12), torch.randint(0, 4, (16,))
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    switches = {name: torch.ones_like(p, requires_grad=True) for name, p in weights.items()}
    switched = {name: switches[name] * weights[name].detach() for name in weights}
    loss = nn.functional.cross_entropy(torch.func.functional_call(net, switched, (x,)), y)
    g = torch.cat([part.abs().flatten() for part in torch.autograd.grad(loss, list(switches.values()))])
    s = g / g.sum()
    kappa = 128 - math.floor(0.7 * 128)
    threshold = s.sort(descending=True).values[kappa - 1]

    run, optimizer = start(net, desired_sparsity=0.7, weights="*.weight")
    for _ in run.epochs(1):
        for _ in run.minibatches([0]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    assert torch.equal(torch.cat([run.masks[name].flatten() for name in weights]), s >= threshold)


@pytest.mark.parametrize(("sparsity", "gone"), [(0.24, 0), (0.25, 1), (0.74, 2), (1, 4)])
def test_the_sparsity_says_how_many_go_rounded_down(sparsity, gone):
    net = GivenGradients(a=[1.0, 2.0, 3.0], b=[4.0])
    run, optimizer = start(net, desired_sparsity=sparsity)
    train(net, run, optimizer, [{"a": [1.0] * 3, "b": [1.0]}])
    assert sum(int((~mask).sum()) for mask in run.masks.values()) == gone


def test_of_equal_sensitivities_those_that_come_first_go():
    net = GivenGradients(a=[1.0, -1.0], b=[1.0, 1.0])
    run, optimizer = start(net, desired_sparsity=0.75)
    assert train(net, run, optimizer, [{"a": [1.0, 1.0], "b": [-1.0, 1.0]}]) == [
        {"a": [False, False], "b": [False, True]}
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sensitivities_of_16_bits_are_compared_in_32(dtype):
    net = GivenGradients(a=torch.tensor([1.0078125, 1.0, 0.0, 0.0], dtype=dtype))
    run, optimizer = start(net, desired_sparsity=0.75)
    # 1.0078125² and 1.0078125 · 1.015625, next to each other, are one number in bfloat16.
    net.a.data[1] = 1.015625
    train(net, run, optimizer, [{"a": [1.0078125, 1.0078125, 0.0, 0.0]}])
    assert run.masks["a"].tolist() == [False, True, False, False]


def test_only_weights_are_pruned():
    net = GivenGradients(a=[1.0, 2.0], b=[0.1, 0.1])
    run, optimizer = start(net, weights="a", desired_sparsity=0.5)
    assert train(net, run, optimizer, [{"a": [1.0, 1.0], "b": [1.0, 1.0]}]) == [{"a": [False, True]}]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=20),
    st.floats(0, 1),
    st.sampled_from([0.25, 4.0, -1.0]),
)
def test_the_count_is_exact_and_the_scale_of_weights_and_of_the_loss_does_not_matter(units, sparsity, scale):
    def mask(weight_scale: float, gradient_scale: float) -> list[bool]:
        net = GivenGradients(a=[w * weight_scale for w, _ in units])
        run, optimizer = start(net, desired_sparsity=sparsity)
        seen = train(net, run, optimizer, [{"a": [g * gradient_scale for _, g in units]}])
        return seen[0].get("a", [True] * len(units))

    plain = mask(1.0, 1.0)
    assert plain.count(False) == math.floor(sparsity * len(units))
    assert mask(scale, 1.0) == mask(1.0, scale) == plain


# When


def test_the_masks_are_set_before_the_first_step_and_stay():
    net = GivenGradients(a=[1.0, 2.0])
    run, optimizer = start(net, rate=1.0, desired_sparsity=0.5, window={"epochs": [0, 1, 2]})
    one, other = {"a": [1.0, 1.0]}, {"a": [9.0, 0.25]}
    seen = train(net, run, optimizer, [one, other], [other], [other])
    assert seen == [{"a": [False, True]}] * 4
    assert net.a.tolist() == [0, 2 - 1 - 3 * 0.25]


def test_it_is_the_first_mini_batch_of_the_first_active_epoch():
    net = GivenGradients(a=[1.0, 2.0])
    run, optimizer = start(net, desired_sparsity=0.5, window={"epochs": [1]})
    seen = train(net, run, optimizer, [{"a": [1.0, 1.0]}] * 2, [{"a": [9.0, 1.0]}])
    assert seen == [{}, {}, {"a": [True, False]}]


def test_gradients_that_are_there_before_training_are_not_looked_at():
    net = GivenGradients(a=[1.0, 2.0])
    net.a.grad = torch.tensor([100.0, 0.0])
    run, optimizer = start(net, desired_sparsity=0.5)
    run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    assert train(net, run, optimizer, [{"a": [1.0, 1.0]}]) == [{"a": [False, True]}]


def test_gradients_of_several_batches_are_averaged_and_go_with_the_first_weights():
    net = GivenGradients(a=[1.0, 2.0, 3.0])
    run, optimizer = start(net, rate=1.0, desired_sparsity=0.34, batches=3)
    batches = [{"a": [2.0, 2.0, 0.0]}, {"a": [2.0, -2.0, 1.0]}, {"a": [2.0, 0.1, 0.0]}]
    # Summed: 6, 0.1 and 1, times 1, 2 and 3. The weights in the end would be -3, 2 and 2.
    assert train(net, run, optimizer, batches) == [{}, {}, {"a": [True, False, True]}]


def test_with_accumulated_gradients_one_batch_is_all_that_were_accumulated():
    net = GivenGradients(a=[1.0, 2.0])
    run, optimizer = start(net, rate=1.0, desired_sparsity=0.5)
    for _ in run.epochs(1):
        for minibatch, gradients in enumerate(run.minibatches([{"a": [3.0, 2.0]}, {"a": [3.0, -1.5]}])):
            net(gradients).backward()
            if minibatch == 1:
                optimizer.step()
    assert run.masks["a"].tolist() == [True, False]  # 6 · 1 and 0.5 · 2


def test_where_the_window_ends_too_early_what_was_seen_decides_and_a_warning_says_so():
    net = GivenGradients(a=[1.0, 2.0])
    with capture_logs() as lines:
        run, optimizer = start(net, desired_sparsity=0.5, batches=10)
        seen = train(net, run, optimizer, [{"a": [3.0, 1.0]}] * 2, [{"a": [1.0, 9.0]}])
    assert seen == [{}, {"a": [True, False]}, {"a": [True, False]}]
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert [(line["event"], line["batches"], line["seen"]) for line in warnings] == [
        ("the window ends before all batches were seen", 10, 2)
    ]


def test_a_run_stopped_between_batches_goes_on_with_what_it_has_seen():
    batches = [{"a": [5.0, 1.0]}, {"a": [1.0, 1.0]}, {"a": [1.0, 1.0]}]
    net = GivenGradients(a=[1.0, 2.0])
    run, optimizer = start(net, desired_sparsity=0.5, batches=3, window={"epochs": [0, 1]})
    train(net, run, optimizer, batches[:2])
    state = run.state_dict()
    other = GivenGradients(a=[9.0, 9.0])
    resumed, other_optimizer = start(other, desired_sparsity=0.5, batches=3, window={"epochs": [0, 1]})
    resumed.load_state_dict(state)
    train(other, resumed, other_optimizer, [], batches[2:])
    assert resumed.masks["a"].tolist() == [True, False]  # 7 · 1 and 3 · 2


# What is warned of


def test_a_parameter_without_a_gradient_is_left_out_with_a_warning():
    net = GivenGradients(a=[1.0, 2.0], b=[3.0, 4.0], c=[5.0, 6.0])
    net.b.requires_grad = False
    with capture_logs() as lines:
        run, optimizer = start(net, desired_sparsity=0.5)
        seen = train(net, run, optimizer, [{"a": [1.0, 1.0], "b": [1.0, 1.0]}])
    assert seen == [{"a": [False, True]}]  # floor(0.5 · 2)
    warned = [(line["event"], line["parameter"]) for line in lines if line["log_level"] == "warning"]
    assert warned == [("no gradient, left out of the ranking", name) for name in ("b", "c")]


def test_a_tensor_of_which_nothing_is_left_is_warned_of():
    net = GivenGradients(a=[1.0, 2.0], b=[3.0, 4.0])
    with capture_logs() as lines:
        run, optimizer = start(net, desired_sparsity=0.5)
        train(net, run, optimizer, [{"a": [1.0, 1.0], "b": [1.0, 1.0]}])
    warned = [(line["event"], line["parameter"]) for line in lines if line["log_level"] == "warning"]
    assert warned == [("no weight is left", "a")]


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": "fc9.weight"}, "weights", "'fc9.weight' selects nothing in the model"),
        ({"desired_sparsity": 75}, "desired_sparsity", "must be less than or equal to 1, got 75"),
        ({"batches": 0}, "batches", "must be greater than or equal to 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        start(MLP(), **{"weights": "*.weight", "desired_sparsity": 0.5, **keys})
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.snip.{path}", True)


# The schedule of the card


def test_the_schedule_of_the_card_prunes_what_it_says_to_the_end():
    text = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    net = MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    run = CompressionScheduler(Schedule.from_text(text), net, optimizer, trace=Trace(level="error"))
    data = [(torch.randn(8, 12), torch.randint(0, 4, (8,))) for _ in range(3)]
    for _ in run.epochs(3):
        for x, y in run.minibatches(data):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
            assert int((net.fc1.weight == 0).sum() + (net.fc2.weight == 0).sum()) == 96


# The laws of every component


@pytest.mark.parametrize("keys", [{}, {"batches": 6}])
def test_it_keeps_the_laws(keys):
    check_component(SNIPPruner, weights="*.weight", desired_sparsity=0.5, **keys)
