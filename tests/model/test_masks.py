"""Masks: boolean, exact, in force after every optimizer step, whatever the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import (
    MLP,
    SILENT,
    Recorder,
    batches,
    pruning,
    through_a_file,
    train_attached,
    train_explicit,
    window,
    zeros,
)
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from prunekit import CompressionScheduler, PrunekitError, Trace
from prunekit.model.masks import Masks
from prunekit.pruning import prune_count, prune_lowest, prune_smallest

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd with momentum and weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
}
LEVELS = {"fc1.weight": 0.8, "fc2.weight": 0.5}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparsity_holds_after_every_step(name: str) -> None:
    """Peers line 1: gradients masked, weights not, and momentum brings them back."""
    model = MLP()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = CompressionScheduler.from_dict(
        pruning(levels=LEVELS, when=window(1, 2)), model, optimizer, trace=SILENT
    )
    seen = []
    for _ in scheduler.epochs(4):
        for x, y in scheduler.minibatches(batches(5)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            seen.append((zeros(model.fc1.weight), zeros(model.fc2.weight)))
    assert seen == [(0, 0)] * 5 + [(76, 16)] * 15


def test_the_optimizer_needs_no_line_in_the_loop_and_no_event() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert zeros(model.fc1.weight) == 48


def test_without_an_optimizer_the_end_of_the_minibatch_enforces() -> None:
    model = MLP()
    scheduler = CompressionScheduler.from_dict(pruning(), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    with torch.no_grad():
        model.fc1.weight.add_(1)
    scheduler.on_minibatch_end(0, 0, 1)
    assert zeros(model.fc1.weight) == 48


def test_an_optimizer_given_to_an_event_is_hooked_too() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(pruning(), model, trace=SILENT)
    scheduler.on_epoch_begin(0, optimizer=optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert zeros(model.fc1.weight) == 48


def test_gradient_accumulation() -> None:
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
    seen = []
    for _ in scheduler.epochs(2):
        for i, (x, y) in enumerate(scheduler.minibatches(batches(4))):
            scheduler.total_loss(nn.functional.cross_entropy(model(x), y)).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
            seen.append(zeros(model.fc1.weight))
    assert seen == [48] * 8


@pytest.mark.parametrize("copies", [False, True])
def test_a_step_that_amp_skips_changes_nothing(copies: bool) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    args = {"use_double_copies": True, "mask_on_forward_only": True} if copies else None
    scheduler = CompressionScheduler.from_dict(pruning(args=args), model, optimizer, trace=SILENT)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    forward, after = [], []
    for _ in scheduler.epochs(1):
        for i, (x, y) in enumerate(scheduler.minibatches(batches(3))):
            forward.append(zeros(model.fc1.weight))
            before = model.fc1.weight.detach().clone()
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            if i == 1:
                model.fc1.weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            if i == 1:
                assert torch.equal(model.fc1.weight, before)
        after.append(zeros(model.fc1.weight))
    assert forward == [48, 48, 48]
    assert after == [0 if copies else 48]


def test_double_copies_update_the_unmasked_weights_in_both_ways_of_use() -> None:
    weights = []
    args = {"use_double_copies": True, "mask_on_forward_only": True}
    for explicit in (False, True):
        model = MLP()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = CompressionScheduler.from_dict(pruning(args=args), model, optimizer, trace=SILENT)
        ends = [model.fc1.weight]
        if explicit:
            train_explicit(scheduler, optimizer, range(2))
        else:
            train_attached(
                scheduler, optimizer, 2, after_epoch=lambda _, ends=ends: ends.append(ends[0].detach().clone())
            )
            assert zeros(model.fc1.weight) == 48, "training has ended"
        assert zeros(ends[-1]) == 0
        weights.append(ends[-1].detach().clone())
    assert torch.equal(*weights)


def test_a_loop_that_leaves_a_minibatch_in_the_middle_loses_no_weights() -> None:
    model = MLP()
    args = {"use_double_copies": True, "mask_on_forward_only": True}
    scheduler = CompressionScheduler.from_dict(pruning(args=args), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    for _ in scheduler.minibatches([1, 2]):
        break
    for _ in scheduler.minibatches([1, 2]):
        assert zeros(model.fc1.weight) == 48
    assert zeros(model.fc1.weight) == 0


def test_evaluation_under_masked_sees_masks_that_only_the_forward_pass_sees() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = {"use_double_copies": True, "mask_on_forward_only": True}
    scheduler = CompressionScheduler.from_dict(pruning(args=args), model, optimizer, trace=SILENT)
    train_attached(scheduler, optimizer, 1)
    before = model.fc1.weight.detach().clone()
    with scheduler.masked():
        assert zeros(model.fc1.weight) == 48
    assert torch.equal(model.fc1.weight, before)


def test_masked_gradients_leave_masked_weights_where_they_are() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = {"mask_gradients": True, "mask_on_forward_only": True, "use_double_copies": True}
    start = model.fc1.weight.detach().clone()
    scheduler = CompressionScheduler.from_dict(pruning(args=args, when=window(0, 1)), model, optimizer, trace=SILENT)
    ends: list[torch.Tensor] = []
    train_attached(scheduler, optimizer, 1, after_epoch=lambda _: ends.append(model.fc1.weight.detach().clone()))
    masked = ~scheduler.masks["fc1.weight"]
    assert torch.equal(ends[0][masked], start[masked])
    assert not torch.equal(model.fc1.weight, start)
    x, y = batches()[0]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    assert model.fc1.weight.grad[masked].any(), "the hook is gone after the last active epoch"


def test_what_a_regularizer_leaves_holds_beside_a_mask_that_only_the_forward_pass_sees() -> None:
    model = MLP()
    parameter = model.fc1.weight
    masks, kept, pruned = (
        Masks({"w": parameter}),
        torch.ones(8, 12, dtype=torch.bool),
        torch.ones(8, 12, dtype=torch.bool),
    )
    kept[0], pruned[1] = False, False
    masks.set("w", pruned, forward_only=True, double_copies=True)
    masks.intersect("w", kept)
    masks.activate(["w"])
    assert [zeros(row) for row in parameter[:3]] == [12, 0, 0]
    masks.begin_forward()
    assert [zeros(row) for row in parameter[:3]] == [12, 12, 0]
    masks.end_forward()
    with torch.no_grad():
        parameter.add_(1)
    masks.enforce()
    assert [zeros(row) for row in parameter[:3]] == [12, 0, 0]
    assert torch.equal(masks["w"], kept & pruned)


def test_skip_first_minibatch_prunes_from_the_second_on() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = {"skip_first_minibatch": True}
    scheduler = CompressionScheduler.from_dict(pruning(args=args), model, optimizer, trace=SILENT)
    seen = []
    for _ in scheduler.epochs(1):
        for x, y in scheduler.minibatches(batches(3)):
            seen.append(zeros(model.fc1.weight))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert seen == [0, 48, 48]


def test_pruning_every_39th_step_of_391_an_epoch_fires_when_planned() -> None:
    """Peers line 5: "every 0.1 epoch" by floating-point modulo fires once in 101. Here steps are integers."""
    logger = Recorder()
    args = {"mini_batch_pruning_frequency": 39}
    model = MLP()
    schedule = pruning(args=args, when=window(0, 2))
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=Trace(logger=logger))
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        for minibatch in range(391):
            scheduler.on_minibatch_begin(epoch, minibatch, 391)
            scheduler.on_minibatch_end(epoch, minibatch, 391)
        scheduler.on_epoch_end(epoch)
    fired = [391 * line["epoch"] + line.get("minibatch", 0) for line in logger.events("masks changed")]
    assert fired == [0, *range(39, 391, 39), 391, *range(429, 782, 39)]


def test_schedulers_share_no_state() -> None:
    """Peers line 20: a mutable default leaks one pruner's settings into the next."""
    schedule = pruning("SensitivityPruner", sensitivities={"fc1.weight": 0.5})
    narrow, wide = MLP(), MLP()
    with torch.no_grad():
        wide.fc1.weight.mul_(100)
    first, second = (CompressionScheduler.from_dict(schedule, model, trace=SILENT) for model in (narrow, wide))
    for scheduler in (first, second):
        scheduler.on_epoch_begin(0)
    assert torch.equal(first.masks["fc1.weight"], second.masks["fc1.weight"]), "each by its own standard deviation"
    sigmas = [
        scheduler.state_dict()["components"]["pruners.p"]["sigmas"]["fc1.weight"] for scheduler in (first, second)
    ]
    assert sigmas[1] == pytest.approx(100 * sigmas[0])


