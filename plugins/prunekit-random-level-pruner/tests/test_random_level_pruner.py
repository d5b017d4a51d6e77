"""Random levels: how many groups go is drawn, which ones is ranked; by every key, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_random_level_pruner import RandomLevelStructureParameterPruner
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Trace, Window, load_plugins
from prunekit.components import Context
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


CLASS = "RandomLevelStructureParameterPruner"
DEFAULT: dict[str, Any] = {"sparsity_range": [0.2, 0.8]}


def scheduler(
    net: nn.Module,
    epochs: Any = range(5),
    args: dict[str, Any] | None = None,
    trace: Trace | None = SILENT,
    **keys: Any,
) -> CompressionScheduler:
    groups = {} if keys.keys() & {"granularity", "group_type"} else {"granularity": {"dim": 0}}
    pruner = {"class": CLASS, "weights": "a.weight", **DEFAULT, **groups, **keys}
    policy = {"pruner": {"instance_name": "p", **({"args": args} if args else {})}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, net, trace=trace, plugins=PLUGINS)


def gone(mask: Tensor, dim: int = 0) -> list[int]:
    """The indices along a dimension that are pruned; each is kept or pruned whole."""
    flat = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(flat.all(1), flat.any(1))
    return (~flat[:, 0]).nonzero().flatten().tolist()


def counts(net: nn.Module, epochs: int = 5, dim: int = 0, **keys: Any) -> list[int]:
    """How many groups of `a.weight` each epoch masks."""
    run, seen = scheduler(net, range(epochs), **keys), []
    for epoch in range(epochs):
        run.on_epoch_begin(epoch)
        seen.append(len(gone(run.masks["a.weight"], dim)) if "a.weight" in run.masks else 0)
    return seen


HUNDRED = torch.arange(1.0, 101).reshape(100, 1)


# The draw


def test_the_sparsity_is_drawn_evenly_between_the_two_for_each_pruning():
    """By the definition s ~ U(low, high): mean 0.5, standard deviation (high - low) / sqrt(12)."""
    seen = torch.tensor(counts(model(a=HUNDRED), 300)) / 100
    assert 0.2 <= seen.min() < 0.22
    assert 0.78 < seen.max() <= 0.8
    assert (float(seen.mean()), float(seen.std())) == pytest.approx((0.5, 0.6 / 12**0.5), abs=0.03)


def test_the_groups_with_the_smallest_mean_magnitude_go():
    net = model(a=[[3.0, 0.0], [2.0, -2.0], [-5.0, 5.0], [1.0, 0.5]])  # means 1.5, 2, 5 and 0.75
    run = scheduler(net, sparsity_range=[0.5, 0.7])
    run.on_epoch_begin(0)
    assert net.a.weight.tolist() == [[0, 0], [2, -2], [-5, 5], [0, 0]]


def test_every_parameter_has_a_draw_of_its_own():
    run = scheduler(model(a=HUNDRED, b=HUNDRED), weights="*")
    run.on_epoch_begin(0)
    one, other = (len(gone(mask)) for mask in run.masks.values())
    assert one != other


def test_followers_share_the_draw_of_their_leader_and_its_groups():
    net = model(a=HUNDRED, b=HUNDRED.flip(0))
    run = scheduler(net, weights=["b.weight", "a.weight"], group_dependency="Leader")
    run.on_epoch_begin(0)
    assert torch.equal(run.masks["a.weight"], run.masks["b.weight"])
    assert 99 in gone(run.masks["a.weight"])


def test_within_an_epoch_every_pruning_draws():
    net = model(a=HUNDRED)
    run = scheduler(net, args={"mini_batch_pruning_frequency": 1})
    run.on_epoch_begin(0)
    seen = []
    for minibatch in range(4):
        run.on_minibatch_begin(0, minibatch, 4)
        seen.append(len(gone(run.masks["a.weight"])))
        run.on_minibatch_end(0, minibatch, 4)
    assert len(set(seen)) == 4


def test_another_seed_draws_others_and_the_same_the_same_whatever_the_application_draws():
    torch.manual_seed(1)
    first = counts(model(a=HUNDRED), seed=0)
    torch.manual_seed(2)
    assert counts(model(a=HUNDRED), seed=0) == first
    assert counts(model(a=HUNDRED), seed=1) != first


# Every key


@pytest.mark.parametrize(
    ("sparsity_range", "expected"), [([0, 0], [0] * 3), ([0.5, 0.5], [50] * 3), ([1, 1], [100] * 3)]
)
def test_a_range_of_one_number_draws_that(sparsity_range: list[float], expected: list[int]):
    assert counts(model(a=HUNDRED), 3, sparsity_range=sparsity_range) == expected


@pytest.mark.parametrize(
    ("keys", "dim", "expected"),
    [
        ({"group_type": "Filters"}, 0, [0, 1]),
        ({"group_type": "3D"}, 0, [0, 1]),
        ({"group_type": "Channels"}, 1, [0, 2]),
        ({"group_type": "Rows"}, 1, [0, 2]),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [2, 4, 1, 1]}}, 0, [0, 1]),
        ({"granularity": {"dim": 0, "heads": 2}}, 0, [0, 1]),
        ({"granularity": {"shape": [4]}}, 1, [0, 2]),
    ],
)
def test_which_groups(keys: dict[str, Any], dim: int, expected: list[int]):
    weight = torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1, 1) * torch.tensor([1.0, 4, 2, 3]).reshape(1, 4, 1, 1)
    run = scheduler(model(a=weight), sparsity_range=[0.5, 0.6], **keys)
    run.on_epoch_begin(0)
    assert gone(run.masks["a.weight"], dim) == expected


def test_group_size_and_rounding_say_how_many():
    plain = counts(model(a=HUNDRED))
    assert counts(model(a=HUNDRED), group_size=8) == [count // 8 * 8 for count in plain]
    assert counts(model(a=HUNDRED), rounding_fn="ceil") == [count + 1 for count in plain]


def test_noise_changes_which_groups_go_and_not_how_many():
    def ranked(noise: float) -> list[int]:
        run = scheduler(model(a=HUNDRED), noise=noise)
        run.on_epoch_begin(0)
        return gone(run.masks["a.weight"])

    plain, noisy = ranked(0), ranked(1)
    assert plain == list(range(len(plain)))
    assert (len(noisy), noisy != plain) == (len(plain), True)


def test_the_draw_of_the_sparsity_is_none_of_the_noises():
    """Else the first groups would be disturbed just where few groups go."""
    pruner = RandomLevelStructureParameterPruner(weights="*", granularity={"dim": 0}, sparsity_range=(0, 1))
    now = Context(nn.Module(), {}, Progress(0), Window(0, 1), {}, {})
    for seed in range(5):
        pruner.seed = seed
        noises = torch.rand(100, generator=pruner.generator(now, "a.weight"))
        assert float((noises - pruner.sparsity_of("a.weight", now)).abs().min()) > 1e-6


# What follows


def test_after_a_lower_draw_groups_leave_the_mask():
    net = model(a=HUNDRED)
    run, seen = scheduler(net), []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        seen.append(len(gone(run.masks["a.weight"])))
        assert int((net.a.weight == 0).sum()) == max(seen), "nothing has brought them back"
    assert sorted(seen) != seen


def test_with_copies_no_weight_is_lost():
    net = model(a=HUNDRED)
    args = {"mask_on_forward_only": True, "use_double_copies": True, "discard_masks_at_minibatch_end": True}
    run = scheduler(net, args=args)
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        run.on_minibatch_begin(epoch, 0, 1)
        assert 20 <= int((net.a.weight == 0).sum()) <= 80
        run.on_minibatch_end(epoch, 0, 1)
        assert torch.equal(net.a.weight, HUNDRED)


def test_a_draw_of_less_than_one_group_is_in_the_trace():
    with capture_logs() as lines:
        scheduler(model(a=rows(1, 2)), trace=None, sparsity_range=[0.1, 0.4]).on_epoch_begin(0)
    assert [line["parameters"] for line in lines if line["event"] == "nothing pruned"] == [["a.weight"]]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.integers(0, 2**40),
)
def test_the_number_stays_within_the_range(number: int, ends: list[float], seed: int):
    low, high = ends
    net = model(a=torch.arange(1.0, number + 1).reshape(-1, 1))
    for count in counts(net, 3, sparsity_range=[low, high], seed=seed):
        assert int(low * number) <= count <= int(high * number)


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"sparsity_range": [0.8, 0.2]}, "sparsity_range", "must ascend, got [0.8, 0.2]"),
        ({"sparsity_range": [0.2, 1.2]}, "sparsity_range[1]", "must be less than or equal to 1, got 1.2"),
        ({"sparsity_range": [-1, 1]}, "sparsity_range[0]", "must be greater than or equal to 0, got -1"),
        ({"sparsity_range": [0.2]}, "sparsity_range", "must have more items, got [0.2]"),
        ({"sparsity_range": [0, 0.5, 1]}, "sparsity_range", "must have at most 2 items"),
        ({"sparsity_range": 0.5}, "sparsity_range", "got 0.5"),
        ({"desired_sparsity": 0.5}, "desired_sparsity", "has no argument 'desired_sparsity'"),
        ({"weights": []}, "weights", "selects nothing"),
        ({"weights": ["c.weight"]}, "weights[0]", "'c.weight' selects nothing in the model"),
        ({"group_type": "Filters"}, "weights", "'a.weight' has shape [4, 2] and no groups 'Filters'"),
        (
            {"weights": ["a.weight", "b.weight"], "group_dependency": "Leader"},
            "weights[1]",
            "'b.weight' has shape [3, 2] and 3 groups; its leader 'a.weight' has [4, 2] and 4",
        ),
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


def test_the_cards_first_schedule_stays_where_the_card_says():
    torch.manual_seed(0)
    seen = []
    for run in run_of_the_card(Network(), 10):
        seen.append([len(gone(run.masks[name])) for name in ("conv1.weight", "conv2.weight")])
    assert all(2 <= count <= 6 for pair in seen for count in pair)
    assert len(set(map(tuple, seen))) > 3
    assert any(one != other for one, other in seen)


# The laws of every component


def test_it_keeps_the_laws():
    check_component(
        RandomLevelStructureParameterPruner, weights="conv?.weight", group_type="Filters", sparsity_range=[0.25, 0.75]
    )
