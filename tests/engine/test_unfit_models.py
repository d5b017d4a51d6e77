"""What no longer fits a model that has changed is an error with names and shapes, and nothing is changed before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, pruning, window, zeros
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from prunekit import CompressionScheduler, PrunekitError, ScheduleError, Trace


def other_shapes(model: Any) -> None:
    model.fc1, model.fc2 = nn.Linear(12, 6), nn.Linear(6, 4)


CHANGES: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    "layers of other shapes": (
        other_shapes,
        [
            "the mask of 'fc1.weight' is (8, 12), and the parameter is (6, 12) now",
            "the mask of 'fc2.weight' is (4, 8), and the parameter is (4, 6) now",
        ],
    ),
    "data of another shape": (
        lambda model: setattr(model.fc1.weight, "data", torch.ones(6, 12)),
        ["the mask of 'fc1.weight' is (8, 12), and the parameter is (6, 12) now"],
    ),
    "a layer that is gone": (
        lambda model: setattr(model, "fc2", nn.Identity()),
        ["'fc2.weight' (4, 8), which policies[0] owns, is no parameter of the model any more"],
    ),
    "weight_norm": (
        lambda model: weight_norm(model.fc1),
        [
            "'fc1.weight' (8, 12), which policies[0] owns, is no parameter of the model any more; new beside it: "
            "'fc1.weight_g' (8, 1), 'fc1.weight_v' (8, 12)"
        ],
    ),
    "weight_norm as a parametrization": (
        lambda model: parametrizations.weight_norm(model.fc1),
        [
            "'fc1.weight' (8, 12), which policies[0] owns, is no parameter of the model any more; new beside it: "
            "'fc1.parametrizations.weight.original0' (8, 1), 'fc1.parametrizations.weight.original1' (8, 12)"
        ],
    ),
    "torch's own pruning": (
        lambda model: prune.l1_unstructured(model.fc1, "weight", 0.5),
        [
            "'fc1.weight' (8, 12), which policies[0] owns, is no parameter of the model any more; new beside it: "
            "'fc1.weight_orig' (8, 12)"
        ],
    ),
    "meta": (
        lambda model: model.fc1.to("meta"),
        [
            "'fc1.weight', which policies[0] owns, is on the device meta and has no values: give it some first, with "
            "model.to_empty(device=…) or model.load_state_dict(…, assign=True)"
        ],
    ),
    "a lazy layer": (
        lambda model: setattr(model, "fc1", nn.LazyLinear(8)),
        [
            "'fc1.weight', which policies[0] owns, has no shape before the first forward pass: run one batch through "
            "the model first"
        ],
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("notices", ["on_epoch_begin", "on_minibatch_begin", "masked", "sparsity", "state_dict"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_an_error_of_the_event_that_notices_it(change: str, notices: str) -> None:
    model, recorder = MLP(), Recorder()
    schedule = pruning(levels={"fc1.weight": 0.5, "fc2.weight": 0.5})
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=Trace(logger=recorder))
    scheduler.on_epoch_begin(0)
    if notices == "on_epoch_begin":
        scheduler.on_epoch_end(0)
    make, message = CHANGES[change]
    make(model)
    before = [(name, parameter, parameter._version) for name, parameter in model.named_parameters()]
    masks = dict(scheduler.masks)
    arguments = {"on_epoch_begin": (1,), "on_minibatch_begin": (0, 0, 1)}.get(notices, ())
    lines = len(recorder.lines)
    with pytest.raises(PrunekitError) as error:
        getattr(scheduler, notices)(*arguments)
    assert str(error.value).split("\n") == message
    assert [(name, parameter, parameter._version) for name, parameter in model.named_parameters()] == before
    assert {name: scheduler.masks[name] is mask for name, mask in masks.items()} == dict.fromkeys(masks, True)
    assert recorder.lines[lines:] == []


def test_a_component_is_asked_whether_it_can_work_on_parameters_of_another_shape() -> None:
    schedule = pruning("NMPruner", weights=["fc2.weight"], n=2, m=4, when=window(1, 3))
    model: Any = MLP()
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    model.fc1, model.fc2 = nn.Linear(12, 6), nn.Linear(6, 4)
    with pytest.raises(PrunekitError, match=r"^'fc2.weight' was \(4, 8\) and is \(4, 6\), and NMPruner 'p'.* says: "):
        scheduler.on_minibatch_begin(0, 0, 1)


def test_a_layer_of_another_shape_that_nobody_has_masked_yet_simply_follows() -> None:
    model: Any = MLP()
    scheduler = CompressionScheduler.from_dict(pruning(when=window(1, 3)), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    model.fc1, model.fc2 = nn.Linear(12, 6), nn.Linear(6, 4)
    scheduler.on_epoch_begin(1)
    assert zeros(model.fc1.weight) == 36


def test_two_masks_can_not_share_a_parameter() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    schedule = pruning(levels={"0.weight": 0.5, "1.weight": 0.5})
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    model[1].weight = model[0].weight
    with pytest.raises(PrunekitError, match=r"^'0\.weight' and '1.weight' are one parameter now, and each has a mask$"):
        scheduler.on_minibatch_begin(0, 0, 1)


def test_parameters_that_were_tied_and_are_not_any_more_are_a_warning() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    recorder = Recorder()
    schedule = pruning(levels={"1.weight": 0.5})
    scheduler = CompressionScheduler.from_dict(schedule, model, trace=Trace(logger=recorder))
    scheduler.on_epoch_begin(0)
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    for minibatch in range(2):
        scheduler.on_minibatch_begin(0, minibatch, 2)
    untied = {"level": "warning", "event": "parameters untied", "epoch": 0, "minibatch": 0}
    assert recorder.events("parameters untied") == [{**untied, "parameter": "1.weight", "was": "0.weight"}]
    assert (zeros(model[0].weight), zeros(model[1].weight)) == (8, 8)


# Lazy and meta modules from the start


LAZY = "'1.weight' has no shape before the first forward pass: run one batch through the model first"
REGULARIZER: dict[str, Any] = {
    "version": 1,
    "regularizers": {"r": {"class": "L1Regularizer", "reg_regims": {"1.weight": 0.1}}},
    "policies": [{"regularizer": {"instance_name": "r"}, **window(0, 2)}],
}
QUANTIZER: dict[str, Any] = {
    "version": 1,
    "quantizers": {"q": {"class": "DorefaQuantizer", "bits_weights": 4}},
    "policies": [{"quantizer": {"instance_name": "q"}, **window(0, 2)}],
}


@pytest.mark.parametrize(
    ("schedule", "place"),
    [
        (pruning(levels={"1.weight": 0.5}), "pruners.p.levels.1.weight"),
        (pruning(levels={"*.weight": 0.5}), "pruners.p.levels.*.weight"),
        (pruning("GlobalMagnitudePruner", desired_sparsity=0.5, weights=["0.weight", "1.w*"]), "pruners.p.weights[1]"),
        (REGULARIZER, "regularizers.r.reg_regims.1.weight"),
        (QUANTIZER, "quantizers.q.bits_weights"),
    ],
)
def test_a_schedule_that_selects_a_parameter_without_a_shape_is_refused(schedule: dict[str, Any], place: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(4))
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(schedule, model, trace=SILENT)
    assert str(error.value) == f"<dict>: {place}: {LAZY}"


def test_a_schedule_of_other_layers_runs_beside_a_lazy_one_and_follows_it() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(4))
    scheduler = CompressionScheduler.from_dict(pruning(levels={"0.weight": 0.5}), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    assert scheduler.sparsity() == 12 / 28, "weights and biases of the layer that has a shape"
    with pytest.raises(PrunekitError, match=f"^{LAZY}$"):
        scheduler.sparsity("1.weight")
    scheduler.on_minibatch_begin(0, 0, 1)
    model(torch.ones(2, 6))
    assert scheduler.sparsity() == 12 / 48
    assert list(scheduler.state_dict()["parameters"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_model_on_meta_gets_its_values_before_a_policy_acts_on_it() -> None:
    with torch.device("meta"):
        model = MLP.__new__(MLP)
        nn.Module.__init__(model)
        model.fc1, model.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
    scheduler = CompressionScheduler.from_dict(pruning(when=window(1, 3)), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    with pytest.raises(PrunekitError, match=r"^'fc1\.weight', which policies\[0\] owns, is on the device meta"):
        scheduler.on_epoch_begin(1)
    model.load_state_dict(MLP().state_dict(), assign=True)
    scheduler.on_epoch_begin(1)
    assert zeros(model.fc1.weight) == 48