def test_a_target_applied_again_changes_nothing() -> None:
    """Peers line 3: a constant target compounds, and 50 % in three epochs becomes 87.5 %."""
    model = MLP()
    scheduler = CompressionScheduler.from_dict(pruning(), model, trace=SILENT)
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        assert zeros(model.fc1.weight) == 48


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_enforcement_is_exact_in_every_dtype_and_memory_layout(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 3, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    parameter = nn.Parameter(weight.clone())
    masks = Masks({"w": parameter})
    mask = torch.rand(4, 3, 5, 5) > 0.5
    masks.set("w", mask)
    assert torch.equal(parameter.detach(), torch.where(mask, weight, torch.zeros((), dtype=dtype)))
    with torch.no_grad():
        parameter[~mask] = float("nan")
        parameter[0, 0, 0, 0] = -float("inf")
    masks.enforce()
    bits = parameter.detach()[~mask].contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    assert not bits[1:].any(), "plus zero, not minus zero, and no NaN left"


def test_scalar_empty_and_frozen_parameters_can_be_masked() -> None:
    parameters = {
        "scalar": nn.Parameter(torch.tensor(3.0)),
        "empty": nn.Parameter(torch.empty(0, 4)),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
    }
    masks = Masks(parameters)
    for name, parameter in parameters.items():
        masks.set(name, torch.zeros_like(parameter, dtype=torch.bool))
    assert [parameter.sum().item() for parameter in parameters.values()] == [0.0, 0.0, 0.0]
    assert [masks.sparsity(name) for name in parameters] == [1.0, 0.0, 1.0]


def test_tied_weights_are_pruned_once_under_either_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

    for name in ("embed.weight", "head.weight"):
        model = Tied()
        scheduler = CompressionScheduler.from_dict(pruning(levels={name: 0.5}), model, trace=SILENT)
        scheduler.on_epoch_begin(0)
        assert list(scheduler.masks) == ["embed.weight"]
        assert zeros(model.head.weight) == 12
        assert (scheduler.sparsity("embed.weight"), scheduler.sparsity("head.weight")) == (0.5, 0.5)


def test_a_changing_mask_does_not_recompile_a_compiled_model() -> None:
    """Peers line 19."""
    from torch._dynamo.testing import CompileCounter

    model, counter = MLP(), CompileCounter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend=counter)
    keys = {"initial_sparsity": 0.1, "final_sparsity": 0.9, "weights": ["fc*.weight"]}
    schedule = pruning("AutomatedGradualPruner", window(0, 5), **keys)
    scheduler = CompressionScheduler.from_dict(schedule, compiled, optimizer, trace=SILENT)
    train_attached(scheduler, optimizer, 5)
    assert counter.frame_count == 1
    assert scheduler.sparsity("fc1.weight") == 86 / 96
    assert list(scheduler.masks) == ["fc1.weight", "fc2.weight"]


