"""What an application may ask of `prunekit.train`: any batch, several losses and optimizers, averages over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import Waits, equal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from prunekit import CompressionScheduler, StateError, Trace, hookimpl
from prunekit.export.runs import first_inputs, restored_run
from prunekit.trace import read
from prunekit.training.application import Application, to_device
from prunekit.training.checkpoint import BEST, load_checkpoint
from prunekit.training.evaluation import evaluate
from prunekit.training.loop import TrainingInterrupted
from prunekit.training.results import Best, EpochResult, MinibatchResult, best_of
from prunekit.training.train import train

SCHEDULE: Mapping[str, Any] = {
    "version": 1,
    "pruners": {"agp": {"class": "AutomatedGradualPruner", "initial_sparsity": 0.25, "final_sparsity": 0.75,
                        "weights": ["0.weight"]}},
    "regularizers": {"l1": {"class": "L1Regularizer", "reg_regims": {"0.weight": 0.01}}},
    "policies": [
        {"pruner": {"instance_name": "agp"}, "starting_epoch": 1, "ending_epoch": 3},
        {"regularizer": {"instance_name": "l1"}, "starting_epoch": 0, "ending_epoch": 9},
    ],
}  # fmt: skip
"""Pruned in epochs 1 and 2, and a penalty that must be added once for each step, not for each mini-batch of one."""


def points(number: int = 40, size: int = 8) -> DataLoader[Any]:
    inputs = torch.randn(number, 6, generator=torch.Generator().manual_seed(1))
    data = [{"x": x, "y": (x[:2] > 0).sum()} for x in inputs]
    return DataLoader(data, size, shuffle=True, generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]


def classify(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return cross_entropy(model(batch["x"]), batch["y"])


def two_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scores = model(batch["x"])
    return {"classes": cross_entropy(scores, batch["y"]), "size": 0.1 * scores.square().mean()}


def network(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def application(**keys: Any) -> Application:
    """Dict batches, five to an epoch."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = {"optimizer": optimizer, "step": classify, **keys}
    return Application(model, train_loader=points(), test_loader=points(24), **given)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def by_hand(
    app: Application,
    update: Callable[[CompressionScheduler, Tensor, int, int], None],
    kind: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The weights that a loop written out leaves after three epochs; `update` goes backward and steps."""
    optimizer = app.first_optimizer
    scheduler = CompressionScheduler.from_dict(SCHEDULE, app.model, optimizer, trace=Trace(logger=None))
    torch.manual_seed(5)
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        app.model.train()
        for number, batch in enumerate(scheduler.minibatches(app.train_loader)):  # type: ignore[var-annotated]
            with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
                loss = classify(app.model, batch)
            update(scheduler, loss, number, 5)
        for _ in app.test_loader:  # it draws a seed, as an evaluation does
            pass
        scheduler.on_epoch_end(epoch)
    scheduler.on_train_end()
    return weights(app.model)


# Any batch


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Moving:
    """As batches of Hugging Face's tokenizers: no tensor, but it can be put somewhere."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> Moving:
        return Moving(self.x.to(device))


def test_whatever_a_batch_consists_of_is_put_where_the_model_is() -> None:
    x, y, meta = torch.ones(2), torch.zeros(3), torch.device("meta")
    batch = {"pair": Pair(x, y), "record": Record(x, y), "list": [x, (y, "text")], "moving": Moving(x), "none": None}
    moved = to_device(batch, meta)
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].y.is_meta
    assert moved["record"].x.is_meta
    assert moved["list"][0].is_meta
    assert moved["list"][1][0].is_meta
    assert moved["list"][1][1] == "text"
    assert moved["moving"].x.is_meta
    assert moved["none"] is None


