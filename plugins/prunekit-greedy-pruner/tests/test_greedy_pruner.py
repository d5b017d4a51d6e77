"""Greedy pruning: which layer loses its next filters, how far the budget goes, every key; and what is refused."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_greedy_pruner import GreedyFilterPruner
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, ScheduleError, Trace, load_plugins
from prunekit.testing import check_component

SILENT = Trace(level="error")
PLUGINS = load_plugins()  # once: it takes longer than all else in a test


class Sum(nn.Module):
    """Adds up what layers make of one number: each filter contributes its weight, and nothing else."""

    def __init__(self, **filters: list[float]) -> None:
        super().__init__()
        for name, weights in filters.items():
            layer = nn.Linear(1, len(weights), bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(weights).reshape(-1, 1))
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x).sum(1) for layer in self.children()]).sum(0)


def scheduler(
    model: nn.Module, trace: Trace | None = SILENT, epochs: Any = (0, 1), **keys: Any
) -> CompressionScheduler:
    pruner = {
        "class": "GreedyFilterPruner",
        "weights": ["a.weight", "b.weight"],
        "desired_sparsity": 0.5,
        "step": 1,
        **keys,
    }
    policy = {"pruner": {"instance_name": "p"}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, model, trace=trace, plugins=PLUGINS)


def gone(run: CompressionScheduler) -> dict[str, list[int]]:
    found = {}
    for name, mask in run.masks.items():
        flat = mask.flatten(1)
        assert torch.equal(flat.all(1), flat.any(1))
        found[name] = (~flat[:, 0]).nonzero().flatten().tolist()
    return found


def pruned(model: nn.Module, *inputs: Tensor, **keys: Any) -> dict[str, list[int]]:
    """The filters that go in epoch 0, after these inputs."""
    run = scheduler(model, **keys)
    for batch in inputs or (torch.ones(1, 1),):
        model(batch)
    run.on_epoch_begin(0)
    return gone(run)


# Which filters


def test_each_step_takes_the_next_filter_of_the_layer_where_the_output_suffers_least() -> None:
    # The output is 34 at first. a loses 1, 2 and 3 (34 - 6), where b's first would cost 7 more than 6.
    assert pruned(Sum(a=[1.0, 2.0, 3.0, 4.0], b=[7.0, 8.0, 9.0, 0.0]), desired_sparsity=0.5) == {
        "a.weight": [0, 1, 2],
        "b.weight": [3],
    }


def test_it_looks_at_what_all_losses_together_do_to_the_output() -> None:
    # Without a's 2 the output is 2 too low. b's -3 then mends more than a's 2.5 would cost: |-2 + 3| < |-2 - 2.5|.
    assert pruned(Sum(a=[2.0, 2.5, 9.0], b=[-3.0, 9.0, 9.0]), desired_sparsity=0.34) == {
        "a.weight": [0],
        "b.weight": [0],
    }


def test_within_a_layer_the_smallest_l1_norm_goes_first_and_of_equal_ones_the_first() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-2.0, 2.0], [3.0, 0.0], [0.0, -3.0]]))
    assert pruned(model, torch.ones(1, 2), weights="0.weight", desired_sparsity=0.34) == {"0.weight": [1]}


def test_of_equal_errors_the_first_layer_counts() -> None:
    assert pruned(Sum(a=[1.0, 1.0], b=[1.0, 1.0]), desired_sparsity=0.25) == {"a.weight": [0]}


def test_every_sequence_of_steps_is_the_greedy_one() -> None:
    """The definition, by brute force: all ways to prune k of each layer, one filter at a time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    images, names = torch.randn(4, 1, 8, 8), ["0.weight", "2.weight", "4.weight"]
    originals = {name: model.get_parameter(name).detach().clone() for name in names}
    reference = model(images).detach()
    sizes, numbers = [9, 27, 36], [3, 4, 2]

    def error(counts: tuple[int, ...]) -> float:
        with torch.no_grad():
            for name, count in zip(names, counts, strict=True):
                weight = originals[name].clone()
                weight[weight.abs().flatten(1).sum(1).argsort()[:count]] = 0
                model.get_parameter(name).copy_(weight)
            found = float((model(images) - reference).square().mean())
            for name in names:
                model.get_parameter(name).copy_(originals[name])
        return found

    counts, budget = (0, 0, 0), int(0.5 * sum(size * number for size, number in zip(sizes, numbers, strict=True)))
    errors = {c: error(c) for c in product(*(range(number) for number in numbers))}
    while True:
        nexts = [tuple(count + (i == j) for j, count in enumerate(counts)) for i in range(3)]
        nexts = [c for c in nexts if c in errors and sum(map(int.__mul__, c, sizes)) <= budget]
        if not nexts:
            break
        counts = min(nexts, key=errors.__getitem__)
    found = pruned(model, images, weights=names)
    assert tuple(len(found.get(name, [])) for name in names) == counts
    assert sum(counts) > 2


