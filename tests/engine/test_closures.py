"""A closure with forward and backward inside the optimizer's step trains as the plain loop does, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, pruning, window, zeros
from own_optimizers import SAM, Delegating, NoOptimizer, SlowWeights
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from prunekit import CompressionScheduler

WEIGHTS = ["fc1.weight", "fc2.weight"]
LEVELS = {"levels": {"fc*.weight": 0.5}}
COPIES = {"mask_on_forward_only": True, "use_double_copies": True}

SCHEDULES: dict[str, dict[str, Any]] = {
    "levels": pruning(**LEVELS),
    "SNIP": pruning("SNIPPruner", weights=WEIGHTS, desired_sparsity=0.5),
    "movement": pruning("MovementPruner", window(1, 3), weights=WEIGHTS, initial_sparsity=0.1, final_sparsity=0.6),
    "RigL": pruning("RigLPruner", weights=WEIGHTS, desired_sparsity=0.5, delta_t=2),
    "gradient ranked": pruning(
        "GradientRankedFilterPruner", window(1, 3), weights=WEIGHTS, desired_sparsity=0.5, granularity={"dim": 0}
    ),
    "forward only": pruning(args={"mask_on_forward_only": True}, **LEVELS),
    "double copies": pruning(args=COPIES, **LEVELS),
    "scales": pruning("BernoulliFilterPruner", weights=WEIGHTS, desired_sparsity=0.5, granularity={"dim": 0}),
    "scales and copies": pruning(
        "BernoulliFilterPruner", args=COPIES, weights=WEIGHTS, desired_sparsity=0.5, granularity={"dim": 0}
    ),
    "masked gradients": pruning(args={"mask_on_forward_only": True, "mask_gradients": True}, **LEVELS),
    "quantizer": {
        "version": 1,
        "quantizers": {"q": {"class": "DorefaQuantizer", "bits_weights": 4}},
        "policies": [{"quantizer": {"instance_name": "q"}, **window(0, 3)}],
    },
    "regularizer": {
        "version": 1,
        "regularizers": {
            "r": {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.01}, "threshold_criteria": "Mean_Abs"}
        },
        "policies": [{"regularizer": {"instance_name": "r"}, **window(0, 3)}],
    },
}

Call = Callable[[Any, Callable[[], Tensor]], Any]
CALLS: dict[str, Call] = {
    "plain": lambda optimizer, closure: (closure(), optimizer.step()),
    "by position": lambda optimizer, closure: optimizer.step(closure),
    "by keyword": lambda optimizer, closure: optimizer.step(closure=closure),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=0.01, weight_decay=0.01),
    "delegating": lambda p: Delegating(SGD(p, lr=0.1, momentum=0.9)),
    "no optimizer": lambda p: NoOptimizer(SGD(p, lr=0.1, momentum=0.9)),
    "slow weights": lambda p: SlowWeights(SGD(p, lr=0.1, momentum=0.9)),
}


def train(schedule: dict[str, Any], optimizer_of: Callable[[Any], Any], call: Call, given: bool = True) -> list[Any]:
    """What each forward pass and each mini-batch of three epochs leave behind."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optimizer_of(model.parameters())
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer if given else None, trace=SILENT)
    seen: list[Any] = []
    for _ in scheduler.epochs(3):
        for x, y in scheduler.minibatches(batches(4)):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                model.zero_grad()
                seen.append([p.detach().clone() for p in model.parameters()])
                loss: Tensor = scheduler.total_loss(nn.functional.cross_entropy(model(x), y))
                loss.backward()
                return loss

            call(optimizer, closure)
            seen.append([p.detach().clone() for p in model.parameters()])
        seen.append([scheduler.masks[name].clone() for name in scheduler.masks])
    return [tensor for tensors in seen for tensor in tensors]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_closure_trains_as_the_plain_loop_does(name: str, optimizer: str) -> None:
    plain = train(SCHEDULES[name], OPTIMIZERS[optimizer], CALLS["plain"])
    for call in ("by position", "by keyword"):
        inside = train(SCHEDULES[name], OPTIMIZERS[optimizer], CALLS[call])
        assert len(inside) == len(plain)
        assert all(torch.equal(one, other) for one, other in zip(inside, plain, strict=True))


def test_so_it_does_with_an_optimizer_that_nobody_has_given() -> None:
    for name in ("SNIP", "double copies"):
        plain = train(SCHEDULES[name], OPTIMIZERS["SGD"], CALLS["plain"], given=False)
        inside = train(SCHEDULES[name], OPTIMIZERS["SGD"], CALLS["by position"], given=False)
        assert all(torch.equal(one, other) for one, other in zip(inside, plain, strict=True))


