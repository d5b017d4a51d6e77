"""Gradients as observers get them: of a GradScaler, sparse, not finite, of several optimizers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, batches, pruning, window, zeros
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, SparseAdam

from prunekit import CompressionScheduler, Trace

WEIGHTS = ["fc1.weight", "fc2.weight"]
LEVELS = {"levels": {"fc1.weight": 0.5}}
MOVEMENT = pruning("MovementPruner", window(1, 3), weights=WEIGHTS, initial_sparsity=0.1, final_sparsity=0.6)
SNIP = pruning("SNIPPruner", weights=WEIGHTS, desired_sparsity=0.5)


# Mixed precision


class Scaled:
    """Training under a GradScaler, with infinite gradients in these mini-batches."""

    def __init__(
        self, schedule: dict[str, Any], *, bad: tuple[int, ...] = (), fused: bool = False, **given: Any
    ) -> None:
        self.recorder = Recorder()
        self.model, self.bad = MLP(), bad
        self.optimizer: torch.optim.Optimizer = Adam(self.model.parameters(), lr=0.01, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        trace = Trace(logger=self.recorder)
        self.scheduler = CompressionScheduler.from_dict(schedule, self.model, self.optimizer, trace=trace, **given)

    def train(self, epochs: int, event: str = "none") -> list[int]:
        """The step in which each mini-batch is; `event`: when the loop says that gradients are known."""
        steps = []
        for epoch in self.scheduler.epochs(2):
            if epoch == epochs:
                break
            for index, (x, y) in enumerate(self.scheduler.minibatches(batches(4))):
                number = 4 * epoch + index
                steps.append(self.scheduler.progress.step)
                self.model.zero_grad()
                loss = self.scheduler.total_loss(nn.functional.cross_entropy(self.model(x), y))
                self.scaler.scale(loss * (float("inf") if number in self.bad else 1)).backward()  # type: ignore[no-untyped-call]
                if event == "unscaled":
                    self.scaler.unscale_(self.optimizer)
                if event != "none":
                    self.scheduler.before_parameter_optimization(epoch, index, 4)
                self.scaler.step(self.optimizer)
                self.scaler.update()
        return steps

    def scores(self) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = self.scheduler.components["pruners.p"]._scores
        return scores


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("event", ["none", "unscaled", "scaled"])
def test_a_step_that_a_scaler_skips_is_no_step_and_masks_hold(fused: bool, event: str) -> None:
    run = Scaled(pruning(**LEVELS), bad=(0, 1, 5), fused=fused)
    assert run.train(2, event) == [0, 0, 0, 1, 2, 3, 3, 4]
    assert zeros(run.model.fc1.weight) == 48


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_observers_get_gradients_without_the_scale(fused: bool) -> None:
    scaled, plain = Scaled(MOVEMENT, fused=fused), Scaled(MOVEMENT, fused=fused)
    plain.scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaled.train(1)
    plain.train(1)
    for name in WEIGHTS:
        torch.testing.assert_close(scaled.scores()[name], plain.scores()[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("event", ["none", "unscaled"])
def test_gradients_that_are_not_finite_are_never_taken_for_good(fused: bool, event: str) -> None:
    run = Scaled(MOVEMENT, bad=(0, 2), fused=fused)
    run.train(2, event)
    assert all(score.isfinite().all() and score.any() for score in run.scores().values())
    lines = run.recorder.events("gradients that are not finite were left out")
    assert [line["level"] for line in lines] == (["warning"] if event == "unscaled" else [])


@pytest.mark.parametrize("event", ["none", "unscaled", "scaled"])
def test_a_loop_that_tells_of_gradients_before_they_are_unscaled_is_told_so_once(event: str) -> None:
    run = Scaled(MOVEMENT, bad=(0,))
    run.train(2, event)
    lines = run.recorder.events("gradients observed before unscale_")
    assert [line["level"] for line in lines] == (["warning"] if event == "scaled" else [])


def test_gradients_that_the_loop_clips_are_none_that_were_scaled() -> None:
    model, recorder = MLP(), Recorder()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(MOVEMENT, model, optimizer, trace=Trace(logger=recorder))
    for epoch in scheduler.epochs(2):
        for index, (x, y) in enumerate(scheduler.minibatches(batches(3))):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            scheduler.before_parameter_optimization(epoch, index, 3)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    assert recorder.events("gradients observed before unscale_") == []


@pytest.mark.parametrize("event", ["none", "unscaled"])
def test_snip_waits_for_gradients_that_are_finite(event: str) -> None:
    run = Scaled(SNIP, bad=(0,))
    run.train(1, event)
    clean = Scaled(SNIP)
    for _ in clean.scheduler.epochs(1):
        for index, (x, y) in enumerate(clean.scheduler.minibatches(batches(4))):
            if index:
                clean.model.zero_grad()
                nn.functional.cross_entropy(clean.model(x), y).backward()
                clean.optimizer.step()
    assert zeros(run.model.fc1.weight) + zeros(run.model.fc2.weight) == 64
    assert all(torch.equal(run.scheduler.masks[name], clean.scheduler.masks[name]) for name in WEIGHTS)


# Sparse gradients


class Words(nn.Module):
    """Six words of four numbers, and a classifier."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words, self.head = nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.words(words).mean(1))
        return out


