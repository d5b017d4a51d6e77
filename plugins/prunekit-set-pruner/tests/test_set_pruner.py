"""SET: random masks of an exact budget, and how they are rewired."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_set_pruner import SETPruner
from torch import nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Trace, Window
from prunekit.components import Context
from prunekit.testing import check_component

README = Path(__file__).parents[1] / "README.md"


class MLP(nn.Module):
    """fc1 12 -> 8, fc2 8 -> 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def scheduler(net: nn.Module, window: Any = None, **keys: Any) -> CompressionScheduler:
    schedule = {
        "version": 1,
        "pruners": {"set": {"class": "SETPruner", **keys}},
        "policies": [{"pruner": {"instance_name": "set"}, **(window or {"starting_epoch": 0, "ending_epoch": 9})}],
    }
    return CompressionScheduler.from_dict(schedule, net, trace=Trace(level="error"))


def kept(run: CompressionScheduler) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in run.masks.items()}


def rewired(weights: list[float], mask: list[bool], epoch: int = 1, **keys: Any) -> list[bool]:
    """What becomes of a mask at a later epoch; the budget is what the mask keeps."""
    pruner = SETPruner(weights="w", desired_sparsity=(1 - sum(mask) / len(mask)), initialization="uniform", **keys)
    pruner.load_state_dict({"moment": [0, -1]})
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor(weights))
    context = Context(net, {"w": torch.tensor(mask)}, Progress(epoch), Window(0, 9), {"w": None}, {})
    return pruner.compute_masks({"w": net.w}, context)["w"].tolist()


# The start


@pytest.mark.parametrize(
    ("initialization", "budget"),
    [
        ("erdos-renyi", {"fc1.weight": 20, "fc2.weight": 12}),  # 20 ε and 12 ε of 32
        ("erdos-renyi-kernel", {"fc1.weight": 20, "fc2.weight": 12}),  # the same for matrices
        ("uniform", {"fc1.weight": 24, "fc2.weight": 8}),
    ],
)
def test_the_first_masks_share_out_exactly_what_is_kept(initialization, budget):
    run = scheduler(MLP(), weights="*.weight", desired_sparsity=0.75, initialization=initialization)
    run.on_epoch_begin(0)
    assert kept(run) == budget
    assert run.sparsity("fc2.weight") == 1 - budget["fc2.weight"] / 32


def test_the_kernel_of_a_convolution_counts_in_the_one_and_not_in_the_other():
    net = nn.Module()
    net.conv, net.fc = nn.Conv2d(8, 8, 3), nn.Linear(12, 8)  # 576 + 96 weights, of which 168 stay
    for initialization, budget in (("erdos-renyi-kernel", (88, 80)), ("erdos-renyi", (148, 20))):
        run = scheduler(net, weights="*.weight", desired_sparsity=0.75, initialization=initialization)
        run.on_epoch_begin(0)
        assert tuple(kept(run).values()) == budget  # 22 ε and 20 ε; 144 ε and 20 ε


def test_the_first_masks_are_drawn_at_the_first_active_epoch_whatever_the_weights_and_masks_are():
    first, other = MLP(), MLP()
    with torch.no_grad():
        other.fc1.weight.mul_(-3)
    masks = []
    for net in (first, other):
        run = scheduler(net, {"epochs": [2, 3]}, weights="*.weight", desired_sparsity=0.75)
        run.on_epoch_begin(0)
        assert dict(run.masks) == {}
        run.on_epoch_begin(2)
        masks.append({name: mask.tolist() for name, mask in run.masks.items()})
    assert masks[0] == masks[1]


def test_the_seed_chooses_and_nothing_else_does():
    def masks(seed: int) -> Any:
        torch.manual_seed(seed + 5)
        run = scheduler(MLP(), weights="fc1.weight", desired_sparsity=0.75, seed=seed)
        for epoch in (0, 1):
            run.on_epoch_begin(epoch)
        return run.masks["fc1.weight"].tolist()

    assert masks(3) == masks(3) != masks(4)


def test_which_parameters_are_pruned_is_said_by_weights():
    run = scheduler(MLP(), weights=["fc2.weight"], desired_sparsity=0.75)
    run.on_epoch_begin(0)
    assert kept(run) == {"fc2.weight": 8}


def test_a_sparsity_of_less_than_one_weight_prunes_nothing():
    run = scheduler(MLP(), weights="*.weight", desired_sparsity=0.007)
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
    assert dict(run.masks) == {}


def test_a_sparsity_of_1_leaves_nothing():
    run = scheduler(MLP(), weights="*.weight", desired_sparsity=1)
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
    assert kept(run) == {"fc1.weight": 0, "fc2.weight": 0}


# Rewiring, as Algorithm 1 has it

WEIGHTS = [0.5, 4.0, 1.0, 3.0, 2.0, -1.0, -4.0, -2.0, 0.0, 0.0, 0.0, 0.0]
MASK = [True] * 8 + [False] * 4


def survivors(**keys: Any) -> set[int]:
    """Which of the kept weights stay, whatever is grown: the ones that every seed keeps."""
    return {i for i in range(8) if all(rewired(WEIGHTS, MASK, seed=seed, **keys)[i] for seed in range(60))}