# Optimizers that need a closure


def evaluations(optimizer_of: Callable[[Any], Any], schedule: dict[str, Any]) -> tuple[list[int], list[int], int]:
    """Zeros of fc1 in each forward pass inside a step, and after each mini-batch; how often gradients were observed."""
    model = MLP()
    optimizer = optimizer_of(model.parameters())
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT)
    inside: list[int] = []
    after: list[int] = []
    observed = [0]
    tell = scheduler._execution.optimizers._on_gradients

    def count(optimizer: Optimizer | None) -> None:
        observed[0] += 1
        tell(optimizer)

    scheduler._execution.optimizers._on_gradients = count  # type: ignore[method-assign]
    for _ in scheduler.epochs(2):
        for x, y in scheduler.minibatches(batches(2)):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                model.zero_grad()
                inside.append(zeros(model.fc1.weight))
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            if isinstance(optimizer, SAM):
                closure()
                inside.pop()
            optimizer.step(closure)
            after.append(zeros(model.fc1.weight))
    return inside, after, observed[0]


LINE_SEARCH: dict[str, Callable[[Any], Any]] = {
    "LBFGS": lambda p: LBFGS(p, lr=0.1, max_iter=5),
    "strong Wolfe": lambda p: LBFGS(p, lr=0.1, max_iter=5, line_search_fn="strong_wolfe"),
    "SAM": lambda p: SAM(p, SGD, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", LINE_SEARCH)
def test_every_evaluation_is_masked_and_gradients_are_observed_once(name: str) -> None:
    inside, after, observed = evaluations(LINE_SEARCH[name], SCHEDULES["levels"])
    assert (set(inside), after, observed) == ({48}, [48] * 4, 4)
    assert len(inside) == 4 if name == "SAM" else len(inside) > 8


@pytest.mark.parametrize("name", LINE_SEARCH)
def test_every_evaluation_is_masked_and_what_is_updated_is_not_under_double_copies(name: str) -> None:
    inside, after, _ = evaluations(LINE_SEARCH[name], SCHEDULES["double copies"])
    assert (set(inside), after) == ({48}, [0] * 4)


@pytest.mark.parametrize("name", LINE_SEARCH)
def test_snip_prunes_after_the_first_evaluation(name: str) -> None:
    inside, after, _ = evaluations(LINE_SEARCH[name], SCHEDULES["SNIP"])
    assert inside[0] == 0
    assert len(set(after)) == 1
    assert after[0] > 0


# What may go wrong


def begun(schedule: dict[str, Any], optimizer: Any, model: nn.Module) -> CompressionScheduler:
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    return scheduler


def test_a_closure_that_raises_leaves_no_copies_behind() -> None:
    model = MLP()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = model.fc1.weight.detach().clone()
    scheduler = begun(SCHEDULES["double copies"], optimizer, model)
    assert zeros(model.fc1.weight) == 48

    def fails() -> float:
        assert zeros(model.fc1.weight) == 48
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step(fails)
    assert torch.equal(model.fc1.weight, before)
    scheduler.on_minibatch_begin(0, 1, 2)  # and the next mini-batch is as any other
    assert zeros(model.fc1.weight) == 48
    scheduler.on_minibatch_end(0, 1, 2)
    assert torch.equal(model.fc1.weight, before)


class NeverCalls(SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(None)


def test_gradients_are_observed_and_a_step_is_counted_where_a_closure_is_never_called() -> None:
    model = MLP()
    optimizer = NeverCalls(model.parameters(), lr=0.1)
    scheduler = begun(SCHEDULES["SNIP"], optimizer, model)
    x, y = batches()[0]
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step(lambda: pytest.fail("it was not to be called"))
    assert zeros(model.fc1.weight) + zeros(model.fc2.weight) == 64
    assert scheduler.progress.stepped


def test_a_step_between_mini_batches_sees_enforced_masks_and_tells_of_no_gradients() -> None:
    model = MLP()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(SCHEDULES["levels"], model, optimizer, trace=SILENT)
    scheduler.on_epoch_begin(0)
    seen = []
    optimizer.step(lambda: seen.append(zeros(model.fc1.weight)) or 0.0)  # type: ignore[func-returns-value]
    assert seen == [48]


def test_what_is_no_closure_is_handed_on_as_it_is() -> None:
    class Scaled(SGD):
        def step(self, scale: Any = 1.0) -> None:  # type: ignore[override]
            self.given = scale

    model = MLP()
    optimizer = Scaled(model.parameters(), lr=0.1)
    begun(SCHEDULES["levels"], optimizer, model)
    optimizer.step(0.5)
    assert optimizer.given == 0.5