# How many


def test_the_budget_is_in_weights_and_filters_have_their_size() -> None:
    # 2 filters of 8 weights and 4 of 2: 24 weights, of which 11 may go. One of 8 fits beside one of 2, no second of 8.
    model = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0.001)
        model[1].weight.fill_(1)
    found = pruned(model, torch.ones(1, 8), weights=["0.weight", "1.weight"], desired_sparsity=0.46)
    assert found == {"0.weight": [0], "1.weight": [0]}


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0, {}),
        (0.2, {}),
        (0.25, {"a.weight": [0]}),
        (0.5, {"a.weight": [0], "b.weight": [0]}),
        (0.99, {"a.weight": [0], "b.weight": [0]}),
        (1, {"a.weight": [0, 1], "b.weight": [0, 1]}),
    ],
)
def test_below_sparsity_1_each_layer_keeps_a_filter(sparsity: float, expected: dict[str, list[int]]) -> None:
    assert pruned(Sum(a=[1.0, 2.0], b=[1.5, 2.5]), desired_sparsity=sparsity) == expected


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, {"a.weight": [0], "b.weight": [0, 1]}),
        (2, {"a.weight": [0, 1], "b.weight": [0]}),
        (0.5, {"a.weight": [0, 1], "b.weight": [0]}),
        (0.01, {"a.weight": [0], "b.weight": [0, 1]}),
        (99, {"a.weight": [0, 1, 2], "b.weight": []}),
    ],
)
def test_the_step_says_how_many_filters_go_at_a_time(step: float, expected: dict[str, list[int]]) -> None:
    # Three may go. One at a time: 1; then 4 rather than 6; then 4.5. Two at a time: 1 + 6 rather than 4 + 4.5; then 4.
    # All three at once: 1 + 6 + 6.5 rather than 4 + 4.5 + 5.5.
    model = Sum(a=[1.0, 6.0, 6.5, 9.0], b=[4.0, 4.5, 5.5, 9.0])
    found = pruned(model, desired_sparsity=0.375, step=step)
    assert {name: found.get(name, []) for name in expected} == expected


def test_pruning_again_changes_nothing_and_pruning_more_begins_with_what_is_gone() -> None:
    model = Sum(a=[1.0, 6.0, 6.5, 9.0], b=[4.0, 4.5, 5.5, 9.0])
    run, seen = scheduler(model, desired_sparsity=0.375, step=2), []
    for epoch in (0, 1):
        model(torch.ones(1, 1))
        run.on_epoch_begin(epoch)
        seen.append(gone(run))
        run.on_epoch_end(epoch)
    assert seen[0] == seen[1] == {"a.weight": [0, 1], "b.weight": [0]}
    more = pruned(model, desired_sparsity=0.5)
    assert all(set(seen[0][name]) <= set(more[name]) for name in more)
    assert sum(map(len, more.values())) == 4


# What is compared


class Scores(nn.Module):
    """Two scores, each the sum of one layer's filters."""

    def __init__(self, **filters: list[float]) -> None:
        super().__init__()
        inner = Sum(**filters)
        self.a, self.b = inner.a, inner.b

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x).sum(1), self.b(x).sum(1)], 1)


def test_outputs_are_compared_by_their_difference_or_as_class_probabilities() -> None:
    # Scores 1.5 and 21.5: one less of the second is nothing to the probabilities, and more to the squares than 0.5.
    for criterion, expected in (("mse", {"a.weight": [0]}), ("kl", {"b.weight": [0]})):
        model = Scores(a=[0.5, 1.0], b=[1.5, 20.0])
        assert pruned(model, desired_sparsity=0.25, criterion=criterion) == expected