def test_a_step_takes_batches_of_any_form_and_trains_as_a_pair_does() -> None:
    def loader(form: Callable[[Tensor, Tensor], Any]) -> list[Any]:
        return [form(batch["x"], batch["y"]) for batch in DataLoader(points().dataset, 8)]

    forms: list[tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = [
        (lambda x, y: {"x": x, "y": y}, lambda batch: (batch["x"], batch["y"])),
        (lambda x, y: Pair(x, y), lambda batch: (batch.x, batch.y)),
        (lambda x, y: Record(x, y), lambda batch: (batch.x, batch.y)),
        (lambda x, y: (x, None, [y]), lambda batch: (batch[0], batch[2][0])),
    ]
    pairs = application(step=None, loss=cross_entropy)
    pairs.train_loader = pairs.test_loader = loader(lambda x, y: (x, y))
    expected = train(pairs, SCHEDULE, 2, seed=5)
    for form, take in forms:

        def step(model: nn.Module, batch: Any, take: Any = take) -> Tensor:
            x, y = take(batch)
            return cross_entropy(model(x), y)

        app = application(step=step)
        app.train_loader = app.test_loader = loader(form)
        result = train(app, SCHEDULE, 2, seed=5)
        assert equal(weights(app.model), weights(pairs.model))
        assert (result.loss, result.accuracy) == (expected.loss, None)


def test_losses_by_name_are_trained_on_as_a_sum_and_told_one_by_one() -> None:
    named, summed = application(step=two_losses), application(step=lambda m, b: sum(two_losses(m, b).values()))
    result, other = train(named, SCHEDULE, 2, seed=5), train(summed, SCHEDULE, 2, seed=5)
    assert equal(weights(named.model), weights(summed.model))
    first = result.epochs[0]
    assert list(first.train_parts) == list(first.parts) == ["classes", "size"]
    assert first.train_loss == other.epochs[0].train_loss
    assert sum(first.train_parts.values()) == pytest.approx(first.train_loss)
    assert sum(first.parts.values()) == pytest.approx(first.loss)
    assert other.epochs[0].parts == {}


def test_metrics_are_means_over_samples_and_accuracy_among_them_is_the_accuracy() -> None:
    def metrics(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"first": batch["x"][:, 0].mean(), "number": len(batch["y"]), "accuracy": 0.5}

    app = application(metrics=metrics)
    data = [batch["x"] for batch in app.test_loader]
    app.test_loader = [{"x": torch.cat(data)[:20], "y": torch.ones(20).long()},
                       {"x": torch.cat(data)[20:], "y": torch.ones(4).long()}]  # fmt: skip
    evaluation = evaluate(app)
    assert evaluation.metrics == {
        "first": pytest.approx(float(torch.cat(data)[:, 0].mean())),
        "number": pytest.approx((20 * 20 + 4 * 4) / 24),
    }
    assert evaluation.accuracy == 0.5
    result = train(app, SCHEDULE, 2, seed=5)
    assert list(result.epochs[0].metrics) == ["first", "number"]


# Steps


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 7])
def test_gradients_are_averaged_over_the_mini_batches_of_a_step(accumulate: int) -> None:
    app, reference = application(accumulate=accumulate), application()
    optimizer = reference.first_optimizer

    def update(scheduler: CompressionScheduler, loss: Tensor, number: int, of: int) -> None:
        first = number - number % accumulate
        gathered = min(accumulate, of - first)
        if number == first:
            optimizer.zero_grad()
        total = scheduler.total_loss(loss)
        (total / gathered if gathered > 1 else total).backward()  # type: ignore[no-untyped-call]
        if number - first == gathered - 1:
            optimizer.step()

    expected = by_hand(reference, update)
    steps: list[int] = []
    app.first_optimizer.register_step_post_hook(lambda *_: steps.append(1))
    train(app, SCHEDULE, 3, seed=5)
    assert equal(weights(app.model), expected)
    assert len(steps) == 3 * -(-5 // accumulate)


def test_gradients_are_clipped_before_the_step() -> None:
    app, reference = application(clip_norm=0.2), application()
    optimizer = reference.first_optimizer

    def update(scheduler: CompressionScheduler, loss: Tensor, *_: int) -> None:
        optimizer.zero_grad()
        scheduler.total_loss(loss).backward()  # type: ignore[no-untyped-call]
        assert nn.utils.clip_grad_norm_(reference.model.parameters(), 0.2) > 0.2
        optimizer.step()

    expected = by_hand(reference, update)
    train(app, SCHEDULE, 3, seed=5)
    assert equal(weights(app.model), expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_autocast_with_a_scaled_loss_where_that_is_needed(kind: torch.dtype) -> None:
    app, reference = application(autocast=kind, clip_norm=0.2, accumulate=2), application()
    optimizer, scaler = reference.first_optimizer, torch.amp.GradScaler("cpu", enabled=kind is torch.float16)
    seen: set[torch.dtype] = set()

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        scores = model(batch["x"])
        seen.add(scores.dtype)
        return cross_entropy(scores, batch["y"])

    def update(scheduler: CompressionScheduler, loss: Tensor, number: int, of: int) -> None:
        if number % 2 == 0:
            optimizer.zero_grad()
        total = scheduler.total_loss(loss)
        scaler.scale(total / 2 if number < 4 else total).backward()  # type: ignore[no-untyped-call]
        if number % 2 or number == of - 1:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(reference.model.parameters(), 0.2)
            scaler.step(optimizer)
            scaler.update()

    expected = by_hand(reference, update, kind)
    app.step = step
    result = train(app, SCHEDULE, 3, seed=5)
    assert seen == {kind}
    assert equal(weights(app.model), expected)
    assert result.parameters[0].sparsity == 0.75


def test_a_step_whose_gradients_overflow_is_left_out_and_counts_nowhere() -> None:
    overflowing = iter([0.0, 1e36, 0.0, 0.0, 0.0])

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return classify(model, batch) + model(batch["x"]).sum().float() * next(overflowing, 0.0)

    app = application(step=step, autocast=torch.float16, ema_decay=0.5)
    taken: list[int] = []
    app.first_optimizer.register_step_post_hook(lambda *_: taken.append(1))
    result = train(app, SCHEDULE, 2, seed=5)
    assert len(taken) == 9
    assert result.parameters[0].sparsity == 0.25


# Several optimizers


def halves(model: nn.Sequential) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(model[3].parameters())]


def test_optimizers_in_a_sequence_all_step_after_one_backward_pass() -> None:
    app, reference = application(), application()
    app.optimizer = halves(app.model)  # type: ignore[arg-type]
    one, two = halves(reference.model)  # type: ignore[arg-type]
    reference.optimizer = [one, two]

    def update(scheduler: CompressionScheduler, loss: Tensor, *_: int) -> None:
        one.zero_grad()
        two.zero_grad()
        scheduler.total_loss(loss).backward()  # type: ignore[no-untyped-call]
        one.step()
        two.step()

    expected = by_hand(reference, update)
    result = train(app, SCHEDULE, 3, seed=5)
    assert equal(weights(app.model), expected)
    assert result.parameters[0].sparsity == 0.75


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def compete(model: Adversaries, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    noise = torch.linspace(-1, 1, len(batch["x"]) * 2).view(-1, 2)
    made, real = model.critic(model.generator(noise)), model.critic(batch["x"])
    size = 0.1 * (made.square() + real.square()).mean()
    return {"generator": -made.mean(), "critic": made.mean() - real.mean() + size}


def adversaries(**keys: Any) -> Application:
    model = Adversaries()
    parts = {"generator": model.generator, "critic": model.critic}
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=0.02) for name, part in parts.items()}
    return Application(model, optimizers, points(), points(24), step=compete, **keys)  # type: ignore[arg-type]


