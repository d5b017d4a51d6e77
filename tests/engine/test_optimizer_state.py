"""What optimizers remember of weights that are pruned or come back: nothing, where a schedule or a pruner says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from helpers import MLP, SILENT, Recorder, backward, batches, pruning, window, without_listeners
from own_optimizers import Delegating, OwnRate, SlowWeights
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop, Rprop

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Schedule, Trace, Window, hookimpl
from prunekit.components import Context, Selectors

RESET = {"reset_optimizer_state": True}
HALF = {"levels": {"fc1.weight": 0.5}}

OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], dict[str, float]]] = {
    "SGD": (lambda p: SGD(p, lr=0.1, momentum=0.9), {"momentum_buffer": 0}),
    "Adam": (lambda p: Adam(p, lr=0.01), {"exp_avg": 0, "exp_avg_sq": 0}),
    "fused Adam": (lambda p: Adam(p, lr=0.01, fused=True), {"exp_avg": 0, "exp_avg_sq": 0}),
    "AdamW amsgrad": (
        lambda p: AdamW(p, lr=0.01, amsgrad=True),
        {"exp_avg": 0, "exp_avg_sq": 0, "max_exp_avg_sq": 0},
    ),
    "RMSprop": (
        lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
        {"square_avg": 0, "momentum_buffer": 0, "grad_avg": 0},
    ),
    "Adagrad": (lambda p: Adagrad(p, lr=0.01, initial_accumulator_value=0.5), {"sum": 0.5}),
    "NAdam": (lambda p: NAdam(p, lr=0.01), {"exp_avg": 0, "exp_avg_sq": 0}),
    "Rprop": (lambda p: Rprop(p, lr=0.25), {"prev": 0, "step_size": 0.25}),
    "ASGD": (lambda p: ASGD(p, lr=0.01, t0=0), {"ax": 0}),
    "delegating": (lambda p: Delegating(SGD(p, lr=0.1, momentum=0.9)), {"momentum_buffer": 0}),
    "slow weights": (lambda p: SlowWeights(SGD(p, lr=0.1, momentum=0.9)), {"momentum_buffer": 0}),
}


def by_weight(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state[parameter] or optimizer.optimizer.state[parameter]
    return {key: v.clone() for key, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


def trained(optimizer_of: Callable[[Any], Any], data: Any, **given: Any) -> tuple[CompressionScheduler, Any, MLP]:
    """After an epoch in which nothing is pruned."""
    model = MLP()
    optimizer = optimizer_of(model.parameters())
    make = CompressionScheduler if isinstance(data, Schedule) else CompressionScheduler.from_dict
    scheduler = make(data, model, optimizer, **{"trace": SILENT, **given})
    train(scheduler, optimizer, 0)
    return scheduler, optimizer, model


def train(scheduler: CompressionScheduler, optimizer: Any, epoch: int) -> None:
    scheduler.on_epoch_begin(epoch)
    for index, batch in enumerate(batches(3)):
        scheduler.on_minibatch_begin(epoch, index, 3)
        backward(scheduler.model, batch)
        optimizer.step()
        scheduler.on_minibatch_end(epoch, index, 3)
    scheduler.on_epoch_end(epoch)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_pruned_weights_is_set_back_and_of_no_others(name: str) -> None:
    optimizer_of, first = OPTIMIZERS[name]
    scheduler, optimizer, model = trained(optimizer_of, pruning(when=window(1, 3), args=RESET, **HALF))
    before = by_weight(optimizer, model.fc1.weight)
    scheduler.on_epoch_begin(1)
    after, mask = by_weight(optimizer, model.fc1.weight), scheduler.masks["fc1.weight"]
    assert {key: first[key] for key in after} == first
    for key, value in after.items():
        assert torch.equal(value[mask], before[key][mask])
        assert value[~mask].unique().tolist() == [first[key]]
    assert before.keys() == after.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_by_default_it_stays(name: str) -> None:
    optimizer_of, _ = OPTIMIZERS[name]
    scheduler, optimizer, model = trained(optimizer_of, pruning(when=window(1, 3), **HALF))
    before = by_weight(optimizer, model.fc1.weight)
    scheduler.on_epoch_begin(1)
    assert all(torch.equal(value, before[key]) for key, value in by_weight(optimizer, model.fc1.weight).items())


def test_the_trace_tells_of_it_and_of_state_that_can_not_be_set_back_once() -> None:
    recorder = Recorder()
    data = pruning(when=window(1, 3), args=RESET, **HALF)
    scheduler, optimizer, _ = trained(OPTIMIZERS["Adam"][0], data, trace=Trace(logger=recorder))
    train(scheduler, optimizer, 1)
    (line,) = recorder.events("optimizer state reset")
    wanted = {"level": "info", "epoch": 1, "hook": "on_epoch_begin", "parameters": ["fc1.weight"]}
    assert {key: line[key] for key in wanted} == wanted

    recorder = Recorder()
    data = pruning(when=window(1, 4), args=RESET, **HALF)
    scheduler, optimizer, model = trained(lambda p: OwnRate(p, lr=None), data, trace=Trace(logger=recorder))
    before = optimizer.state[model.fc1.weight]["row"].clone()
    for epoch in (1, 2):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_epoch_end(epoch)
    assert torch.equal(optimizer.state[model.fc1.weight]["row"], before)
    (line,) = recorder.events("optimizer state left")
    assert (line["level"], line["state"]) == ("warning", ["OwnRate: row"])
    assert recorder.events("optimizer state reset") == []


def test_there_is_nothing_to_set_back_before_the_first_step() -> None:
    recorder, model = Recorder(), MLP()
    scheduler = CompressionScheduler.from_dict(
        pruning(args=RESET, **HALF), model, Adam(model.parameters()), trace=Trace(logger=recorder)
    )
    scheduler.on_epoch_begin(0)
    assert recorder.events("optimizer state reset", "optimizer state left") == []
    assert scheduler.optimizer is not None
    assert model.fc1.weight not in scheduler.optimizer.state


def test_a_mask_that_is_undone_leaves_the_state_as_it_was() -> None:
    class Objects:
        @hookimpl
        def on_masks_changed(self) -> None:
            raise RuntimeError("out of luck")

    data = pruning(when=window(1, 3), args=RESET, **HALF)
    scheduler, optimizer, model = trained(OPTIMIZERS["Adam"][0], data, listeners=[Objects])
    before = by_weight(optimizer, model.fc1.weight)
    with pytest.raises(RuntimeError, match="out of luck"):
        scheduler.on_epoch_begin(1)
    assert all(torch.equal(value, before[key]) for key, value in by_weight(optimizer, model.fc1.weight).items())


def test_the_state_in_every_optimizer_is_set_back() -> None:
    model = MLP()
    optimizers = [SGD([parameter], lr=0.1, momentum=0.9) for parameter in model.parameters()]
    data = pruning(when=window(1, 3), args=RESET, levels={"*.weight": 0.5})
    scheduler = CompressionScheduler.from_dict(data, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    backward(model, batches()[0])
    for optimizer in optimizers:
        optimizer.step()
    scheduler.on_epoch_end(0)
    scheduler.on_epoch_begin(1)
    for optimizer, (name, parameter) in zip(optimizers, model.named_parameters(), strict=True):
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert not buffer[~scheduler.masks[name]].any() if name in scheduler.masks else buffer.all()


# Weights that come back


class Turning:
    """Keeps one half of the weights in even epochs, and the other in odd ones."""

    regrows: ClassVar[bool] = True

    def __init__(self, weights: Selectors = "fc1.weight") -> None: ...

    def compute_masks(self, parameters: Any, context: Context) -> dict[str, Tensor]:
        kept = torch.arange(96).reshape(8, 12) % 2 == context.progress.epoch % 2
        return dict.fromkeys(parameters, kept)


class TurningStale(Turning):
    """Does not say that weights come back."""

    regrows = False


def turned(component: type, optimizer_of: Callable[[Any], Optimizer], **args: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights that have just come back, and what is remembered of all."""
    schedule = Schedule([ComponentSpec("pruner", "p", component)], [PolicySpec("pruner", "p", Window(0, 3), args)])
    model = MLP()
    optimizer = optimizer_of(model.parameters())
    scheduler = CompressionScheduler(schedule, model, optimizer, trace=SILENT, plugins=without_listeners())
    train(scheduler, optimizer, 0)
    before = scheduler.masks["fc1.weight"].clone()
    scheduler.on_epoch_begin(1)
    return scheduler.masks["fc1.weight"] & ~before, by_weight(optimizer, model.fc1.weight)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("delegating", "slow weights")])