def test_a_parameter_may_be_given_new_memory() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    for parameter in model.parameters():
        parameter.data = torch.ones_like(parameter)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert zeros(model.fc1.weight) == 48


def test_the_model_may_move_and_its_weights_be_loaded_in_place() -> None:
    model = MLP()
    scheduler = CompressionScheduler.from_dict(pruning(), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    model.load_state_dict(MLP(seed=3).state_dict())
    scheduler.on_minibatch_begin(0, 0, 1)
    scheduler.on_minibatch_end(0, 0, 1)
    assert zeros(model.fc1.weight) == 48


class Stream(IterableDataset[int]):
    """Two samples; nobody knows how many there are."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


@pytest.mark.parametrize("make", [lambda: iter([1, 2]), lambda: DataLoader(Stream(), batch_size=None)])
def test_loader_without_a_length_must_say_it(make: Callable[[], Any]) -> None:
    scheduler = CompressionScheduler.from_dict(pruning(), MLP(), trace=SILENT)
    scheduler.on_epoch_begin(0)
    with pytest.raises(PrunekitError, match="the loader has no length; say it"):
        next(scheduler.minibatches(make()))
    assert list(scheduler.minibatches(make(), length=2)) == [1, 2]


# Scales: what the forward pass alone sees larger


def scaled(**flags: bool) -> tuple[nn.Parameter, Masks]:
    """Two of four weights are kept, and doubled in the forward pass."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    masks = Masks({"w": parameter})
    masks.set("w", torch.tensor([True, False, True, False]), scale=2.0, **flags)
    masks.activate(["w"])
    return parameter, masks


def add_one(parameter: nn.Parameter, masks: Masks) -> None:
    """What an optimizer's step does."""
    masks.end_forward()
    with torch.no_grad():
        parameter.add_(1)
    masks.enforce()


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ({}, [1, 0, 3, 0], [2, 0, 4, 0]),
        ({"forward_only": True}, [1, 2, 3, 4], [2, 3, 4, 5]),
        ({"forward_only": True, "double_copies": True}, [1, 2, 3, 4], [2, 3, 4, 5]),
    ],
)
def test_kept_weights_are_scaled_in_the_forward_pass_alone(
    flags: dict[str, bool], before: list[int], after: list[int]
) -> None:
    parameter, masks = scaled(**flags)
    assert parameter.tolist() == before
    for _ in range(2):
        masks.begin_forward()
        assert parameter.tolist() == [2, 0, 6, 0]
        masks.end_forward()
        assert parameter.tolist() == before, "a scale does not compound"
    masks.begin_forward()
    add_one(parameter, masks)
    assert parameter.tolist() == after