ADVERSARIES: Mapping[str, Any] = {
    "version": 1,
    "pruners": {"half": {"class": "SparsityLevelParameterPruner", "levels": {"*.0.weight": 0.5}}},
    "regularizers": {"l1": {"class": "L1Regularizer", "reg_regims": {"*.2.weight": 0.02}}},
    "policies": [
        {"pruner": {"instance_name": "half"}, "epochs": [1]},
        {"regularizer": {"instance_name": "l1"}, "starting_epoch": 0, "ending_epoch": 9},
    ],
}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_loss_by_name_trains_the_parameters_of_its_own_optimizer_and_terms_train_all(accumulate: int) -> None:
    app, reference = adversaries(accumulate=accumulate), adversaries()
    train(app, ADVERSARIES, 2, seed=5)

    torch.manual_seed(5)
    model, optimizers = reference.model, reference.optimizers
    scheduler = CompressionScheduler.from_dict(ADVERSARIES, model, optimizers["generator"], trace=Trace(logger=None))
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch, optimizers["critic"])
        for number, batch in enumerate(scheduler.minibatches(reference.train_loader)):  # type: ignore[var-annotated]
            gathered = min(accumulate, 5 - number + number % accumulate)
            if number % accumulate == 0:
                model.zero_grad()
            penalty = sum(0.02 * part[2].weight.abs().sum() for part in (model.generator, model.critic))
            losses = compete(model, batch)  # type: ignore[arg-type]
            for name in ("generator", "critic"):
                mine = list(getattr(model, name).parameters())
                total = (losses[name] + penalty) / gathered
                for parameter, gradient in zip(mine, torch.autograd.grad(total, mine, retain_graph=True), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            if (number + 1) % accumulate == 0 or number == 4:
                optimizers["generator"].step()
                optimizers["critic"].step()
        for _ in reference.test_loader:
            pass
        scheduler.on_epoch_end(epoch)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(app.model), weights(model), strict=True))
    assert all(float((part[0].weight == 0).float().mean()) == 0.5 for part in (app.model.generator, app.model.critic))


