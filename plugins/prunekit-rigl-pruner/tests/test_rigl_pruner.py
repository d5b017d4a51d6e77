"""RigL: random masks of an exact budget, which updates drop by magnitude and grow by gradient."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_rigl_pruner import RigLPruner
from structlog.testing import capture_logs
from torch import nn

from prunekit import CompressionScheduler, Progress, Schedule, ScheduleError, Trace, Window
from prunekit.components import Context
from prunekit.testing import check_component

README = Path(__file__).parents[1] / "README.md"
WINDOW = {"starting_epoch": 0, "ending_epoch": 4}


class Net(nn.Module):
    """conv2 8 -> 8 and fc1 12 -> 8: 576 and 96 weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv2, self.fc1 = nn.Conv2d(8, 8, 3), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.fc1(x).reshape(-1, 8, 1, 1).expand(-1, 8, 3, 3)).flatten(1)


class Weights(nn.Module):
    """A vector whose gradient is what it is given."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        return (self.w * gradient).sum()


def start(
    net: nn.Module, window: Any = None, rate: float = 0.0, args: Any = None, **keys: Any
) -> tuple[CompressionScheduler, torch.optim.Optimizer]:
    schedule = {
        "version": 1,
        "pruners": {"rigl": {"class": "RigLPruner", "weights": "*", **keys}},
        "policies": [{"pruner": {"instance_name": "rigl", "args": args or {}}, **(window or WINDOW)}],
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    return CompressionScheduler.from_dict(schedule, net, optimizer, trace=Trace(level="warning")), optimizer


# The start


@pytest.mark.parametrize(
    ("initialization", "budget"),
    [
        ("erdos-renyi-kernel", {"conv2.weight": 88, "fc1.weight": 80}),  # 22 ε and 20 ε of 168
        ("erdos-renyi", {"conv2.weight": 148, "fc1.weight": 20}),  # 144 ε and 20 ε
        ("uniform", {"conv2.weight": 144, "fc1.weight": 24}),
    ],
)
def test_the_first_masks_share_out_exactly_what_is_kept(initialization, budget):
    run, _ = start(Net(), weights="*.weight", desired_sparsity=0.75, initialization=initialization)
    run.on_epoch_begin(0)
    assert {name: int(mask.sum()) for name, mask in run.masks.items()} == budget


def test_the_seed_chooses_the_first_masks_and_nothing_else_does():
    def masks(seed: int) -> Any:
        torch.manual_seed(seed + 5)
        net = Net()
        with torch.no_grad():
            net.fc1.weight.copy_(torch.rand(8, 12) * seed)
        run, _ = start(net, weights="fc1.weight", desired_sparsity=0.75, seed=seed)
        run.on_epoch_begin(0)
        return run.masks["fc1.weight"].tolist()

    assert masks(3) == masks(3) != masks(4)


# An update, as Algorithm 1 has it


def updated(weights: list[float], mask: list[bool], gradient: list[float], t: int = 0, **keys: Any) -> list[bool]:
    """What becomes of a mask at mini-batch t of 10 an epoch; the budget is what the mask keeps."""
    sparsity = 1 - sum(mask) / len(mask)
    pruner = RigLPruner(weights="w", desired_sparsity=sparsity, initialization="uniform", **{"alpha": 0.5, **keys})
    pruner.load_state_dict({"started": True, "next": t})
    net = Weights(*weights)
    net.w.grad = torch.tensor(gradient)
    masks, progress = {"w": torch.tensor(mask)}, Progress(t // 10, t % 10, 10)
    context = Context(net, masks, progress, Window(0, 4), {"w": None}, {})
    with torch.no_grad():
        chosen = pruner.observe({"w": net.w}, context) or masks
    return chosen["w"].tolist()


def test_the_smallest_kept_weights_go_and_the_pruned_ones_with_the_largest_gradients_come():
    weights = [4.0, -1.0, 3.0, -2.0, 0.0, 0.0, 0.0, 0.0]
    mask = [True] * 4 + [False] * 4
    gradient = [9.0, 0.0, 9.0, 0.5, 1.0, -3.0, 2.0, 0.0]
    # f(0) = 0.5: -1 and -2 go. Of the rest 5 and 6 have the largest |gradient|; those of kept weights do not count.
    assert updated(weights, mask, gradient) == [True, False, True, False, False, True, True, False]


def test_what_was_just_dropped_may_grow_again_since_the_paper_leaves_out_only_what_stays():
    weights, mask = [4.0, 1.0, 3.0, 2.0, 0.0, 0.0], [True] * 4 + [False] * 2
    # I_grow is taken from i not in θ \ I_drop: 1 is dropped, and has the largest gradient of 1, 3, 4 and 5.
    assert updated(weights, mask, [0.0, 5.0, 0.0, 1.0, 2.0, 0.0]) == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("t", "alpha", "dropped"),
    # k = floor(α / 2 · (1 + cos(π t / 40)) · 20)
    [(0, 0.5, 10), (0, 0.3, 6), (10, 0.5, 8), (20, 0.5, 5), (30, 0.5, 1), (39, 0.5, 0), (39, 1.0, 0), (20, 1.0, 10)],
)
def test_the_fraction_follows_half_a_cosine(t, alpha, dropped):
    weights, mask = [float(i + 1) for i in range(20)] + [0.0] * 20, [True] * 20 + [False] * 20
    new = updated(weights, mask, [0.0] * 20 + [1.0] * 20, t, alpha=alpha)
    assert new[:20] == [False] * dropped + [True] * (20 - dropped)
    assert sum(new) == 20


def test_t_end_bends_the_cosine():
    weights, mask = [float(i + 1) for i in range(20)] + [0.0] * 20, [True] * 20 + [False] * 20
    new = updated(weights, mask, [0.0] * 20 + [1.0] * 20, 10, t_end=20)
    assert new[:20] == [False] * 5 + [True] * 15  # half of α


def test_a_regularizer_s_zeros_are_made_up_for_by_growing_more():
    # The mask in force is one short of the budget of 4.
    weights, mask = [4.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0], [True] * 3 + [False] * 5
    pruner = RigLPruner(weights="w", desired_sparsity=0.5, alpha=0.4)
    pruner.load_state_dict({"started": True, "next": 0})
    net = Weights(*weights)
    net.w.grad = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    context = Context(net, {"w": torch.tensor(mask)}, Progress(0, 0, 10), Window(0, 4), {"w": None}, {})
    assert pruner.observe({"w": net.w}, context)["w"].tolist() == [True, False, True] + [False] * 3 + [True, True]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30),
    st.floats(0.01, 1),
    st.integers(0, 39),
)
def test_the_budget_is_kept_and_the_order_of_weights_does_not_matter_where_none_are_equal(units, alpha, t):
    count = len(units)
    weights = [w + i / 100 for i, (w, _, _) in enumerate(units)]
    gradient = [g + i / 100 + 0.001 for i, (_, _, g) in enumerate(units)]
    mask = [keep for _, keep, _ in units]
    if count - math.floor((1 - sum(mask) / count) * count) != sum(mask) or all(mask):
        return
    new = updated(weights, mask, gradient, t, alpha=alpha)
    assert sum(new) == sum(mask)
    if len({abs(w) for w in weights}) == len({abs(g) for g in gradient}) == count:
        turned = updated(weights[::-1], mask[::-1], gradient[::-1], t, alpha=alpha)
        assert turned[::-1] == new


# When


def moments(epochs: int, minibatches: int, window: Any = None, step_every: int = 1, **keys: Any) -> list[Any]:
    """(epoch, mini-batch) of each update of a vector, in a training."""
    net = Weights(*[float(i + 1) for i in range(40)])
    run, optimizer = start(net, window, desired_sparsity=0.5, **keys)
    found = []
    for epoch in run.epochs(epochs):
        for minibatch, _ in enumerate(run.minibatches(range(minibatches))):
            before = run.masks.get("w")
            optimizer.zero_grad()
            net(torch.rand(40) + 1).backward()
            if (minibatch + 1) % step_every == 0:
                optimizer.step()
                if run.masks.get("w") is not before:
                    found.append((epoch, minibatch))
    return found


def test_updates_come_every_delta_t_mini_batches_while_the_window_is_open():
    assert moments(6, 4, delta_t=3) == [(0, 0), (0, 3), (1, 2), (2, 1), (3, 0), (3, 3)]
    assert moments(6, 4, delta_t=8) == [(0, 0), (2, 0)]
    assert moments(6, 4) == [(0, 0)]


def test_t_counts_from_the_first_mini_batch_of_the_window_and_in_the_epochs_between_active_ones():
    window = {"starting_epoch": 1, "ending_epoch": 5, "frequency": 2}  # active in 1 and 3
    assert moments(6, 4, window, delta_t=3) == [(1, 0), (1, 3), (2, 2), (3, 1)]


def test_t_end_ends_the_updates_before_the_window_does():
    assert moments(6, 4, delta_t=3, t_end=6) == [(0, 0), (0, 3)]
    assert moments(6, 4, delta_t=3, t_end=7) == [(0, 0), (0, 3), (1, 2)]


def test_where_the_optimizer_steps_less_often_an_update_comes_with_the_first_step_after_its_time():
    assert moments(2, 8, {"epochs": [0, 1]}, step_every=4, delta_t=6) == [(0, 3), (0, 7), (1, 7)]


# The weights


def test_a_weight_that_grows_starts_at_zero_and_is_trained_at_once():
    net = Weights(*[1.0] * 8)
    run, optimizer = start(net, rate=0.5, desired_sparsity=0.5, alpha=0.5)
    for _ in run.epochs(1):
        before = run.masks["w"].clone()
        for _ in run.minibatches([0]):
            (net.w * torch.where(before, 0.0, 1.0)).sum().backward()
            optimizer.step()
    grown = run.masks["w"] & ~before
    assert net.w[grown].tolist() == [-0.5, -0.5]
    assert not net.w[~run.masks["w"]].any() and int(run.masks["w"].sum()) == 4


def test_where_no_pruned_weight_has_a_gradient_the_mask_stays_and_a_warning_says_so():
    net = Weights(*[1.0] * 8)
    args = {"mask_gradients": True, "mask_on_forward_only": True}
    with capture_logs() as lines:
        run, optimizer = start(net, desired_sparsity=0.5, args=args)
        for _ in run.epochs(1):
            before = run.masks["w"].clone()
            for _ in run.minibatches([0]):
                net(torch.ones(8)).backward()
                optimizer.step()
    assert torch.equal(run.masks["w"], before)
    warnings = [(line["event"], line["parameter"]) for line in lines if line["log_level"] == "warning"]
    assert warnings == [("no gradient to grow by, mask left as it is", "w")]


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": "fc9.weight"}, "weights", "'fc9.weight' selects nothing in the model"),
        ({"desired_sparsity": 75}, "desired_sparsity", "must be less than or equal to 1, got 75"),
        ({"alpha": -1}, "alpha", "must be greater than or equal to 0, got -1"),
        ({"alpha": 1.1}, "alpha", "must be less than or equal to 1, got 1.1"),
        ({"delta_t": 0}, "delta_t", "must be greater than or equal to 1, got 0"),
        ({"t_end": 0}, "t_end", "must be greater than or equal to 1, got 0"),
        ({"initialization": "erk"}, "initialization", "got 'erk'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys, path, message):
    with pytest.raises(ScheduleError) as error:
        start(Net(), **{"weights": "*.weight", "desired_sparsity": 0.5, **keys})
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"pruners.rigl.{path}", True)


# The schedule of the card


def test_the_schedule_of_the_card_keeps_what_it_says_to_its_end():
    text = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    run = CompressionScheduler(Schedule.from_text(text), net, optimizer, trace=Trace(level="error"))
    data = [(torch.randn(8, 12), torch.randint(0, 8, (8,))) for _ in range(20)]
    seen = set()
    for _ in run.epochs(16):
        for x, y in run.minibatches(data):
            optimizer.zero_grad()
            run.total_loss(nn.functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
        assert [int(mask.sum()) for mask in run.masks.values()] == [88, 80]
        seen.add(tuple(run.masks["conv2.weight"].flatten().tolist()))
    assert len(seen) == 3  # updates at t = 0, 100 and 200 of 300
    assert int((net.conv2.weight != 0).sum()) == 88 and int((net.fc1.weight != 0).sum()) == 80


# The laws of every component


@pytest.mark.parametrize("keys", [{"delta_t": 1}, {"delta_t": 3, "initialization": "uniform", "t_end": 9}])
def test_it_keeps_the_laws(keys):
    check_component(RigLPruner, weights="*.weight", desired_sparsity=0.5, **keys)