def texts() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randint(0, 5, (8, 3), generator=generator), torch.randint(0, 2, (8,), generator=generator)


ON_WORDS: dict[str, dict[str, Any]] = {
    "levels": pruning(levels={"words.weight": 0.5}),
    "movement": pruning(
        "MovementPruner", window(1, 3), weights=["words.weight"], initial_sparsity=0.1, final_sparsity=0.6
    ),
    "SNIP": pruning("SNIPPruner", weights=["words.weight"], desired_sparsity=0.5),
    "RigL": pruning("RigLPruner", weights=["words.weight"], desired_sparsity=0.5, delta_t=2),
    "gradient ranked": pruning(
        "GradientRankedFilterPruner",
        window(1, 3),
        weights=["words.weight"],
        desired_sparsity=0.5,
        granularity={"dim": 0},
    ),
    "masked gradients": pruning(
        args={"mask_on_forward_only": True, "mask_gradients": True}, levels={"words.weight": 0.5}
    ),
    "state reset": pruning(args={"reset_optimizer_state": True}, levels={"words.weight": 0.5}),
}
SPARSE = {"SGD": SGD, "SparseAdam": SparseAdam, "Adagrad": Adagrad}


def train_words(schedule: dict[str, Any], optimizer: type[Any], *, sparse: bool) -> dict[str, Tensor]:
    model = Words(sparse=sparse)
    of_words = optimizer(model.words.parameters(), lr=0.1)
    of_head = SGD(model.head.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(schedule, model, [of_words, of_head], trace=SILENT)
    for _ in scheduler.epochs(3):
        for x, y in scheduler.minibatches(list(texts())):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            of_words.step()
            of_head.step()
    return {**dict(model.named_parameters()), **{f"mask of {name}": mask for name, mask in scheduler.masks.items()}}


@pytest.mark.parametrize("optimizer", SPARSE)
@pytest.mark.parametrize("name", ON_WORDS)
def test_every_pruner_works_with_sparse_gradients(name: str, optimizer: str) -> None:
    sparse = train_words(ON_WORDS[name], SPARSE[optimizer], sparse=True)
    assert "mask of words.weight" in sparse
    if name != "masked gradients":
        assert zeros(sparse["words.weight"]) >= int((~sparse["mask of words.weight"]).sum()) > 0
    if optimizer != "SparseAdam":  # which takes no dense gradients
        dense = train_words(ON_WORDS[name], SPARSE[optimizer], sparse=False)
        for key, value in dense.items():
            torch.testing.assert_close(sparse[key], value)


# Several optimizers


def observed(*schedules: list[str]) -> tuple[CompressionScheduler, list[dict[str, Any]]]:
    """Two optimizers, the second of which has its gradients after the first has stepped; a pruner for each list."""
    model, recorder = MLP(), Recorder()
    keys = {"class": "MovementPruner", "initial_sparsity": 0.1, "final_sparsity": 0.6}
    data = {
        "version": 1,
        "pruners": {f"p{i}": {**keys, "weights": weights} for i, weights in enumerate(schedules)},
        "policies": [{"pruner": {"instance_name": f"p{i}"}, **window(1, 3)} for i in range(len(schedules))],
    }
    one, other = SGD(model.fc1.parameters(), lr=0.1), SGD(model.fc2.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(data, model, [one, other], trace=Trace(logger=recorder))
    expected = {name: torch.zeros_like(model.get_parameter(name)) for name in WEIGHTS}
    for _ in itertools.islice(scheduler.epochs(2), 1):
        for x, y in scheduler.minibatches(batches(3)):
            for optimizer, name in ((one, "fc1.weight"), (other, "fc2.weight")):
                model.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                weight = model.get_parameter(name)
                assert weight.grad is not None
                expected[name] -= weight.detach() * weight.grad
                optimizer.step()
                model.zero_grad()
    scores = {name: score for component in scheduler.components.values() for name, score in component._scores.items()}
    for name, score in scores.items():
        if len(schedules) > 1:
            torch.testing.assert_close(score, expected[name])
    return scheduler, recorder.events("gradients observed before one of several optimizers steps")


def test_a_pruner_observes_when_the_optimizer_of_its_parameters_is_about_to_step() -> None:
    assert observed(["fc1.weight"], ["fc2.weight"])[1] == []


def test_a_pruner_of_parameters_of_several_optimizers_is_told_that_some_gradients_are_not_of_their_step() -> None:
    _, (line,) = observed(WEIGHTS)
    assert (line["level"], line["parameters"]) == ("warning", ["fc1.weight"])


def test_gradients_in_the_backward_pass_are_not_observed_and_that_is_said_once() -> None:
    model, recorder = MLP(), Recorder()
    scheduler = CompressionScheduler.from_dict(MOVEMENT, model, trace=Trace(logger=recorder))
    small = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: small[p].step())  # type: ignore[index]
    for _ in scheduler.epochs(2):
        for x, y in scheduler.minibatches(batches(2)):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
    (line,) = recorder.events("gradients not observed")
    assert (line["level"], line["optimizer"]) == ("warning", "SGD")