def test_the_first_mini_batches_of_training_are_remembered() -> None:
    model = Two()
    inputs = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]])]
    assert pruned(model, *inputs, desired_sparsity=0.25, batches=1) == {"b.weight": [0]}
    assert pruned(Two(), *inputs, desired_sparsity=0.25, batches=2) == {"a.weight": [0]}
    model = Two().eval()
    run = scheduler(model, desired_sparsity=0.25)
    model(inputs[0])
    model.train()
    model(inputs[1])
    run.on_epoch_begin(0)
    assert gone(run) == {"a.weight": [0]}, "evaluation does not count"


class Two(nn.Module):
    """a sees the first input, b the second."""

    def __init__(self) -> None:
        super().__init__()
        inner = Sum(a=[1.0, 2.0], b=[1.0, 2.0])
        self.a, self.b = inner.a, inner.b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x[:, :1]).sum(1) + self.b(x[:, 1:]).sum(1)


class Nested(nn.Module):
    """Takes a pair and a keyword, works in place, returns a dict with something else in it."""

    def __init__(self) -> None:
        super().__init__()
        inner = Sum(a=[1.0, 2.0], b=[3.0, 4.0])
        self.a, self.b = inner.a, inner.b

    def forward(self, pair: tuple[Tensor, Tensor], scale: Tensor, mode: str = "x") -> dict[str, Any]:
        first, second = pair
        scores = self.a(first.mul_(scale)).sum(1) + self.b(second).sum(1)
        return {"scores": [scores], "classes": scores.long(), "mode": mode}


def test_inputs_and_outputs_may_be_nested_and_a_model_may_work_in_place() -> None:
    model = Nested()
    run = scheduler(model, desired_sparsity=0.25)
    model((torch.ones(1, 1), torch.ones(1, 1)), scale=torch.tensor(0.5), mode="y")
    run.on_epoch_begin(0)
    assert gone(run) == {"a.weight": [0]}
    run = scheduler(Nested(), desired_sparsity=0.25)
    run.model((torch.ones(1, 1), torch.ones(1, 1)), scale=torch.tensor(9.0))
    run.on_epoch_begin(0)
    assert gone(run) == {"b.weight": [0]}


def test_weights_buffers_modes_gradients_and_random_numbers_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3))
    model[1].eval()
    run = scheduler(model, weights=["0.weight", "3.weight"])
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    policy = run.policies[0]
    before = [{k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]]
    gradients, state = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    context = policy.context(model, run.masks, run.progress)
    masks = policy.component.compute_masks(policy.parameters, context)
    assert any(not mask.all() for mask in masks.values())
    assert [m.training for m in model.modules()] == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_are_restored_when_the_model_fails() -> None:
    model = Fragile(a=[1.0, 2.0], b=[3.0, 4.0])
    run = scheduler(model)
    model(torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="only in training"):
        run.on_epoch_begin(0)
    assert all(module.training for module in model.modules())


class Fragile(Sum):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("only in training")
        return super().forward(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_is_tried_as_it_is_within(wrap: Any) -> None:
    model = wrap(Sum(a=[1.0, 2.0], b=[3.0, 4.0]))
    assert list(pruned(model, desired_sparsity=0.25).values()) == [[0]]


# Without anything to look at


def warnings_of(model: nn.Module, *inputs: Any) -> list[tuple[str, Any]]:
    with capture_logs() as lines:
        run = scheduler(model, trace=None)
        for batch in inputs:
            model(batch)
        run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    return [(line["event"], line.get("unusable")) for line in lines if line["log_level"] == "warning"]


def test_without_inputs_nothing_is_pruned_and_a_warning_says_so() -> None:
    assert warnings_of(Sum(a=[1.0], b=[2.0])) == [("no input seen, nothing pruned", None)]


class Boxed(Sum):
    def forward(self, x: Any) -> Any:
        return super().forward(torch.ones(1, 1))


def test_inputs_that_no_checkpoint_can_hold_are_not_remembered() -> None:
    assert warnings_of(Boxed(a=[1.0], b=[2.0]), [object()]) == [("no input seen, nothing pruned", "object")]


class Mute(Sum):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).long()


