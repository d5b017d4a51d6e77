"""L2 ranking: which groups go, by every key; where it differs from L1; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_l2_ranked_pruner import L2RankedStructureParameterPruner, L2RankedStructureParameterPruner_AGP
from torch import Tensor, nn

from prunekit import CompressionScheduler, ScheduleError, Trace, load_plugins
from prunekit.testing import check_component, epochs_under_card

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


def rows(*values: float) -> Tensor:
    """A matrix of two columns, its rows constant."""
    return torch.tensor([[value, value] for value in values], dtype=torch.float32)


CLASS = "L2RankedStructureParameterPruner"
DEFAULT: dict[str, Any] = {"desired_sparsity": 0.5}


def scheduler(
    net: nn.Module,
    epochs: Any = range(5),
    args: dict[str, Any] | None = None,
    trace: Trace | None = SILENT,
    **keys: Any,
) -> CompressionScheduler:
    fixed = {} if "final_sparsity" in keys else DEFAULT
    groups = {} if keys.keys() & {"granularity", "group_type"} else {"granularity": {"dim": 0}}
    pruner = {"class": CLASS if fixed else f"{CLASS}_AGP", "weights": "a.weight", **fixed, **groups, **keys}
    policy = {"pruner": {"instance_name": "p", **({"args": args} if args else {})}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, net, trace=trace, plugins=PLUGINS)


def gone(mask: Tensor, dim: int = 0) -> list[int]:
    """The indices along a dimension that are pruned; each is kept or pruned whole."""
    flat = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(flat.all(1), flat.any(1))
    return (~flat[:, 0]).nonzero().flatten().tolist()


def pruned(net: nn.Module, dim: int = 0, **keys: Any) -> list[int] | dict[str, list[int]]:
    """What the first epoch prunes: of `a.weight` alone, or by parameter."""
    run = scheduler(net, **keys)
    run.on_epoch_begin(0)
    found = {name.removesuffix(".weight"): gone(mask, dim) for name, mask in run.masks.items()}
    return found["a"] if list(found) == ["a"] else found


# The ranking


def test_the_rows_with_the_smallest_l2_norm_go():
    # Norms 3, 2.8, 7.1 and 1.1. By the mean magnitude (1.5, 2, 5, 0.75) the first row would go in place of the second.
    net = model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])
    scheduler(net).on_epoch_begin(0)
    assert net.a.weight.tolist() == [[3, 0], [0, 0], [-5, 5], [0, 0]]


def test_the_score_is_the_norm_over_the_number_of_elements():
    """Semantics, 1.3: L2 / n."""
    weight = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    pruner = L2RankedStructureParameterPruner(weights="*", granularity={"dim": 0}, desired_sparsity=0.5)
    groups = pruner.groups(weight)
    assert pruner.scores("a.weight", weight, groups, None).tolist() == [2.5, 5]


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_procedure_with_the_other_norm(seed: int):
    torch.manual_seed(seed)
    weight = torch.randn(8, 3, 3, 3)
    norms = [sum(float(value) ** 2 for value in kernel.flatten()) ** 0.5 for kernel in weight]
    smallest = sorted(sorted(range(8), key=lambda j: norms[j])[:3])
    assert pruned(model(a=weight), group_type="Filters", desired_sparsity=0.375) == smallest


def test_of_equal_groups_the_first_go():
    assert pruned(model(a=rows(2, 1, -1, 1, 3)), desired_sparsity=0.4) == [1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_norms_are_told_apart_in_every_type_and_do_not_overflow(dtype: torch.dtype):
    """The square of 300 is more than the largest number of 16 bits."""
    weight = torch.full((4, 601), 300.0, dtype=dtype)
    weight[2, 0] = weight[3, :2] = 0
    assert pruned(model(a=weight)) == [2, 3]


# Every key


@pytest.mark.parametrize(
    ("keys", "dim", "expected"),
    [
        ({"group_type": "Filters"}, 0, [0, 1]),
        ({"group_type": "3D"}, 0, [0, 1]),
        ({"group_type": "Channels"}, 1, [0, 2]),
        ({"group_type": "Rows"}, 1, [0, 2]),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [4, 1, 1, 1]}}, 1, [0, 2]),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [2, 4, 1, 1]}}, 0, [0, 1]),
        ({"granularity": {"dim": 0, "size": 2}}, 0, [0, 1]),
        ({"granularity": {"dim": 0, "heads": 2}}, 0, [0, 1]),
        ({"granularity": {"dim": 0, "parts": 2}}, 0, [0, 2]),
        ({"granularity": {"shape": [4]}}, 1, [0, 2]),
    ],
)
def test_which_groups(keys: dict[str, Any], dim: int, expected: list[int]):
    weight = torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1) * torch.tensor([1.0, 4, 2, 3]).reshape(1, 4, 1, 1)
    assert pruned(model(a=weight), dim, **keys) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"desired_sparsity": 0.4}, [0]),
        ({"desired_sparsity": 1}, [0, 1, 2, 3]),
        ({"desired_sparsity": 0.4, "rounding_fn": "ceil"}, [0, 1]),
        ({"desired_sparsity": 0.4, "rounding_fn": "round"}, [0, 1]),
        ({"desired_sparsity": 0.7, "group_size": 2}, [0, 1]),
        ({"desired_sparsity": 0.7}, [0, 1]),
        ({"desired_sparsity": 0.75}, [0, 1, 2]),
    ],
)
def test_how_many(keys: dict[str, Any], expected: list[int]):
    assert pruned(model(a=rows(1, 2, 3, 4)), **keys) == expected


def test_less_than_one_group_leaves_the_tensor_alone():
    assert pruned(model(a=rows(1, 2, 3, 4)), desired_sparsity=0.24) == {}


def test_weights_and_their_leader():
    weights = {"a": rows(1, 2, 3, 4), "b": rows(4, 1, 3, 2)}
    assert pruned(model(**weights), weights="*") == {"a": [0, 1], "b": [1, 3]}
    led = {"weights": ["b.weight", "a.weight"], "group_dependency": "Leader"}
    assert pruned(model(**weights), **led) == {"a": [1, 3], "b": [1, 3]}


def test_the_leader_is_asked_at_every_pruning():
    """Elsewhere, with a constant target, only at the first."""
    net = model(a=rows(1, 2, 3, 4), b=rows(1, 1, 1, 1))
    run = scheduler(net, weights=["a.weight", "b.weight"], group_dependency="Leader")
    run.on_epoch_begin(0)
    assert gone(run.masks["b.weight"]) == [0, 1]
    with torch.no_grad():
        net.a.weight.copy_(rows(4, 3, 2, 1))
    run.on_epoch_begin(1)
    assert gone(run.masks["b.weight"]) == [2, 3]


def test_noise_and_its_seed():
    def ranked(noise: float, seed: int) -> Any:
        return pruned(model(a=rows(*range(1, 41))), noise=noise, seed=seed, desired_sparsity=0.25)

    assert [ranked(0, seed) for seed in range(3)] == [list(range(10))] * 3
    assert len({tuple(ranked(1, seed)) for seed in range(3)} | {tuple(range(10))}) == 4
    assert ranked(1, 1) == ranked(1, 1)


@pytest.mark.parametrize(
    ("curve", "counts"),
    [
        ("cubic", [2, 6, 8, 9, 9]),
        ("linear", [2, 4, 6, 7, 9]),
        ("exponential", [2, 5, 7, 8, 9]),
        ("one-shot", [9, 9, 9, 9, 9]),
        ([0, 1, 1], [2, 6, 9, 9, 9]),
    ],
)
def test_the_agp_class_prunes_along_a_curve(curve: Any, counts: list[int]):
    run = scheduler(model(a=rows(*range(1, 13))), initial_sparsity=0.2, final_sparsity=0.8, curve=curve)
    seen = []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        seen.append(gone(run.masks["a.weight"]))
    assert seen == [list(range(count)) for count in counts]


# For any weights


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.floats(0, 1))
def test_the_budget_is_kept_and_a_target_applied_again_changes_nothing(values: list[int], sparsity: float):
    net = model(a=rows(*values))
    run = scheduler(net, desired_sparsity=sparsity)
    seen = []
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        seen.append((gone(run.masks["a.weight"]) if run.masks else [], net.a.weight.tolist()))
    assert seen[0] == seen[1]
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    assert seen[0][0] == sorted(order[: int(sparsity * len(values))])


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)), st.floats(0.2, 0.99), st.sampled_from([0.5, -3.0]))
def test_the_order_of_filters_and_the_scale_of_weights_do_not_matter(order: list[int], sparsity: float, scale: float):
    weight = torch.arange(1.0, 13).reshape(6, 2)
    straight = pruned(model(a=weight), desired_sparsity=sparsity)
    permuted = pruned(model(a=scale * weight[order]), desired_sparsity=sparsity)
    assert sorted(order[place] for place in permuted) == straight


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.floats(0.1, 0.99))
def test_masks_nest_under_a_curve_while_weights_stand_still(values: list[int], final: float):
    run = scheduler(model(a=rows(*values)), initial_sparsity=0.05, final_sparsity=final)
    before: set[int] = set()
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        now = set(gone(run.masks["a.weight"])) if run.masks else set()
        assert before <= now
        before = now
    assert len(before) == int(final * len(values))


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": []}, "weights", "selects nothing"),
        ({"weights": ["c.weight"]}, "weights[0]", "'c.weight' selects nothing in the model"),
        ({"group_type": "Filters"}, "weights", "'a.weight' has shape [4, 2] and no groups 'Filters'"),
        ({"granularity": {"dim": 2}}, "weights", "'a.weight' has shape [4, 2] and no dimension 2"),
        (
            {"granularity": {"dim": 0, "parts": 3}},
            "weights",
            "its dimension 0 is not divided into units of 1 in 3 parts",
        ),
        (
            {"weights": ["a.weight", "b.weight"], "group_dependency": "Leader"},
            "weights[1]",
            "'b.weight' has shape [3, 2] and 3 groups; its leader 'a.weight' has [4, 2] and 4",
        ),
        ({"desired_sparsity": -0.1}, "desired_sparsity", "must be greater than or equal to 0, got -0.1"),
        ({"initial_sparsity": 0.5, "final_sparsity": 0.5}, "final_sparsity", "must be above initial_sparsity 0.5"),
        ({"magnitude_fn": "l1"}, "magnitude_fn", "has no argument 'magnitude_fn'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], path: str, message: str):
    with pytest.raises(ScheduleError) as error:
        scheduler(model(a=torch.ones(4, 2), b=torch.ones(3, 2)), **keys)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.p.{path}".rstrip("."), True), problem


# The card


class Network(nn.Module):
    """The layers that the card's schedules name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.conv3, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(images))))))
        return self.fc(features.mean((2, 3)))


def run_of_the_card(net: nn.Module, epochs: int) -> Iterator[CompressionScheduler]:
    """Train under the card's first schedule; the scheduler, at the end of each epoch."""
    batch = torch.randn(4, 3, 6, 6), torch.arange(4)
    return epochs_under_card(Path(__file__).parents[1] / "README.md", net, batch, epochs, lr=0.05, minibatches=2)


def test_the_cards_first_schedule_goes_where_the_card_says():
    torch.manual_seed(0)
    net, seen = Network(), []
    for _ in run_of_the_card(net, 9):
        seen.append([int((~w.transpose(0, 1).flatten(1).any(1)).sum()) for w in (net.conv2.weight, net.conv3.weight)])
    assert seen == [[0, 0]] * 4 + [[2, 2]] * 4 + [[4, 4]]


# The laws of every component


def test_the_class_keeps_the_laws():
    check_component(
        L2RankedStructureParameterPruner, weights="conv?.weight", group_type="Filters", desired_sparsity=0.5
    )


def test_the_agp_class_keeps_the_laws():
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.5}
    check_component(L2RankedStructureParameterPruner_AGP, weights="*.weight", granularity={"dim": 0}, **keys)
