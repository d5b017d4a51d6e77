"""Gradient ranking: the score, over which mini-batches, which filters go, by every key; and what is refused."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_gradient_ranked_pruner import GradientRankedFilterPruner, GradientRankedFilterPruner_AGP
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, ScheduleError, Trace, load_plugins
from prunekit.testing import check_component

SILENT = Trace(level="error")
PLUGINS = load_plugins()  # once: it takes longer than all else in a test


def model(**weights: Any) -> nn.Module:
    """A model with a parameter `a.weight` for `a=[…]`."""
    net = nn.Module()
    for name, values in weights.items():
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.as_tensor(values).clone())
        net.add_module(name, layer)
    return net


def scheduler(net: nn.Module, trace: Trace | None = SILENT, epochs: Any = (0, 1), **keys: Any) -> CompressionScheduler:
    keys = {"weights": "a.weight", "granularity": {"dim": 0}, "desired_sparsity": 0.5, **keys}
    if "final_sparsity" in keys:
        del keys["desired_sparsity"]
    keys = {key: value for key, value in keys.items() if value is not None}
    suffix = "_AGP" if "final_sparsity" in keys else ""
    pruner = {"class": f"GradientRankedFilterPruner{suffix}", **keys}
    policy = {"pruner": {"instance_name": "p"}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, net, trace=trace, plugins=PLUGINS)


def batch(run: CompressionScheduler, gradient: Any, epoch: int = 0, name: str = "a.weight") -> None:
    """A mini-batch with this gradient; weights do not move."""
    parameter = run.model.get_parameter(name)
    run.on_minibatch_begin(epoch, 0, 1)
    parameter.grad = None if gradient is None else torch.as_tensor(gradient, dtype=parameter.dtype)
    run.before_parameter_optimization(epoch, 0, 1)
    run.on_minibatch_end(epoch, 0, 1)


def gone(run: CompressionScheduler, name: str = "a.weight", dim: int = 0) -> list[int]:
    if name not in run.masks:
        return []
    mask = run.masks[name].movedim(dim, 0).flatten(1)
    assert torch.equal(mask.all(1), mask.any(1))
    return (~mask[:, 0]).nonzero().flatten().tolist()


def pruned(weights: Any, gradient: Any, dim: int = 0, **keys: Any) -> list[int]:
    """What goes in epoch 0 with this gradient in the parameter."""
    net = model(a=weights)
    run = scheduler(net, **keys)
    net.a.weight.grad = torch.as_tensor(gradient, dtype=net.a.weight.dtype)
    run.on_epoch_begin(0)
    return gone(run, dim=dim)


# The score, by its definition

WEIGHTS, GRADIENT = [[1.0, 1.0], [3.0, 4.0], [-2.0, 0.5], [9.0, 9.0]], [[0.5, 0.5], [4.0, -3.0], [1.0, 1.0], [0.1, 0.0]]
"""Σ w · ∂L/∂w of the rows: 1, 12 - 12 = 0, -1.5 and 0.9."""


def test_the_filters_with_the_smallest_magnitude_of_the_sum_go() -> None:
    # By Σ |w · ∂L/∂w| row 1 would stay (24), by the signed sum row 2 would be the first to go, by |w| row 0.
    assert pruned(WEIGHTS, GRADIENT) == [1, 3]


def test_the_score_is_the_first_order_change_of_the_loss_where_the_filter_becomes_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, bias=False)
    x = torch.randn(5, 3)
    loss = lambda: (layer(x) * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum()  # linear in the weights: first order is all
    run = scheduler(nn.Sequential(layer), weights="0.weight", desired_sparsity=0.5)
    loss().backward()
    changes = []
    for row in range(4):
        with torch.no_grad():
            kept, before = layer.weight[row].clone(), loss()
            layer.weight[row] = 0
            changes.append(float((loss() - before).abs()))
            layer.weight[row] = kept
    run.on_epoch_begin(0)
    assert gone(run, "0.weight") == sorted(sorted(range(4), key=changes.__getitem__)[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_products_are_wide_in_every_type(dtype: torch.dtype) -> None:
    # In float16 300 · 300 is infinite, in bfloat16 256 + 1 is 256.
    net = model(a=torch.tensor([[300.0, 1.0], [256.0, 1.0], [256.0, 0.0]], dtype=dtype))
    run = scheduler(net, desired_sparsity=0.67)
    net.a.weight.grad = torch.tensor([[300.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=dtype)
    run.on_epoch_begin(0)
    assert gone(run) == [1, 2]
    net = model(a=torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=dtype))
    run = scheduler(net)
    net.a.weight.grad = torch.ones(2, 2, dtype=dtype)
    run.on_epoch_begin(0)
    assert gone(run) == [1]


@pytest.mark.parametrize("scale", [2.0**-20, 65536.0])
def test_a_scale_of_the_loss_does_not_change_the_ranking(scale: float) -> None:
    assert pruned(WEIGHTS, torch.tensor(GRADIENT) * scale) == [1, 3]


# Over which mini-batches


def test_the_scores_of_mini_batches_are_averaged_not_the_gradients() -> None:
    run = scheduler(model(a=[[1.0], [1.0]]), epochs=[1])
    run.on_epoch_begin(0)
    for gradient in ([[5.0], [1.0]], [[-5.0], [1.0]]):  # the mean gradient of row 0 is zero, its mean score 5
        batch(run, gradient)
    run.on_epoch_end(0)
    run.on_epoch_begin(1)
    assert gone(run) == [1]


def test_it_looks_from_the_epoch_before_the_first_active_one_and_anew_after_each_pruning() -> None:
    run, seen = scheduler(model(a=[[1.0], [1.0], [1.0]]), epochs=[2, 3], desired_sparsity=0.34), []
    for epoch, gradient in enumerate(([[0.0], [9.0], [9.0]], [[5.0], [1.0], [2.0]], [[5.0], [9.0], [2.0]], None)):
        run.on_epoch_begin(epoch)
        seen.append(gone(run))
        batch(run, gradient, epoch)
        run.on_epoch_end(epoch)
    # Epoch 0 does not count; in epoch 2 filter 1 is zero and scores zero whatever its gradient.
    assert seen == [[], [], [1], [1]]


def test_mini_batches_whose_gradients_are_not_finite_do_not_count() -> None:
    run = scheduler(model(a=[[1.0], [1.0]]), epochs=[1])
    run.on_epoch_begin(0)
    for gradient in ([[math.inf], [1.0]], [[math.nan], [1.0]], [[1.0], [2.0]]):
        batch(run, gradient)
    assert run.state_dict()["components"]["pruners.p"]["seen"]["a.weight"].tolist() == [1, 2, 1]
    run.on_epoch_begin(1)
    assert gone(run) == [0]


def test_without_an_observation_the_gradient_in_the_parameter_is_taken() -> None:
    assert pruned([[1.0], [1.0]], [[2.0], [1.0]]) == [1]
    assert pruned([[1.0], [1.0]], [[2.0], [math.nan]]) == []


def test_without_a_gradient_nothing_is_pruned_and_one_warning_says_so() -> None:
    with capture_logs() as lines:
        run = scheduler(model(a=[[1.0], [1.0]], b=[[1.0], [1.0]]), trace=None, weights=["a.weight", "b.weight"])
        run.on_epoch_begin(0)
        run.on_epoch_begin(1)
    assert dict(run.masks) == {}
    warnings = [(line["event"], line["epoch"]) for line in lines if line["log_level"] == "warning"]
    assert warnings == [("no gradient yet, nothing pruned", 0)]


def test_a_tensor_without_a_gradient_does_not_keep_others_from_being_pruned() -> None:
    net = model(a=[[1.0], [1.0]], b=[[1.0], [1.0]])
    run = scheduler(net, weights=["a.weight", "b.weight"])
    net.b.weight.grad = torch.tensor([[1.0], [2.0]])
    run.on_epoch_begin(0)
    assert list(run.masks) == ["b.weight"]


def test_a_resumed_run_goes_on_with_what_was_observed() -> None:
    run = scheduler(model(a=[[1.0], [1.0]]), epochs=[1])
    run.on_epoch_begin(0)
    batch(run, [[2.0], [1.0]])
    run.on_epoch_end(0)
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = scheduler(model(a=[[1.0], [1.0]]), epochs=[1])
    other.load_state_dict(torch.load(file, weights_only=True))
    other.on_epoch_begin(1)
    assert gone(other) == [1]


# Keys


def filters(values: list[float], *shape: int) -> Tensor:
    return torch.tensor(values).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


@pytest.mark.parametrize("group_type", ["3D", "Filters"])
def test_the_filters_of_a_convolution_are_ranked(group_type: str) -> None:
    weights = filters([3.0, 1.0, 2.0, 4.0], 4, 2, 3, 3)
    assert pruned(weights, torch.ones(4, 2, 3, 3), group_type=group_type, granularity=None) == [1, 2]


def test_other_structures_are_ranked_by_granularity() -> None:
    weights = [[1.0, 5.0, 2.0, 6.0]]
    assert pruned(weights, [[1.0, 1.0, 1.0, 1.0]], granularity={"dim": 1}, dim=1) == [0, 2]
    assert pruned(weights, [[1.0, 1.0, 1.0, 1.0]], granularity={"shape": [1, 2]}, dim=1) == [0, 1]
    assert pruned(weights, [[1.0, -1.0, 1.0, -9.0]], granularity={"dim": 1, "size": 2}, dim=1) == [0, 1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"desired_sparsity": 0.25}, [0]),
        ({"desired_sparsity": 0.74}, [0, 1]),
        ({"desired_sparsity": 0.74, "rounding_fn": "round"}, [0, 1, 2]),
        ({"desired_sparsity": 0.75, "group_size": 2}, [0, 1]),
        ({"desired_sparsity": 1}, [0, 1, 2, 3]),
        ({"desired_sparsity": 0}, []),
    ],
)
def test_sparsity_and_rounding_say_how_many_go(keys: dict[str, Any], expected: list[int]) -> None:
    assert pruned([[1.0], [2.0], [3.0], [4.0]], [[1.0]] * 4, **keys) == expected


def test_noise_disturbs_the_ranking_by_its_seed() -> None:
    weights, gradient = torch.arange(1.0, 33).reshape(32, 1), torch.ones(32, 1)
    one, same, other = (pruned(weights, gradient, noise=1.0, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert list(range(16)) not in (one, other)


def test_followers_lose_the_filters_of_their_leader() -> None:
    for dependency, expected in ((None, [1]), ("Leader", [0])):
        net = model(a=[[1.0], [2.0]], b=[[2.0], [1.0]])
        run = scheduler(net, weights=["a.weight", "b.weight"], group_dependency=dependency)
        for layer in (net.a, net.b):
            layer.weight.grad = torch.ones(2, 1)
        run.on_epoch_begin(0)
        assert (gone(run, "a.weight"), gone(run, "b.weight")) == ([0], expected)


@pytest.mark.parametrize(("curve", "counts"), [("cubic", [2, 7, 8]), ("linear", [2, 5, 8])])
def test_agp_reaches_its_final_sparsity_along_the_curve(curve: str, counts: list[int]) -> None:
    net = model(a=torch.arange(1.0, 17).reshape(16, 1))
    keys: dict[str, Any] = {"initial_sparsity": 0.125, "final_sparsity": 0.5, "curve": curve}
    run, seen = scheduler(net, epochs=[1, 2, 3], **keys), []
    for epoch in range(4):
        run.on_epoch_begin(epoch)
        seen.append(gone(run))
        batch(run, torch.ones(16, 1), epoch)
        run.on_epoch_end(epoch)
    assert seen == [[], *(list(range(count)) for count in counts)]


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"group_type": "Channels", "granularity": None}, "group_type", "'3D' or 'Filters', got 'Channels'"),
        ({"granularity": None}, "granularity", "say either group_type or granularity"),
        ({"granularity": {"dim": 3}}, "weights", "'a.weight' has shape [2, 1] and no dimension 3"),
        ({"weights": "b.weight"}, "weights", "'b.weight' selects nothing in the model"),
        ({"desired_sparsity": 1.5}, "desired_sparsity", "must be less than or equal to 1, got 1.5"),
        ({"initial_sparsity": 0.5, "final_sparsity": 0.5}, "final_sparsity", "must be above initial_sparsity 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        scheduler(model(a=[[1.0], [1.0]]), **keys)
    (problem,) = error.value.problems
    assert problem.path == f"pruners.p.{path}"
    assert message in problem.message


# For any weights

NUMBERS = st.integers(-3, 3).map(float)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.floats(0, 0.99), st.data())
def test_the_budget_is_kept_and_applying_it_again_changes_nothing(
    pairs: list[tuple[float, float]], sparsity: float, data: st.DataObject
) -> None:
    weights, gradient = (torch.tensor(values).reshape(-1, 1) for values in zip(*pairs, strict=True))
    net = model(a=weights)
    run = scheduler(net, desired_sparsity=sparsity)
    net.a.weight.grad = gradient.clone()
    run.on_epoch_begin(0)
    changes = [abs(weight * slope) for weight, slope in pairs]
    count = int(sparsity * len(pairs))
    first = gone(run)
    assert first == sorted(sorted(range(len(pairs)), key=lambda index: (changes[index], index))[:count])
    run.on_epoch_begin(1)
    assert gone(run) == first
    order = data.draw(st.permutations(range(len(pairs))))
    moved = pruned(weights[order], gradient[order], desired_sparsity=sparsity)
    assert sorted(changes[order[index]] for index in moved) == sorted(changes[index] for index in first)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9).map(float), min_size=4, max_size=9))
def test_under_agp_what_is_pruned_stays_pruned_while_weights_stand_still(values: list[float]) -> None:
    net, before = model(a=torch.tensor(values).reshape(-1, 1)), set()
    run = scheduler(net, epochs=[0, 1, 2], initial_sparsity=0.25, final_sparsity=0.9)
    net.a.weight.grad = torch.ones(len(values), 1)
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        assert before <= set(gone(run))
        before = set(gone(run))
    assert len(before) == int(0.9 * len(values))


# A schedule of the card, and the laws


def test_the_first_schedule_of_the_card_prunes_what_the_card_says(tmp_path: Path) -> None:
    card = Path(__file__).parents[1] / "README.md"
    (text, *_) = card.read_text(encoding="utf-8").split("```yaml\n")[1:]
    (tmp_path / "card.yaml").write_text(text.partition("```")[0], encoding="utf-8")
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 8, 3))
    net.add_module("conv2", nn.Conv2d(8, 8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    run = CompressionScheduler.from_yaml(tmp_path / "card.yaml", net, optimizer, trace=SILENT, plugins=PLUGINS)
    for _ in run.epochs(12):
        for images in run.minibatches([torch.randn(2, 3, 6, 6)] * 2):
            optimizer.zero_grad()
            run.total_loss(net(images).square().mean()).backward()
            optimizer.step()
    assert {name: run.sparsity(name) for name in run.masks} == {"conv1.weight": 0.5, "conv2.weight": 0.5}


FILTERS = {"weights": "conv?.weight", "group_type": "Filters"}


def test_it_keeps_the_laws() -> None:
    check_component(GradientRankedFilterPruner, desired_sparsity=0.5, **FILTERS)


def test_agp_keeps_the_laws() -> None:
    check_component(GradientRankedFilterPruner_AGP, initial_sparsity=0.25, final_sparsity=0.5, **FILTERS)