def test_a_model_that_returns_no_floating_tensor_is_not_pruned() -> None:
    expected = [("the model returns no floating tensor, nothing pruned", None)]
    assert warnings_of(Mute(a=[1.0], b=[2.0]), torch.ones(1, 1)) == expected


def test_a_resumed_run_goes_on_with_its_inputs() -> None:
    run = scheduler(Two(), epochs=[1], desired_sparsity=0.25)
    run.on_epoch_begin(0)
    run.model(torch.tensor([[1.0, 0.0]]))
    run.on_epoch_end(0)
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = scheduler(Two(), epochs=[1], desired_sparsity=0.25)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.on_epoch_begin(1)
    assert gone(other) == {"b.weight": [0]}


# What is refused


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"weights": ["a.weight", "bias"]}, "weights[1]", "'bias' has shape [2] and no filters"),
        ({"weights": []}, "weights", "selects nothing: name at least one parameter, or '*'"),
        ({"weights": "c.weight"}, "weights", "'c.weight' selects nothing in the model"),
        ({"step": 0}, "step", "got 0"),
        ({"step": 1.5}, "step", "got 1.5"),
        ({"criterion": "l1"}, "criterion", "must be 'mse' or 'kl', got 'l1'"),
        ({"batches": 0}, "batches", "must be greater than or equal to 1, got 0"),
        ({"desired_sparsity": 1.1}, "desired_sparsity", "must be less than or equal to 1, got 1.1"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], path: str, message: str) -> None:
    model = Sum(a=[1.0], b=[1.0])
    model.register_parameter("bias", nn.Parameter(torch.ones(2)))
    with pytest.raises(ScheduleError) as error:
        scheduler(model, **keys)
    (problem,) = error.value.problems
    assert problem.path == f"pruners.p.{path}"
    assert message in problem.message


# For any weights

WEIGHTS = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=6)


@settings(deadline=None, max_examples=30)
@given(WEIGHTS, WEIGHTS, st.floats(0, 0.99), st.sampled_from([1, 2, 0.3]))
def test_the_budget_is_kept_used_up_and_nested(a: list[float], b: list[float], sparsity: float, step: float) -> None:
    model = Sum(a=a, b=b)
    run = scheduler(model, desired_sparsity=sparsity, step=step)
    model(torch.ones(1, 1))
    run.on_epoch_begin(0)
    first = gone(run)
    count = min(int(sparsity * (len(a) + len(b))), len(a) + len(b) - 2)
    assert sum(map(len, first.values())) == count
    model(torch.ones(1, 1))
    run.on_epoch_begin(1)
    assert gone(run) == first
    more = pruned(model, desired_sparsity=0.99, step=step)
    assert all(set(filters) <= set(more.get(name, [])) for name, filters in first.items())


# A schedule of the card, and the laws


def test_the_first_schedule_of_the_card_prunes_what_the_card_says(tmp_path: Path) -> None:
    card = Path(__file__).parents[1] / "README.md"
    (text, *_) = card.read_text(encoding="utf-8").split("```yaml\n")[1:]
    (tmp_path / "card.yaml").write_text(text.partition("```")[0], encoding="utf-8")
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, 8, 3))
    model.add_module("conv2", nn.Conv2d(8, 8, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = CompressionScheduler.from_yaml(tmp_path / "card.yaml", model, optimizer, trace=SILENT, plugins=PLUGINS)
    for _ in run.epochs(3):
        for images in run.minibatches([torch.randn(2, 3, 6, 6)] * 2):
            optimizer.zero_grad()
            run.total_loss(model(images).square().mean()).backward()
            optimizer.step()
    zeros = sum(int((~mask).sum()) for mask in run.masks.values())
    assert 396 - 72 < zeros <= 396


def test_it_keeps_the_laws() -> None:
    check_component(GreedyFilterPruner, weights="conv2.weight", desired_sparsity=0.5)


def test_several_layers_keep_the_laws_that_do_not_count_filters() -> None:
    laws = ["runs", "boolean_masks", "hands_off", "idempotent", "odd_parameters", "two_processes"]
    check_component(GreedyFilterPruner, weights="conv?.weight", desired_sparsity=0.5, step=2, laws=laws)