def test_the_terms_of_policies_are_added_once_however_many_losses_there_are(tmp_path: Path) -> None:
    app = adversaries()
    train(app, ADVERSARIES, 2, seed=5, run_dir=tmp_path)
    lines = [line for line in read(tmp_path) if line["event"] == "loss terms"]
    assert [list(line["means"]) for line in lines] == [["l1"], ["l1"]]
    asked: list[float] = []

    class Listens:
        @hookimpl
        def before_backward_pass(self, loss: Tensor) -> None:
            asked.append(loss.item())

    result = train(adversaries(), ADVERSARIES, 2, seed=5, listeners=[Listens()])
    assert len(asked) == 10
    assert sum(asked[:5]) / 5 == pytest.approx(result.epochs[0].train_loss)


# An average of the weights


def test_the_average_is_that_of_torch_and_what_is_evaluated_is_masked() -> None:
    app, reference = application(ema_decay=0.8), application()
    optimizer = reference.first_optimizer
    average = AveragedModel(reference.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def update(scheduler: CompressionScheduler, loss: Tensor, *_: int) -> None:
        optimizer.zero_grad()
        scheduler.total_loss(loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(reference.model)

    by_hand(reference, update)
    mask = reference.model[0].weight != 0  # type: ignore[index]
    averaged = weights(average.module)
    averaged[0] *= mask
    result = train(app, SCHEDULE, 3, seed=5)
    assert equal(weights(app.model), averaged)
    assert result.parameters[0].nonzero == int(mask.sum()) == 12
    assert result.loss == result.epochs[-1].loss == evaluate(app).loss
    plain = train(application(), SCHEDULE, 3, seed=5)
    assert plain.epochs[-1].train_loss == result.epochs[-1].train_loss  # trained on as if there were no average
    assert plain.loss != result.loss


def test_a_checkpoint_holds_the_average_and_who_exports_it_gets_that(tmp_path: Path) -> None:
    app, other = application(ema_decay=0.8), application(ema_decay=0.8)
    train(app, SCHEDULE, 3, seed=5, run_dir=tmp_path)
    scheduler = restored_run(load_checkpoint(tmp_path), other, str(tmp_path))
    assert equal(weights(other.model), weights(app.model))
    assert scheduler.sparsity("0.weight") == 0.75
    assert torch.equal(first_inputs(other), next(iter(points(24)))["x"])


def test_masks_that_only_the_forward_pass_sees_are_in_the_evaluated_average_alone(tmp_path: Path) -> None:
    schedule = {**SCHEDULE, "policies": [dict(policy) for policy in SCHEDULE["policies"]]}
    arguments = {"mask_on_forward_only": True, "use_double_copies": True}
    schedule["policies"][0]["pruner"] = {"instance_name": "agp", "args": arguments}
    app = application(ema_decay=0.8)
    result = train(app, schedule, 3, seed=5, run_dir=tmp_path)
    assert result.parameters[0].sparsity == 0.75
    assert int(load_checkpoint(tmp_path)["average"]["0.weight"].count_nonzero()) == 48


# Going on


def stop_at(epoch: int, minibatch: int) -> Callable[[MinibatchResult], None]:
    def stop(result: MinibatchResult) -> None:
        if (result.epoch, result.minibatch) == (epoch, minibatch):
            raise KeyboardInterrupt

    return stop


ASKED: Mapping[str, Callable[[], Application]] = {
    "accumulation": lambda: application(accumulate=3),
    "bfloat16": lambda: application(autocast=torch.bfloat16),
    "float16": lambda: application(autocast=torch.float16),
    "average": lambda: application(ema_decay=0.7),
    "sequence": lambda: (app := application(), setattr(app, "optimizer", halves(app.model)))[0],  # type: ignore[arg-type,func-returns-value]
    "all": lambda: application(step=two_losses, accumulate=2, autocast=torch.float16, clip_norm=0.3, ema_decay=0.9),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("cut", [(0, 0), (1, 1), (2, 4)])
def test_a_run_that_goes_on_ends_as_the_straight_one_bit_for_bit(
    asked: str, cut: tuple[int, int], tmp_path: Path
) -> None:
    straight, first, second = (ASKED[asked]() for _ in range(3))
    result = train(straight, SCHEDULE, 4, seed=5)
    with pytest.raises(TrainingInterrupted):
        train(first, SCHEDULE, 4, seed=5, run_dir=tmp_path, on_minibatch=stop_at(*cut))
    torch.manual_seed(99)
    resumed = train(second, SCHEDULE, 4, run_dir=tmp_path, resume=True)
    assert equal(weights(second.model), weights(straight.model))
    assert [replace(e, seconds=0) for e in resumed.epochs] == [replace(e, seconds=0) for e in result.epochs]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adversaries_go_on_bit_for_bit(accumulate: int, tmp_path: Path) -> None:
    straight, first, second = (adversaries(accumulate=accumulate, ema_decay=0.9) for _ in range(3))
    train(straight, ADVERSARIES, 3, seed=5)
    train(first, ADVERSARIES, 2, seed=5, run_dir=tmp_path)
    train(second, ADVERSARIES, 3, run_dir=tmp_path, resume=True)
    assert equal(weights(second.model), weights(straight.model))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ema_decay": 0.9}, "the run was begun with another autocast or ema_decay than the application has"),
        ({"autocast": torch.float16}, "the run was begun with another autocast or ema_decay than the application has"),
        ({"optimizer": "several"}, r"the run has the optimizers \['0'\], the application \['0', '1'\]"),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    train(application(), SCHEDULE, 2, seed=5, run_dir=tmp_path)
    other = application(**{key: value for key, value in keys.items() if value != "several"})
    if "optimizer" in keys:
        other.optimizer = halves(other.model)  # type: ignore[arg-type]
    with pytest.raises(StateError, match=message):
        train(other, SCHEDULE, 3, run_dir=tmp_path, resume=True)


# The best one


def epoch(number: int, stage: Any, loss: float, accuracy: float | None = None) -> EpochResult:
    return EpochResult(number, 0.0, loss, accuracy, 0.1, 0.0, 0.0, stage)


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([], None),
        ([epoch(0, "dense", 0.1, 0.99), epoch(1, "partial", 0.4, 0.9), epoch(2, "final", 0.9, 0.5)], 2),
        ([epoch(0, "dense", 0.1, 0.99), epoch(1, "partial", 0.4, 0.9), epoch(2, "partial", 0.9, 0.5)], 1),
        ([epoch(0, "final", 0.3, 0.8), epoch(1, "final", 0.4, 0.9), epoch(2, "final", 0.2, 0.9)], 1),
        ([epoch(0, "final", 0.3), epoch(1, "final", 0.2), epoch(2, "final", 0.4)], 1),
        ([epoch(0, "final", float("nan")), epoch(1, "final", 5.0)], 1),
    ],
)
def test_the_best_is_so_by_stage_first_and_by_metric_second(epochs: list[EpochResult], best: int | None) -> None:
    found = best_of(epochs)
    assert (None if found is None else found.epoch) == best


def test_the_best_checkpoint_is_none_from_before_pruning(tmp_path: Path) -> None:
    rising = iter(range(100))
    app = application(step=None, loss=lambda outputs, targets: outputs.sum() * 0 + next(rising))
    app.train_loader = app.test_loader = DataLoader(TensorDataset(torch.ones(4, 6), torch.zeros(4)), 4)
    seen: list[str] = []
    result = train(app, SCHEDULE, 5, seed=5, run_dir=tmp_path, on_epoch=lambda epoch: seen.append(epoch.stage))
    assert seen == ["dense", "partial", "final", "final", "final"]
    assert result.epochs[0].loss < result.epochs[2].loss < result.epochs[4].loss
    assert result.best == Best(2, "final", result.epochs[2].loss, None, tmp_path / BEST)
    kept = load_checkpoint(tmp_path / BEST)
    assert (kept["epoch"], kept["stage"]) == (3, "final")
    assert load_checkpoint(tmp_path)["epoch"] == 5
    assert result.to_dict()["best"]["path"] == str(tmp_path / BEST)
    assert [entry["stage"] for entry in result.to_dict()["epochs"]] == seen


def test_a_best_checkpoint_that_a_killed_run_could_not_keep_is_kept_on_resume(tmp_path: Path) -> None:
    train(application(), SCHEDULE, 3, seed=5, run_dir=tmp_path)
    (tmp_path / BEST).unlink()
    train(application(), SCHEDULE, 3, run_dir=tmp_path, resume=True)
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 3


def test_several_scalars_wait_for_the_device_no_more_often_in_a_longer_epoch() -> None:
    def waits(number: int) -> int:
        app = application(step=two_losses, accumulate=2, clip_norm=0.3, ema_decay=0.9, autocast=torch.bfloat16)
        app.train_loader = app.test_loader = points(number)
        with Waits() as mode:
            train(app, SCHEDULE, 2, seed=5)
        return mode.number

    assert waits(16) == waits(64)
