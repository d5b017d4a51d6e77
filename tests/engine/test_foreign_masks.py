"""Masks from elsewhere: what `take_masks` takes, until when it holds, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import MLP, SILENT, Recorder, pruning, through_a_file, train_explicit, window
from torch import Tensor, nn
from torch.nn.utils import prune

from prunekit import CompressionScheduler, StateError, Trace

LATE = pruning(when=window(2, 4), levels={"fc2.weight": 0.5})
"""A schedule that prunes fc2.weight from epoch 2 on."""
MASK = torch.arange(96).reshape(8, 12) % 3 != 0
BIAS = torch.tensor([True, False] * 4)


def run_of(net: nn.Module | None = None, schedule: dict[str, Any] = LATE, **options: Any) -> CompressionScheduler:
    net = net or MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return CompressionScheduler.from_dict(schedule, net, optimizer, **{"trace": SILENT, **options})


def taken(source: Any, net: nn.Module | None = None) -> dict[str, Tensor]:
    run = run_of(net)
    run.take_masks(source)
    return dict(run.masks)


def masks_are(masks: dict[str, Tensor], **expected: Tensor) -> bool:
    expected = {name.replace("_", "."): mask for name, mask in expected.items()}
    return masks.keys() == expected.keys() and all(torch.equal(masks[name], expected[name]) for name in masks)


def sparse_net() -> MLP:
    """fc1.weight has zeros where MASK is False, and fc1.bias has some too."""
    net = MLP()
    with torch.no_grad():
        net.fc1.weight.mul_(MASK)
        net.fc1.bias.mul_(BIAS)
    return net


# Masks by name


@pytest.mark.parametrize(
    "given",
    [
        MASK,
        MASK.to(torch.uint8),
        MASK.long(),
        MASK.float(),
        MASK.half(),
        MASK.numpy(),
        MASK.numpy().astype(np.float64),
        MASK.tolist(),
        MASK.float().to_sparse(),
        nn.Parameter(MASK.float()),
        MASK.T.contiguous().T,
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_a_mask_of_any_type_is_taken(given):
    assert masks_are(taken({"fc1.weight": given}), fc1_weight=MASK)


@pytest.mark.parametrize(
    "source",
    [
        {"fc1.weight": MASK, "fc1.bias": BIAS},
        {"module.fc1.weight": MASK, "_orig_mod.fc1.bias": BIAS},
        {"fc1.weight_mask": MASK.float(), "fc1.bias_mask": BIAS},
        {"masks_dict": {"fc1.weight": MASK.float(), "fc1.bias": BIAS.float(), "fc2.weight": None}},
    ],
    ids=["names", "wrapped", "torch's names", "distiller"],
)
def test_masks_are_found_by_the_names_that_others_give(source):
    assert masks_are(taken(source), fc1_weight=MASK, fc1_bias=BIAS)
    wrapped = CompressionScheduler.from_dict(
        pruning(when=window(2, 4), levels={"*fc2.weight": 0.5}), nn.DataParallel(MLP()), trace=SILENT
    )
    wrapped.take_masks(source)
    assert list(wrapped.masks) == ["module.fc1.weight", "module.fc1.bias"]


def pruned_by_torch() -> MLP:
    net = MLP()
    prune.custom_from_mask(net.fc1, "weight", MASK)
    prune.custom_from_mask(net.fc1, "bias", BIAS)
    return net


@pytest.mark.parametrize("source", [lambda net: net, nn.Module.state_dict, lambda net: dict(net.named_buffers())])
def test_what_torch_has_pruned_is_taken(source):
    assert masks_are(taken(source(pruned_by_torch())), fc1_weight=MASK, fc1_bias=BIAS)


def test_what_torch_has_pruned_is_taken_where_it_is_trained():
    masks = taken(None, pruned_by_torch())
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "fc1.weight_orig": MASK.tolist(),
        "fc1.bias_orig": BIAS.tolist(),
    }


# A state of another schedule


def test_a_state_of_another_schedule_is_refused_with_a_word_about_the_way():
    run = run_of(schedule=pruning())
    with pytest.raises(StateError, match=r"another schedule \(scheduler\.take_masks\(state\) takes its masks alone\)"):
        run_of().load_state_dict(run.state_dict())


@pytest.mark.parametrize("args", [{}, {"mask_on_forward_only": True}])
def test_of_a_state_the_masks_alone_are_taken_and_enforced(args):
    before = run_of(schedule=pruning(args=args))
    train_explicit(before, before.optimizer, range(1))
    run = run_of()
    run.take_masks(through_a_file(before.state_dict()))
    assert torch.equal(run.masks["fc1.weight"], before.masks["fc1.weight"])
    train_explicit(run, run.optimizer, range(2))
    assert (run.sparsity("fc1.weight"), int((run.model.fc1.weight == 0).sum())) == (0.5, 48)


def test_what_a_regularizer_has_left_is_taken_with_what_a_pruner_has_masked():
    before = run_of(schedule=pruning())
    before.on_epoch_begin(0)
    before._execution.masks.intersect("fc1.weight", MASK)
    assert masks_are(taken(before.state_dict()), fc1_weight=before.masks["fc1.weight"])


# Zeros


@pytest.mark.parametrize(
    "source",
    [lambda net: None, lambda net: net, lambda net: net.state_dict(), lambda net: nn.DataParallel(net)],
    ids=["its own", "a model", "a state_dict", "wrapped"],
)
def test_zeros_of_weights_are_taken_and_those_of_biases_are_not(source):
    net = sparse_net()
    assert masks_are(taken(source(net), net), fc1_weight=MASK)


def test_a_weight_that_is_zero_all_over_is_left_out_with_a_warning():
    net, recorder = sparse_net(), Recorder()
    nn.init.zeros_(net.fc2.weight)
    run = run_of(net, trace=Trace(logger=recorder))
    run.take_masks()
    assert list(run.masks) == ["fc1.weight"]
    (line,) = recorder.events("weights zero all over, not taken")
    assert (line["level"], line["parameters"]) == ("warning", ["fc2.weight"])


# Until when


def test_masks_are_enforced_until_a_policy_sets_others():
    net = sparse_net()
    run = run_of(net, pruning(when=window(2, 4), levels={"fc1.weight": 0.75}))
    run.take_masks()
    for epochs, sparsity in ((range(2), 1 / 3), (range(2, 3), 0.75)):
        train_explicit(run, run.optimizer, epochs)
        assert run.sparsity("fc1.weight") == pytest.approx(sparsity)


def test_a_policy_of_other_parameters_leaves_them():
    run = run_of(sparse_net())
    run.take_masks()
    train_explicit(run, run.optimizer, range(3))
    assert torch.equal(run.model.fc1.weight != 0, MASK)
    assert run.sparsity("fc2.weight") == 0.5


def test_masks_that_were_taken_are_part_of_the_state():
    run = run_of(sparse_net())
    run.take_masks()
    train_explicit(run, run.optimizer, range(1))
    resumed = run_of()
    resumed.model.load_state_dict(run.model.state_dict())
    resumed.load_state_dict(through_a_file(run.state_dict()))
    assert masks_are(dict(resumed.masks), fc1_weight=MASK)
    assert resumed.changes.keys() == {"fc1.weight"}


def test_a_line_says_what_was_taken_and_who_called():
    recorder = Recorder()
    run = run_of(trace=Trace(logger=recorder))
    run.take_masks({"fc1.weight": MASK})
    events = [line["event"] for line in recorder.lines]
    assert events[-2:] == ["training begins", "masks taken"]
    line = recorder.lines[-1]
    assert line["sparsity"] == {"fc1.weight": [0.0, pytest.approx(1 / 3)]}
    assert (line["hook"], line["component"], line["plugin"], line["epoch"]) == (
        "take_masks",
        "take_masks",
        "prunekit",
        0,
    )
    assert line["source"] == "masks by name"
    ((epoch, change),) = run.changes["fc1.weight"]
    assert (epoch, str(change.origin)) == (0, "take_masks, prunekit 0.1.0")


# What is refused


def test_all_that_does_not_fit_is_one_error_and_nothing_has_changed():
    run = run_of()
    before = run.model.fc1.weight.clone()
    with pytest.raises(StateError) as error:
        run.take_masks(
            {
                "fc1.weight": MASK,
                "fc1.wieght": MASK,
                "fc1.bias": torch.ones(9),
                "fc2.weight": torch.tensor([[0.5, torch.nan] + [1.0] * 6] * 4),
                "fc2.bias": "all",
                "module.fc1.weight": ~MASK,
            }
        )
    assert str(error.value).splitlines() == [
        "the masks do not fit, and nothing was changed:",
        "the model has no parameter 'fc1.wieght'; did you mean 'fc1.weight'?",
        "the mask of 'fc1.bias' must have the shape (8,), got (9,)",
        "the mask of 'fc2.weight' must be 0 and 1, got 0.5, nan, 0.5, …",
        "the mask of 'fc2.bias' must be a tensor or an array in memory, got 'all'",
        "the mask of 'module.fc1.weight' differs from another one of 'fc1.weight'",
    ]
    assert not run.masks
    assert torch.equal(run.model.fc1.weight, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "there is nothing to take from zeros of weights: no mask has a zero in it"),
        ({}, "there is nothing to take from masks by name: no mask has a zero in it"),
        ({"fc1.weight": torch.ones(8, 12)}, "there is nothing to take from masks by name: no mask has a zero in it"),
        ({"schedule": "", "masks": {}}, "there is nothing to take from a scheduler's state: no mask has a zero in it"),
        (3, "masks are taken from a state, a mapping of names, or a model, got 3"),
        ({"model": {}, "scheduler": {}}, "this is a whole checkpoint; masks are taken from its state of the scheduler"),
        (
            {"fc1.weight": torch.ones(8, 12, device="meta")},
            "the mask of 'fc1.weight' must be a tensor",
        ),
    ],
)
def test_what_has_no_masks_is_refused(source, message):
    with pytest.raises(StateError) as error:
        run_of().take_masks(source)
    assert message in str(error.value)


def test_weights_that_are_not_all_there_are_no_masks():
    state = sparse_net().state_dict()
    del state["fc2.bias"]
    with pytest.raises(StateError, match=r"the mask of 'fc1\.weight' must be 0 and 1"):
        run_of().take_masks(state)