def test_an_evaluation_under_masked_sees_the_scale_once() -> None:
    parameter, masks = scaled()
    with masks.applied():
        assert parameter.tolist() == [2, 0, 6, 0]
    masks.begin_forward()
    with masks.applied():
        assert parameter.tolist() == [2, 0, 6, 0]
    assert parameter.tolist() == [1, 0, 3, 0]


def test_a_scale_lasts_as_long_as_its_mask_does_and_no_longer() -> None:
    parameter, masks = scaled()
    masks.activate([])  # an epoch between two active ones, or after the window: the mask is in force
    masks.begin_forward()
    assert parameter.tolist() == [2, 0, 6, 0]
    masks.end_forward()
    masks.set("w", torch.tensor([True, True, True, False]))
    masks.begin_forward()
    assert parameter.tolist() == [1, 0, 3, 0]
    masks.end_forward()
    masks.drop("w")
    masks.begin_forward()
    assert (parameter.tolist(), len(masks)) == ([1, 0, 3, 0], 0)


def test_a_mask_that_only_the_forward_pass_sees_rests_with_its_scale_between_active_epochs() -> None:
    parameter, masks = scaled(forward_only=True, double_copies=True)
    masks.activate([])
    masks.begin_forward()
    assert parameter.tolist() == [1, 2, 3, 4]


def test_a_mask_that_is_kept_loses_its_scale() -> None:
    parameter, masks = scaled(forward_only=True, double_copies=True)
    masks.keep("w")
    masks.begin_forward()
    assert parameter.tolist() == [1, 0, 3, 0]
    add_one(parameter, masks)
    assert parameter.tolist() == [2, 0, 4, 0]


