"""Masks whoever writes to the weights: put back before a forward pass, and counted as it will see them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, pruning, zeros
from torch import Tensor, nn

from prunekit import CompressionScheduler, PrunekitError
from prunekit.model.masks import Masks

LEVELS = {"fc1.weight": 0.5, "fc2.weight": 0.5}
BOTH = {"mask_on_forward_only": True, "use_double_copies": True}


def scheduled(optimizer: torch.optim.Optimizer | None = None, **options: Any) -> tuple[CompressionScheduler, Any]:
    """A scheduler in the first mini-batch of epoch 0, and its model."""
    model = MLP()
    scheduler = CompressionScheduler.from_dict(pruning(levels=LEVELS, **options), model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    return scheduler, model


def test_masks_of_some_parameters_alone_can_be_enforced() -> None:
    scheduler, model = scheduled()
    load(model)
    for _ in range(2):
        scheduler._execution.masks.enforce(frozenset({"fc2.weight", "fc2.bias"}))
        assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (0, 16)
    scheduler._execution.masks.enforce(frozenset())
    assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (0, 16)
    scheduler._execution.masks.enforce()
    assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (48, 16)


def test_weights_that_nobody_has_written_to_are_left_alone() -> None:
    scheduler, model = scheduled()
    version = model.fc1.weight._version
    scheduler.on_minibatch_end(0, 0, 2)
    enforced = model.fc1.weight._version
    scheduler.on_minibatch_begin(0, 1, 2)
    assert (enforced, model.fc1.weight._version) == (version + 1, enforced)


def load(model: nn.Module) -> None:
    model.load_state_dict(MLP(seed=3).state_dict())


def write_through_data(model: Any) -> None:
    model.fc1.weight.data.normal_()
    model.fc2.weight.data.normal_()


def write_through_numpy(model: Any) -> None:
    model.fc1.weight.detach().numpy()[:] = 1
    model.fc2.weight.detach().numpy()[:] = 1


@pytest.mark.parametrize("write", [load, write_through_data, write_through_numpy])
def test_what_is_counted_and_saved_is_masked_whoever_has_written(write: Callable[[Any], None]) -> None:
    scheduler, model = scheduled()
    scheduler.on_minibatch_end(0, 0, 2)
    write(model)
    assert scheduler.sparsity("fc1.weight") == 0.5
    assert scheduler.sparsity() == 64 / 140
    assert zeros(model.fc1.weight) == 0, "counting writes nothing"
    with scheduler.masked():
        assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (48, 16)
    write(model)
    scheduler.state_dict()
    assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (48, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_an_optimizer_that_steps_right_after_a_conversion_leaves_masked_weights(dtype: torch.dtype) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(pruning(levels=LEVELS), model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    model.fc1.to(dtype)  # the other layer stays: the masks are of two widths now
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (zeros(model.fc1.weight), zeros(model.fc2.weight)) == (48, 16)
    assert model.fc1.weight.dtype == dtype


# Weights that are set aside while the forward pass sees masked ones


def test_what_is_loaded_in_the_middle_of_a_minibatch_is_not_undone_by_the_copy() -> None:
    scheduler, model = scheduled(args=BOTH)
    load(model)
    scheduler.before_parameter_optimization(0, 0, 2)
    assert torch.equal(model.fc1.weight, MLP(seed=3).fc1.weight)
    scheduler.on_minibatch_end(0, 0, 2)
    scheduler.on_minibatch_begin(0, 1, 2)
    assert zeros(model.fc1.weight) == 48


def test_data_that_is_assigned_in_the_middle_of_a_minibatch_is_not_undone_by_the_copy() -> None:
    scheduler, model = scheduled(args=BOTH)
    model.fc1.weight.data = torch.ones(8, 12)
    scheduler.before_parameter_optimization(0, 0, 2)
    assert torch.equal(model.fc1.weight, torch.ones(8, 12))


@pytest.mark.parametrize("convert", [lambda model: model.double(), lambda model: model.double().float()])
def test_a_conversion_in_the_middle_of_a_minibatch_leaves_the_copy_wanted(convert: Callable[[Any], Any]) -> None:
    scheduler, model = scheduled(args=BOTH)
    assert zeros(model.fc1.weight) == 48
    convert(model)
    scheduler.before_parameter_optimization(0, 0, 2)
    assert torch.equal(model.fc1.weight.float(), MLP().fc1.weight)


def test_asking_in_the_middle_of_a_minibatch_leaves_the_copy_wanted() -> None:
    scheduler, model = scheduled(args=BOTH)
    assert scheduler.sparsity("fc1.weight") == 0.5
    scheduler.state_dict()
    scheduler.before_parameter_optimization(0, 0, 2)
    assert torch.equal(model.fc1.weight, MLP().fc1.weight)


def test_a_minibatch_that_is_left_in_the_middle_costs_no_weights() -> None:
    scheduler, model = scheduled(args=BOTH)
    scheduler.on_epoch_begin(1)
    assert torch.equal(model.fc1.weight, MLP().fc1.weight)


# Copies, and memory of any layout


def test_a_copy_of_model_and_scheduler_holds_its_own_masks() -> None:
    scheduler, _ = scheduled()
    scheduler._execution.masks.hold()
    other, model = copy.deepcopy((scheduler._execution.masks, scheduler.model))
    for weights in (model, scheduler.model):
        load(weights)
    other.hold()
    assert (zeros(model.fc1.weight), zeros(scheduler.model.fc1.weight)) == (48, 0)


def transposed(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("lay_out", [Tensor.contiguous, transposed, lambda weight: weight.repeat(1, 2)[:, ::2]])
def test_a_write_through_data_shows_in_memory_of_any_layout(lay_out: Callable[[Tensor], Tensor], rows: bool) -> None:
    weight = nn.Parameter(torch.ones(40, 20))
    weight.data = lay_out(weight.data)
    masks, mask = Masks({"weight": weight}), torch.ones(40, 20, dtype=torch.bool)
    if rows:
        mask = (torch.arange(40) != 7)[:, None].expand(40, 20)
    else:
        mask[7, 3] = False
    masks.set("weight", mask)
    masks.enforce()
    masks.hold()
    expected = weight.detach().clone()
    weight.data.fill_(1)
    masks.hold()
    assert torch.equal(weight, expected)
    assert not weight.all()


@pytest.mark.parametrize("mask", [torch.ones(0, 3, dtype=torch.bool), torch.ones(3, 0, dtype=torch.bool)])
def test_a_mask_without_elements_is_held_too(mask: Tensor) -> None:
    weight = nn.Parameter(torch.ones(mask.shape))
    masks = Masks({"weight": weight})
    masks.set("weight", mask)
    masks.enforce()
    masks.hold()
    assert masks.sparsity("weight") == 0


def test_data_of_another_shape_is_an_error_also_where_only_the_forward_pass_is_masked() -> None:
    scheduler, model = scheduled(args={"mask_on_forward_only": True})
    scheduler.on_minibatch_end(0, 0, 2)
    model.fc1.weight.data = torch.ones(6, 12)
    with pytest.raises(
        PrunekitError, match=r"^the mask of 'fc1.weight' is \(8, 12\), and the parameter is \(6, 12\) now$"
    ):
        scheduler.on_minibatch_begin(0, 1, 2)


def test_a_whole_run_with_rewinds_has_masks_in_each_forward_pass() -> None:
    """A lottery ticket: the weights go back to where they began, and what was pruned stays pruned."""
    model, start, seen = MLP(), MLP().state_dict(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler.from_dict(pruning(levels=LEVELS), model, optimizer, trace=SILENT)
    for epoch in scheduler.epochs(3):
        model.load_state_dict(start)
        for x, y in scheduler.minibatches(batches(2)):
            seen.append(
                (epoch, zeros(model.fc1.weight), torch.equal(*kept(model, start, scheduler.masks["fc1.weight"])))
            )
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert seen == [(e, 48, first) for e in range(3) for first in (True, False)]


def kept(model: Any, start: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    return model.fc1.weight[mask], start["fc1.weight"][mask]