def test_weights_that_come_back_start_clean_where_the_pruner_says_that_they_do(name: str) -> None:
    optimizer_of, first = OPTIMIZERS[name]
    back, state = turned(Turning, optimizer_of)
    assert back.sum() == 48
    for key, value in state.items():
        assert value[back].unique().tolist() == [first[key]]
        assert key == "ax" or (value[~back] != first[key]).any()  # weights that went keep theirs
    stale = turned(TurningStale, optimizer_of)[1]
    assert any((value[back] != first[key]).any() for key, value in stale.items())


def test_weights_that_only_the_forward_pass_saw_masked_have_nothing_stale() -> None:
    back, state = turned(Turning, OPTIMIZERS["SGD"][0], mask_on_forward_only=True)
    assert state["momentum_buffer"][back].all()


@pytest.mark.parametrize(
    ("pruner", "keys"),
    [("RigLPruner", {"delta_t": 2, "alpha": 0.5}), ("SETPruner", {"zeta": 0.5})],
)
def test_the_pruners_that_grow_weights_grow_them_clean(pruner: str, keys: dict[str, Any]) -> None:
    data = pruning(pruner, window(0, 3), weights=["fc1.weight"], desired_sparsity=0.5, **keys)
    model, recorder = MLP(), Recorder()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=Trace(logger=recorder))
    grown = 0
    for _ in scheduler.epochs(3):
        for batch in scheduler.minibatches(batches(3)):
            backward(model, batch)
            before = scheduler.masks["fc1.weight"].clone()
            optimizer.step()
            back = scheduler.masks["fc1.weight"] & ~before
            grown += int(back.sum())
            gradient, buffer = model.fc1.weight.grad, optimizer.state[model.fc1.weight]["momentum_buffer"]
            assert gradient is not None
            assert torch.equal(buffer[back], gradient[back])  # of this one step
    assert len(recorder.events("optimizer state reset")) > 1
    assert grown if pruner == "RigLPruner" else not grown  # SET grows when an epoch begins