def test_a_scale_is_part_of_the_state() -> None:
    state = through_a_file(scaled()[1].state_dict())
    assert state["w"]["scale"] == 2.0
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    masks = Masks({"w": parameter})
    masks.load_state_dict(state)
    masks.begin_forward()
    assert parameter.tolist() == [2, 0, 6, 0]
    masks.end_forward()
    assert parameter.tolist() == [1, 0, 3, 0]


def test_a_scale_is_put_back_when_a_listener_fails_over_the_next_mask() -> None:
    parameter, masks = scaled()
    restore = masks.snapshot(["w"])
    masks.set("w", torch.tensor([False, False, True, False]), scale=4.0)
    restore()
    masks.begin_forward()
    assert parameter.tolist() == [2, 0, 6, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_come_back_from_a_scale_bit_for_bit(dtype: torch.dtype) -> None:
    weights = torch.linspace(-1, 1, 30).to(dtype)
    parameter = nn.Parameter(weights.clone())
    masks = Masks({"w": parameter})
    masks.set("w", torch.ones(30, dtype=torch.bool), scale=30 / 7)
    masks.activate(["w"])
    masks.begin_forward()
    assert not torch.equal(parameter, weights)
    masks.end_forward()
    assert torch.equal(parameter, weights)


def dropping(args: dict[str, bool] | None = None, when: dict[str, int] | None = None) -> dict[str, Any]:
    return pruning(
        "BernoulliFilterPruner", when, args, weights="fc1.weight", granularity={"dim": 0}, desired_sparsity=0.5
    )


@pytest.mark.parametrize(
    "args",
    [
        None,
        {"keep_mask": True},
        {"discard_masks_at_minibatch_end": True, "use_double_copies": True, "mask_on_forward_only": True},
        {"mask_gradients": True, "use_double_copies": True, "mask_on_forward_only": True},
    ],
)
def test_a_run_under_a_scaling_pruner_resumed_within_an_epoch_equals_the_straight_one(
    args: dict[str, bool] | None,
) -> None:
    def start() -> tuple[MLP, torch.optim.Optimizer, CompressionScheduler]:
        model = MLP()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, CompressionScheduler.from_dict(dropping(args), model, optimizer, trace=SILENT)

    model, optimizer, scheduler = start()
    train_explicit(scheduler, optimizer, range(5))

    before, first, halfway = start()
    train_explicit(halfway, first, range(1))
    halfway.on_epoch_begin(1)
    step(before, first, halfway, 1, 0)
    after, second, resumed = start()
    after.load_state_dict(before.state_dict())
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(through_a_file(halfway.state_dict()))
    for minibatch in (1, 2, 3):
        step(after, second, resumed, 1, minibatch)
    resumed.on_epoch_end(1)
    train_explicit(resumed, second, range(2, 5))
    assert {name: value.tolist() for name, value in after.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: CompressionScheduler, epoch: int, minibatch: int
) -> None:
    x, y = batches()[minibatch]
    scheduler.on_minibatch_begin(epoch, minibatch, 4)
    loss = scheduler.before_backward_pass(epoch, minibatch, 4, nn.functional.cross_entropy(model(x), y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.on_minibatch_end(epoch, minibatch, 4)


def test_the_loss_of_a_scaling_pruner_is_that_of_the_scaled_weights_and_its_gradient_too() -> None:
    model = MLP()
    scheduler = CompressionScheduler.from_dict(dropping(), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    mask = scheduler.masks["fc1.weight"]
    scale = mask.numel() / int(mask.sum())
    by_hand, (x, y) = MLP(), batches()[0]
    with torch.no_grad():
        by_hand.fc1.weight.mul_(mask).mul_(scale)
    expected = nn.functional.cross_entropy(by_hand(x), y)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = nn.functional.cross_entropy(model(x), y)
    assert scale > 1
    assert loss.item() == expected.item()


@pytest.mark.parametrize("frequency", [1, 2])
def test_a_dropped_row_stays_out_and_the_others_stay_scaled_in_every_epoch_in_which_the_mask_holds(
    frequency: int,
) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = dropping(when=window(0, 3, frequency))
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT)
    for _ in scheduler.epochs(5):
        mask = scheduler.masks["fc1.weight"].clone()
        for x, y in scheduler.minibatches(batches(2)):
            with torch.no_grad():
                seen = model.fc1.weight.detach().clone()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            scheduler._execution.masks.end_forward()
            own = model.fc1.weight.detach().clone()
            optimizer.step()
            assert torch.equal(seen, own * mask * (mask.numel() / int(mask.sum())))
            assert not model.fc1.weight[~mask].any()


@given(
    st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.5, 0.5, 2.0, 3.25, 1e-30]), max_size=40),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_exactly_the_lowest_are_pruned_and_ties_by_index(
    values: list[float], sparsity: float, dtype: torch.dtype
) -> None:
    scores = torch.tensor(values, dtype=dtype)
    mask = prune_lowest(scores, sparsity)
    order = sorted(range(len(values)), key=lambda i: (scores[i].item(), i))
    expected = torch.ones(len(values), dtype=torch.bool)
    expected[order[: int(sparsity * len(values))]] = False
    assert torch.equal(mask, expected)
    count = int(sparsity * len(values))
    assert torch.equal(prune_smallest(scores, count), prune_count(scores.abs(), count))


def test_scores_that_hold_nan_are_refused() -> None:
    nan = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="scores hold NaN"):
        prune_lowest(nan, 0.5)
    with pytest.raises(ValueError, match="weights hold NaN"):
        prune_smallest(-nan, 1)
    assert prune_smallest(torch.tensor([-float("inf"), 1.0]), 1).tolist() == [True, False]


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=20), st.floats(0, 1))
def test_the_path_for_accelerators_gives_the_same_masks(values: list[float], sparsity: float) -> None:
    from prunekit.pruning.selection import _on_device

    scores, count = torch.tensor(values), int(sparsity * len(values))
    if 0 < count < len(values):
        assert torch.equal(_on_device(scores, count), prune_lowest(scores, sparsity))


