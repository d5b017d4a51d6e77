"""Random ranking: exact numbers, draws that repeat, targets that do not compound; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_random_ranked_pruner import RandomRankedFilterPruner, RandomRankedFilterPruner_AGP
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


CLASS = "RandomRankedFilterPruner"
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


def pruned(net: nn.Module, dim: int = 0, epoch: int = 0, **keys: Any) -> list[int]:
    """What one epoch prunes of `a.weight`."""
    run = scheduler(net, **keys)
    run.on_epoch_begin(epoch)
    return gone(run.masks["a.weight"], dim) if run.masks else []


FORTY = torch.arange(1.0, 41).reshape(40, 1)


# The draw


def test_exactly_the_number_asked_for_goes_whatever_the_weights():
    chosen = [pruned(model(a=FORTY), seed=seed, desired_sparsity=0.3) for seed in range(20)]
    assert [len(rows) for rows in chosen] == [12] * 20
    assert len(set(map(tuple, chosen))) == 20


def test_every_row_is_as_likely_to_go_as_any_other():
    """The definition: a random permutation. 400 draws of 10 of 40; each row is in about 100 of them."""
    pruner = RandomRankedFilterPruner(weights="*", granularity={"dim": 0}, desired_sparsity=0.25)
    hits, now = torch.zeros(40), Context(nn.Module(), {}, Progress(0), Window(0, 1), {}, {})
    for seed in range(400):
        pruner.seed = seed
        scores = pruner.scores("a.weight", FORTY, pruner.groups(FORTY), now)
        hits[scores.argsort()[:10]] += 1
    assert hits.sum() == 4000
    assert hits.min() > 60 and hits.max() < 140
    assert abs(float(torch.corrcoef(torch.stack([hits, FORTY[:, 0]]))[0, 1])) < 0.4, "large weights go as often"


def test_draws_repeat_with_the_seed_whatever_the_application_draws():
    torch.manual_seed(1)
    first = pruned(model(a=FORTY))
    torch.manual_seed(2)
    assert pruned(model(a=FORTY)) == first
    assert pruned(model(a=FORTY), seed=1) != first


def test_epochs_and_parameters_have_draws_of_their_own():
    assert pruned(model(a=FORTY), epoch=0) != pruned(model(a=FORTY), epoch=1)
    run = scheduler(model(a=FORTY, b=FORTY), weights="*")
    run.on_epoch_begin(0)
    one, other = map(gone, run.masks.values())
    assert one != other


def test_followers_lose_what_their_leader_loses():
    net = model(a=FORTY, b=FORTY)
    alone = pruned(model(b=FORTY, a=FORTY), weights=["a.weight"])
    run = scheduler(net, weights=["b.weight", "a.weight"], group_dependency="Leader")
    run.on_epoch_begin(0)
    assert torch.equal(run.masks["a.weight"], run.masks["b.weight"])
    assert gone(run.masks["a.weight"]) != alone


# A target is a target


def test_a_target_that_is_applied_again_changes_nothing():
    """Elsewhere each epoch masks others, and what was zero stays so until training moves it: 0.4 becomes 0.7."""
    net = model(a=FORTY)
    run, seen = scheduler(net, desired_sparsity=0.4), []
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        seen.append(gone(run.masks["a.weight"]))
        assert int((net.a.weight == 0).sum()) == 16
    assert seen == [seen[0]] * 5


def test_rows_that_are_zero_go_first():
    weight = FORTY.clone()
    weight[[3, 30]] = 0
    for seed in range(10):
        assert {3, 30} <= set(pruned(model(a=weight), seed=seed, desired_sparsity=0.1))


def test_with_copies_every_epoch_masks_others_and_no_weight_is_lost():
    net = model(a=FORTY)
    args = {"mask_on_forward_only": True, "use_double_copies": True, "discard_masks_at_minibatch_end": True}
    run, seen = scheduler(net, args=args), []
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        run.on_minibatch_begin(epoch, 0, 1)
        seen.append(tuple(gone(net.a.weight != 0)))
        run.on_minibatch_end(epoch, 0, 1)
        assert torch.equal(net.a.weight, FORTY)
    assert len(set(seen)) == 3


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.floats(0, 0.4),
    st.floats(0.5, 0.99),
    st.sampled_from(["cubic", "linear", "exponential", "one-shot"]),
    st.integers(0, 2**40),
)
def test_the_budget_is_kept_and_masks_nest_while_weights_stand_still(
    values: list[int], initial: float, final: float, curve: str, seed: int
):
    net = model(a=rows(*values))
    run = scheduler(net, initial_sparsity=initial, final_sparsity=final, curve=curve, seed=seed)
    before: set[int] = set()
    for epoch in range(5):
        run.on_epoch_begin(epoch)
        now = set(gone(run.masks["a.weight"])) if run.masks else set()
        assert before <= now
        before = now
    assert len(before) == int(final * len(values))


# Every other key


@pytest.mark.parametrize(
    ("keys", "dim", "number"),
    [
        ({"group_type": "Filters"}, 0, 2),
        ({"group_type": "3D"}, 0, 2),
        ({"group_type": "Channels"}, 1, 4),
        ({"group_type": "Rows"}, 1, 4),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [2, 8, 1, 1]}}, 0, 2),
        ({"granularity": {"dim": 1}}, 1, 4),
        ({"granularity": {"dim": 1, "size": 4}}, 1, 4),
        ({"granularity": {"shape": [4, 2]}}, 1, 4),
        ({"group_type": "Channels", "desired_sparsity": 0.3}, 1, 2),
        ({"group_type": "Channels", "desired_sparsity": 0.3, "rounding_fn": "ceil"}, 1, 3),
        ({"group_type": "Channels", "desired_sparsity": 0.45, "rounding_fn": "round"}, 1, 4),
        ({"group_type": "Channels", "desired_sparsity": 0.9, "group_size": 4}, 1, 4),
        ({"group_type": "Channels", "desired_sparsity": 1}, 1, 8),
        ({"group_type": "Channels", "desired_sparsity": 0.1}, 1, 0),
    ],
)
def test_which_groups_and_how_many(keys: dict[str, Any], dim: int, number: int):
    assert len(pruned(model(a=torch.ones(4, 8, 1, 1)), dim, **keys)) == number


def test_the_agp_class_prunes_along_a_curve():
    for curve, expected in (("cubic", [4, 20, 28, 31, 32]), ([0, 1, 1], [4, 18, 32, 32, 32])):
        run, seen = scheduler(model(a=FORTY), initial_sparsity=0.1, final_sparsity=0.8, curve=curve), []
        for epoch in range(5):
            run.on_epoch_begin(epoch)
            seen.append(len(gone(run.masks["a.weight"])))
        assert seen == expected


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"noise": 0.5}, "noise", "has no argument 'noise'"),
        ({"weights": []}, "weights", "selects nothing"),
        ({"weights": ["c.weight"]}, "weights[0]", "'c.weight' selects nothing in the model"),
        ({"group_type": "Filters"}, "weights", "'a.weight' has shape [4, 2] and no groups 'Filters'"),
        ({"granularity": {"dim": 1, "heads": 4}}, "weights", "its dimension 1 is not divided into 4 heads"),
        (
            {"weights": ["a.weight", "b.weight"], "group_dependency": "Leader"},
            "weights[1]",
            "'b.weight' has shape [3, 2] and 3 groups; its leader 'a.weight' has [4, 2] and 4",
        ),
        ({"desired_sparsity": 40}, "desired_sparsity", "must be less than or equal to 1, got 40"),
        ({"initial_sparsity": 0.5, "final_sparsity": 0.4}, "final_sparsity", "must be above initial_sparsity 0.5"),
        ({"seed": "one"}, "seed", "must be a valid integer"),
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
    for _ in run_of_the_card(net, 6):
        seen.append([gone(w.flatten(1) != 0) for w in (net.conv1.weight, net.conv3.weight)])
    assert [len(rows) for rows in seen[0]] == [2, 4]
    assert seen == [seen[0]] * 6


# The laws of every component


def test_the_class_keeps_the_laws():
    check_component(RandomRankedFilterPruner, weights="conv?.weight", group_type="Filters", desired_sparsity=0.5)


def test_the_agp_class_keeps_the_laws():
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.5}
    check_component(RandomRankedFilterPruner_AGP, weights="*.weight", granularity={"dim": 0}, **keys)
