"""Ranked pruning: how many groups go, which, whose lead they follow, and what is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracle_replay import arrays
from torch import Tensor, nn

from prunekit import (
    ArgumentError,
    ComponentSpec,
    CompressionScheduler,
    PolicySpec,
    Progress,
    Schedule,
    ScheduleError,
    Window,
)
from prunekit.components import Context
from prunekit.model.parameters import Parameters
from prunekit.pruning import FixedSparsity, GradualSparsity, Groups, RankedPruner
from prunekit.pruning.ranked_pruner import number_to_prune
from prunekit.testing import weights_model


@dataclass(kw_only=True)
class Largest(RankedPruner):
    """Ranks groups by their largest weight."""

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return groups.max_abs(weight)


@dataclass(kw_only=True)
class LargestPruner(FixedSparsity, Largest):
    """At once."""


@dataclass(kw_only=True)
class LargestPrunerAGP(GradualSparsity, Largest):
    """Gradually."""


def context(net: nn.Module, epoch: int = 0, minibatch: int = -1, window: Window | None = None) -> Context:
    names = list(Parameters.of(net).by_name)
    return Context(net, {}, Progress(epoch, minibatch), window or Window(0, 5), dict.fromkeys(names), {})


def gone(pruner: Any, net: nn.Module, at: Context | None = None) -> dict[str, list[int]]:
    """The flat indices that are pruned, by parameter."""
    names = [pruner.weights] if isinstance(pruner.weights, str) else pruner.weights
    parameters = {name: parameter for name, parameter in Parameters.of(net).by_name.items() if name in names}
    keys = {name: ("weights", index) for index, name in enumerate(names)}
    masks: Mapping[str, Tensor] = pruner.compute_masks(parameters, replace(at or context(net), keys=keys))
    return {name: (~mask).reshape(-1).nonzero().reshape(-1).tolist() for name, mask in masks.items()}


def refusals(pruner: Any, net: nn.Module) -> list[str]:
    """What a schedule with this pruner is refused for; its place is within the section."""
    keys = {name: value for name, value in vars(pruner).items() if type(pruner).__dataclass_fields__[name].init}
    schedule = Schedule(
        [ComponentSpec("pruner", "p", type(pruner), keys)], [PolicySpec("pruner", "p", Window(epochs=[0]))]
    )
    try:
        CompressionScheduler(schedule, net)
    except ScheduleError as error:
        return [f"{problem.path.removeprefix('pruners.p.')}: {problem.message}" for problem in error.problems]
    return []


# How many


@pytest.mark.parametrize(
    ("number", "sparsity", "group_size", "by_rounding"),
    [
        (10, 0.35, 1, {"floor": 3, "ceil": 4, "round": 4}),
        (10, 0.3, 1, {"floor": 3, "ceil": 3, "round": 3}),
        (10, 0.01, 1, {"floor": 0, "ceil": 1, "round": 0}),
        (10, 0.99, 1, {"floor": 9, "ceil": 9, "round": 9}),
        (10, 1, 1, {"floor": 10, "ceil": 10, "round": 10}),
        (16, 0.3, 4, {"floor": 4, "ceil": 8, "round": 4}),
        (16, 0.4, 4, {"floor": 4, "ceil": 8, "round": 8}),
        (16, 0.99, 4, {"floor": 12, "ceil": 12, "round": 12}),
        (10, 0.9, 4, {"floor": 8, "ceil": 8, "round": 8}),
        (3, 0.9, 2, {"floor": 2, "ceil": 2, "round": 2}),
        (3, 0.5, 4, {"floor": 0, "ceil": 0, "round": 0}),
        (10, 1, 4, {"floor": 8, "ceil": 10, "round": 8}),
        (0, 0.5, 1, {"floor": 0, "ceil": 0, "round": 0}),
        (0, 1, 3, {"floor": 0, "ceil": 0, "round": 0}),
    ],
)
def test_how_many_groups_go(number: int, sparsity: float, group_size: int, by_rounding: dict[str, int]) -> None:
    counts = {rounding: number_to_prune(number, sparsity, group_size, rounding) for rounding in by_rounding}  # type: ignore[arg-type]
    assert counts == by_rounding


def test_the_reference_prunes_as_many_where_there_are_as_many() -> None:
    """Where it prunes all groups below a sparsity of 1, or more than there are, some stay here; at 1 all go."""
    capped = 0
    for number, group_size, sparsity, ceil, expected in arrays("tables")["num_structs"].tolist():
        rounding: Any = "ceil" if ceil else "floor"
        count = number_to_prune(int(number), sparsity, int(group_size), rounding)
        if expected > number or (expected == number and sparsity < 1):
            capped += 1
            assert count == (number if sparsity == 1 else (number - 1) // group_size * group_size)
        else:
            assert count == expected
    assert capped == 33


@given(st.integers(0, 200), st.floats(0, 1), st.integers(1, 9), st.sampled_from(["floor", "ceil", "round"]))
def test_the_budget_is_exact_for_any_number_sparsity_and_group_size(
    number: int, sparsity: float, group_size: int, rounding: Any
) -> None:
    count = number_to_prune(number, sparsity, group_size, rounding)
    exact = Fraction(sparsity * number) / group_size
    rounded = {"floor": math.floor, "ceil": math.ceil, "round": round}[rounding](exact) * group_size
    most = number if sparsity == 1 else max(number - 1, 0) // group_size * group_size
    assert abs(count - min(rounded, most)) <= (0 if group_size == 1 else group_size)
    assert count % group_size == 0 or (count == number and sparsity == 1)
    assert 0 <= count <= number
    assert count < number or sparsity == 1 or number == 0


@given(st.integers(0, 60), st.lists(st.floats(0, 1), min_size=2).map(sorted), st.integers(1, 9))
def test_more_sparsity_never_means_fewer_groups(number: int, sparsities: list[float], group_size: int) -> None:
    for rounding in ("floor", "ceil", "round"):
        counts = [number_to_prune(number, sparsity, group_size, rounding) for sparsity in sparsities]  # type: ignore[arg-type]
        assert counts == sorted(counts)


# Which


def test_the_groups_with_the_lowest_scores_go_and_of_equal_ones_the_first() -> None:
    net = weights_model(a=[[5, 0], [1, 1], [0, 4], [1, 0]])
    pruner = LargestPruner(weights=["a.weight"], granularity={"dim": 0}, desired_sparsity=0.25)
    assert gone(pruner, net) == {"a.weight": [2, 3]}
    pruner = LargestPruner(weights=["a.weight"], granularity={"dim": 0}, desired_sparsity=0.5)
    assert gone(pruner, net) == {"a.weight": [2, 3, 6, 7]}


def test_less_than_one_group_leaves_the_tensor_out() -> None:
    net = weights_model(a=[[1], [2], [3]], b=[[1], [2], [3], [4]])
    pruner = LargestPruner(weights=["a.weight", "b.weight"], granularity={"dim": 0}, desired_sparsity=0.25)
    assert gone(pruner, net) == {"b.weight": [0]}


def test_a_gradual_pruner_follows_the_window_and_nests() -> None:
    net = weights_model(a=[[float(value)] for value in (7, 2, 5, 3, 8, 1, 6, 4)])
    pruner = LargestPrunerAGP(
        weights="a.weight", granularity={"dim": 0}, initial_sparsity=0, final_sparsity=0.5, curve="linear"
    )
    seen = [gone(pruner, net, context(net, epoch)) for epoch in range(5)]
    expected = [[], [5], [1, 5], [1, 3, 5], [1, 3, 5, 7]]
    assert [masks.get("a.weight", []) for masks in seen] == expected


def test_a_ranking_that_knows_nothing_yet_leaves_all_out() -> None:
    @dataclass(kw_only=True)
    class Waiting(FixedSparsity, RankedPruner):
        """Not yet."""

        def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> None:
            return None

    pruner = Waiting(weights="a.weight", granularity={"dim": 0}, desired_sparsity=0.5, noise=1)
    assert gone(pruner, weights_model(a=[[1], [2]])) == {}


def test_a_pruner_without_a_ranking_says_what_it_lacks() -> None:
    @dataclass(kw_only=True)
    class Unranked(FixedSparsity, RankedPruner):
        """No scores."""

    with pytest.raises(NotImplementedError, match="Unranked has no ranking: it must define scores"):
        gone(Unranked(weights="a.weight", granularity={"dim": 0}, desired_sparsity=0.5), weights_model(a=[[1], [2]]))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=2, max_size=2), min_size=1, max_size=12),
    st.floats(0, 1),
    st.integers(1, 4),
    st.sampled_from(["floor", "ceil", "round"]),
)
def test_whole_groups_go_exactly_the_budget_and_no_kept_one_scores_lower(
    rows: list[list[int]], sparsity: float, group_size: int, rounding: Any
) -> None:
    net = weights_model(a=rows)
    pruner = LargestPruner(
        weights="a.weight",
        granularity={"dim": 0},
        desired_sparsity=sparsity,
        group_size=group_size,
        rounding_fn=rounding,
    )
    indices = gone(pruner, net).get("a.weight", [])
    pruned = sorted({index // 2 for index in indices})
    assert indices == [index for row in pruned for index in (2 * row, 2 * row + 1)]
    assert len(pruned) == number_to_prune(len(rows), sparsity, group_size, rounding)
    order = [(max(map(abs, row)), place) for place, row in enumerate(rows)]
    kept = [item for item in order if item[1] not in pruned]
    assert not kept or not pruned or max(order[place] for place in pruned) < min(kept)


@settings(deadline=None)
@given(st.permutations(range(8)), st.floats(0, 1))
def test_which_groups_go_does_not_depend_on_their_order(order: list[int], sparsity: float) -> None:
    pruner = LargestPruner(weights="a.weight", granularity={"dim": 0}, desired_sparsity=sparsity)
    straight = gone(pruner, weights_model(a=[[value] for value in range(8)])).get("a.weight", [])
    permuted = gone(pruner, weights_model(a=[[value] for value in order])).get("a.weight", [])
    assert sorted(order[place] for place in permuted) == straight


# Whose lead


def test_followers_lose_the_groups_that_rank_lowest_in_the_leader() -> None:
    net = weights_model(a=[[4], [3], [2], [1]], b=[[1, 1], [9, 9], [1, 1], [9, 9]])
    keys: dict[str, Any] = {"granularity": {"dim": 0}, "desired_sparsity": 0.5}
    alone = LargestPruner(weights=["b.weight", "a.weight"], **keys)
    assert gone(alone, net) == {"a.weight": [2, 3], "b.weight": [0, 1, 4, 5]}
    led = LargestPruner(weights=["b.weight", "a.weight"], group_dependency="Leader", **keys)
    assert gone(led, net) == {"a.weight": [0, 2], "b.weight": [0, 1, 4, 5]}
    other = LargestPruner(weights=["a.weight", "b.weight"], group_dependency="Leader", **keys)
    assert gone(other, net) == {"a.weight": [2, 3], "b.weight": [4, 5, 6, 7]}


def test_the_leader_is_what_the_first_selector_selects_though_it_comes_later_in_the_model() -> None:
    net = weights_model(a=[[1], [2]], b=[[2], [1]], c=[[1], [2]])
    pruner = LargestPruner(
        weights=["b.*", "*.weight"], granularity={"dim": 0}, group_dependency="Leader", desired_sparsity=0.5
    )
    spec = ComponentSpec("pruner", "p", type(pruner), {**vars(pruner)})
    scheduler = CompressionScheduler(Schedule([spec], [PolicySpec("pruner", "p", Window(epochs=[0]))]), net)
    scheduler.on_epoch_begin(0)
    assert {name: mask.flatten().tolist() for name, mask in scheduler.masks.items()} == {
        f"{name}.weight": [True, False] for name in "abc"
    }


# What is drawn


@pytest.mark.parametrize("name", ["w", "fc.bias", "layer4.1.conv2.weight"])
def test_draws_depend_on_seed_epoch_mini_batch_and_parameter(name: str) -> None:
    """The names of parameters may be short, and torch looks at 32 bits of a seed."""

    def draw(seed: int, epoch: int, minibatch: int, name: str) -> float:
        pruner = LargestPruner(weights="*", granularity={"dim": 0}, desired_sparsity=0.5, seed=seed)
        at = context(nn.Module(), epoch, minibatch)
        return float(torch.rand((), generator=pruner.generator(at, name), dtype=torch.float64))

    moments = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 0), (11, 0, 0)]
    drawn = {draw(*moment, name) for moment in moments} | {draw(0, 0, 0, name + "2")}
    assert len(drawn) == len(moments) + 1
    assert draw(1, 2, 3, name) == draw(1, 2, 3, name)
    assert draw(0, 0, -1, name) == draw(0, 0, 0, name), "an epoch begins where its first mini-batch does"


def test_draws_leave_the_random_numbers_of_the_application_alone() -> None:
    before = torch.get_rng_state()
    pruner = LargestPruner(weights="a.weight", granularity={"dim": 0}, desired_sparsity=0.5, noise=1)
    gone(pruner, weights_model(a=[[1], [2], [3], [4]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_the_share_of_scores_that_are_multiplied_by_a_normal_draw() -> None:
    @dataclass(kw_only=True)
    class Seen(FixedSparsity, RankedPruner):
        """Ones, and what became of them."""

        seen: list[Tensor] = field(default_factory=list)

        def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
            return torch.ones(groups.number)

        def choose(self, name: str, scores: Tensor, sparsity: float, context: Context) -> None:
            self.seen.append(scores)

    net = weights_model(a=torch.ones(4000, 1))
    shares = {}
    for noise in (0, 0.25, 1):
        pruner = Seen(weights="a.weight", granularity={"dim": 0}, desired_sparsity=0.5, noise=noise)
        gone(pruner, net)
        (scores,) = pruner.seen
        shares[noise] = float((scores != 1).float().mean())
    assert shares == {0: 0, 0.25: pytest.approx(0.25, abs=0.03), 1: 1}
    assert (float(scores.mean()), float(scores.std())) == pytest.approx((0, 1), abs=0.05)


# What is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"granularity": None}, "granularity: say either group_type or granularity: both name the groups"),
        ({"group_type": "Filters"}, "granularity: leave out one of the two: both name the groups"),
        (
            {"kwargs": {"block_shape": [1, 1, 1, 1]}},
            "kwargs: block_shape goes with group_type 'Blocks', and only with it",
        ),
        (
            {"granularity": None, "group_type": "Blocks"},
            "kwargs: block_shape goes with group_type 'Blocks', and only with it",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        LargestPruner(**{"weights": "a.weight", "granularity": {"dim": 0}, "desired_sparsity": 0.5, **keys})
    assert f"{'.'.join(map(str, error.value.keys))}: {error.value.message}" == message


def test_both_parents_check_their_keys() -> None:
    keys: dict[str, Any] = {"granularity": {"dim": 0}, "initial_sparsity": 0.5, "final_sparsity": 0.25}
    with pytest.raises(ArgumentError, match="must be above initial_sparsity"):
        LargestPrunerAGP(weights="a.weight", **keys)
    with pytest.raises(ArgumentError, match="say either group_type or granularity"):
        LargestPrunerAGP(weights="a.weight", **{**keys, "granularity": None, "final_sparsity": 0.75})


def test_tensors_without_such_groups_are_refused_with_name_and_shape_all_of_them() -> None:
    net = weights_model(a=torch.ones(4, 2), b=torch.ones(3), c=torch.ones(2, 2, 3))
    pruner = LargestPruner(weights=["a.weight", "b.weight", "c.weight"], group_type="Filters", desired_sparsity=0.5)
    assert refusals(pruner, net) == [
        "weights[0]: 'a.weight' has shape [4, 2] and no groups 'Filters'; "
        "granularity: {dim: 0} means the rows of a matrix",
        "weights[1]: 'b.weight' has shape [3] and no groups 'Filters'",
    ]


def test_followers_with_another_number_of_groups_are_refused() -> None:
    net = weights_model(a=torch.ones(4, 2), b=torch.ones(6, 2))
    keys: dict[str, Any] = {"granularity": {"dim": 0}, "desired_sparsity": 0.5}
    led = LargestPruner(weights=["b.weight", "a.weight"], group_dependency="Leader", **keys)
    assert refusals(led, net) == [
        "weights[1]: 'a.weight' has shape [4, 2] and 4 groups; its leader 'b.weight' has [6, 2] and 6"
    ]
    assert refusals(LargestPruner(weights=["b.weight", "a.weight"], **keys), net) == []


@pytest.mark.parametrize("group_type", ["3D", "Filters", "Channels", "Rows"])
@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_what_inputs_and_outputs_are_must_be_said_of_a_transposed_convolution(layer: Any, group_type: Any) -> None:
    net = nn.Sequential(layer(4, 2, 1))
    pruner = LargestPruner(weights="0.weight", group_type=group_type, desired_sparsity=0.5)
    assert refusals(pruner, net) == [
        f"weights: '0.weight' has shape {list(net[0].weight.shape)} in a {layer.__name__}: "
        "dimension 0 is inputs and 1 outputs; "
        f"say granularity: {{dim: 0}} or {{dim: 1}} in place of group_type: {group_type}"
    ]
    outputs = LargestPruner(weights="0.weight", granularity={"dim": 1}, desired_sparsity=0.5)
    assert refusals(outputs, net) == []
    parameters = dict(net.named_parameters())
    del parameters["0.bias"]
    (mask,) = outputs.compute_masks(parameters, context(net)).values()
    assert mask.flatten(2)[:, :, 0].logical_not().sum(0).sort().values.tolist() == [0, 4]