STRUCTURES = {
    "filters": ((4, 3, 5, 5), (4, 1, 1, 1)),
    "filters of 1 × 1": ((4, 32, 1, 1), (4, 1, 1, 1)),
    "rows": ((4, 32), (4, 1)),
    "columns": ((4, 32), (1, 32)),
    "kernels": ((4, 3, 5, 5), (4, 3, 1, 1)),
    "few weights": ((4, 3), (4, 1)),
    "all": ((4, 32), (1, 1)),
    "none": ((0, 32), (0, 1)),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("args", [{}, {"double_copies": True}, {"scale": 2.0}])
def test_a_mask_that_is_a_view_of_a_few_values_does_what_the_whole_mask_does(
    structure: str, args: dict[str, Any]
) -> None:
    shape, thin = STRUCTURES[structure]
    generator = torch.Generator().manual_seed(0)
    view = (torch.rand(thin, generator=generator) > 0.5).expand(shape)
    outcomes = []
    for mask in (view, view.contiguous()):
        parameter = nn.Parameter(torch.arange(1.0, 1 + math.prod(shape)).reshape(shape))
        masks = Masks({"w": parameter})
        masks.set("w", mask, **args)
        masks.activate(["w"])
        masks.begin_forward()
        forward = parameter.detach().clone()
        masks.end_forward()
        with torch.no_grad():
            parameter.add_(1)
        masks.enforce()
        state = masks.state_dict()
        restored = Masks({"w": parameter})
        restored.load_state_dict(state)
        masks.intersect("w", torch.ones(shape, dtype=torch.bool))
        outcomes.append((forward, parameter.detach(), masks.sparsity("w"), masks["w"], state["w"]["pruned"]))
        assert masks["w"].is_contiguous()
        assert restored["w"].equal(mask)
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_mask_does_not_follow_what_becomes_of_the_values_that_it_was_a_view_of() -> None:
    values = torch.tensor([[True], [False]])
    masks = Masks({"w": nn.Parameter(torch.ones(2, 32))})
    masks.set("w", values.expand(2, 32))
    values.fill_(False)
    assert masks["w"].sum(1).tolist() == [32, 0]