@pytest.mark.parametrize(
    ("zeta", "signs", "stay"),
    [
        (0.4, "apart", {1, 3, 4, 6, 7}),  # floor(0.4 · 5) = 2 of the positive ones, floor(0.4 · 3) = 1 of the others
        (0.4, "together", {1, 3, 4, 6, 7}),  # floor(0.4 · 8) = 3: 0.5, 1 and -1
        (0.6, "apart", {1, 3, 6, 7}),  # 3 of 5 and 1 of 3
        (0.6, "together", {1, 3, 6, 7}),  # 4 of 8: 0.5, 1, -1, and 2, which comes before -2
        (1.0, "apart", set()),
        (0.1, "apart", {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_the_fraction_closest_to_zero_is_dropped_of_each_sign_by_itself_or_of_both(zeta, signs, stay):
    assert survivors(zeta=zeta, signs=signs) == stay


def test_the_signs_matter_where_one_of_them_is_small():
    weights, mask = [1.0, 2.0, 3.0, 4.0, -5.0, -6.0, -7.0, -8.0], [True] * 8
    weights, mask = [*weights, 0, 0], [*mask, False, False]

    def stay(signs: Any) -> set[int]:
        return {i for i in range(8) if all(rewired(weights, mask, seed=s, zeta=0.5, signs=signs)[i] for s in range(60))}

    assert stay("apart") == {2, 3, 6, 7}
    assert stay("together") == {4, 5, 6, 7}


def test_as_many_are_grown_at_random_each_with_the_same_chance_those_just_dropped_too():
    counts = torch.zeros(12)
    for seed in range(2000):
        mask = rewired(WEIGHTS, MASK, seed=seed, zeta=0.4)
        assert sum(mask) == 8
        counts += torch.tensor(mask)
    places = [0, 2, 5, 8, 9, 10, 11]  # three that were dropped, four that were pruned before
    assert bool(((counts[places] / 2000 - 3 / 7).abs() < 0.045).all())  # 4 standard deviations
    assert counts[[1, 3, 4, 6, 7]].tolist() == [2000] * 5


def test_what_is_grown_differs_from_epoch_to_epoch():
    grown = {tuple(rewired(WEIGHTS, MASK, epoch, zeta=0.4)) for epoch in range(1, 9)}
    assert len(grown) > 4


def test_a_weight_that_grows_starts_at_zero():
    net = MLP()
    run = scheduler(net, weights="fc1.weight", desired_sparsity=0.75, zeta=0.5)
    run.on_epoch_begin(0)
    before = run.masks["fc1.weight"].clone()
    run.on_epoch_begin(1)
    grown = run.masks["fc1.weight"] & ~before
    assert grown.any() and not net.fc1.weight[grown].any()


def test_asked_again_at_the_same_moment_nothing_changes():
    run = scheduler(MLP(), weights="*.weight", desired_sparsity=0.75, zeta=0.5)
    for epoch in (0, 1):
        run.on_epoch_begin(epoch)
    masks = {name: mask.clone() for name, mask in run.masks.items()}
    run.on_epoch_begin(1)
    assert all(torch.equal(mask, masks[name]) for name, mask in run.masks.items())
    run.on_epoch_begin(2)
    assert not all(torch.equal(mask, masks[name]) for name, mask in run.masks.items())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4).map(float), st.booleans()), min_size=2, max_size=30),
    st.floats(0.01, 1),
    st.sampled_from(["apart", "together"]),
    st.integers(0, 99),
)
def test_the_budget_is_kept_and_none_that_stays_is_closer_to_zero_than_one_of_its_sign_that_went(
    units, zeta, signs, seed
):
    weights, mask = [weight for weight, _ in units], [keep for _, keep in units]
    sparsity = 1 - sum(mask) / len(mask)
    if len(mask) - math.floor(sparsity * len(mask)) != sum(mask) or all(mask):  # a float that is not quite the fraction
        return
    new = rewired(weights, mask, zeta=zeta, signs=signs, seed=seed)
    assert sum(new) == sum(mask)
    gone = [weights[i] for i in range(len(mask)) if mask[i] and not new[i]]
    if signs == "apart":
        positive = [w for w, keep in units if keep and w >= 0]
        assert len([w for w in gone if w >= 0]) <= math.floor(zeta * len(positive))
        assert len([w for w in gone if w < 0]) <= math.floor(zeta * (sum(mask) - len(positive)))
    else:
        assert len(gone) <= math.floor(zeta * sum(mask))


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": "fc9.weight"}, "weights", "'fc9.weight' selects nothing in the model"),
        ({"desired_sparsity": 75}, "desired_sparsity", "must be less than or equal to 1, got 75"),
        ({"zeta": -1}, "zeta", "must be greater than or equal to 0, got -1"),
        ({"zeta": 1.1}, "zeta", "must be less than or equal to 1, got 1.1"),
        ({"initialization": "erdos"}, "initialization", "got 'erdos'"),
        ({"signs": "both"}, "signs", "got 'both'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        scheduler(MLP(), **{"weights": "*.weight", "desired_sparsity": 0.5, **keys})
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.set.{path}", True)


# The schedule of the card


def test_the_schedule_of_the_card_keeps_what_it_says_to_its_end():
    text = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    net = MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(text), net, optimizer, trace=Trace(level="error"))
    data = [(torch.randn(8, 12), torch.randint(0, 4, (8,))) for _ in range(3)]
    seen = set()
    for _ in run.epochs(20):
        for x, y in run.minibatches(data):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
        assert kept(run) == {"fc1.weight": 20, "fc2.weight": 12}
        seen.add(tuple(run.masks["fc1.weight"].flatten().tolist()))
    assert len(seen) == 20
    assert int((net.fc1.weight == 0).sum()) >= 76 and int((net.fc2.weight == 0).sum()) >= 20


# The laws of every component


@pytest.mark.parametrize("keys", [{"zeta": 0.5}, {"initialization": "uniform", "signs": "together"}])
def test_it_keeps_the_laws(keys):
    check_component(SETPruner, weights="*.weight", desired_sparsity=0.5, **keys)
