"""The loops that users of Distiller wrote, with every call as it stood there, and what must have come of them.

Four kinds, each written anew on a model and data of a few numbers: a classifier, a word language model, a recommender
and a detector. Between their calls the loops do what such loops do: a hidden state that goes on from batch to batch,
clipped gradients, learning rates of their own, several losses, checkpoints that are a dict of states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT, through_a_file, window, zeros
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from prunekit import CompressionScheduler


@dataclass
class Job:
    """What a loop works with, and what it saw: sparsities after each epoch, learning rates, losses."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    compression_scheduler: Any
    start_epoch: int = 0
    rates: list[float] = field(default_factory=list)
    sparsities: list[list[float]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    checkpoint: dict[str, Any] = field(default_factory=dict)

    def save(self, epoch: int, **more: Any) -> None:
        """The checkpoint of a Distiller application."""
        self.checkpoint = through_a_file(
            {
                "epoch": epoch,
                "arch": type(self.model).__name__,
                "state_dict": self.model.state_dict(),
                "optimizer_state_dict": self.optimizer.state_dict(),
                "compression_sched": self.compression_scheduler.state_dict(),
                "extras": more,
            }
        )

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.compression_scheduler.load_state_dict(checkpoint["compression_sched"], normalize_dataparallel_keys=False)
        self.start_epoch = checkpoint["epoch"] + 1

    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def note(self) -> None:
        """After each epoch."""
        self.rates.append(self.rate())
        self.sparsities.append([self.compression_scheduler.sparsity(name) for name in self.compression_scheduler.masks])

    def masks_must_hold(self) -> None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        masks = self.compression_scheduler.masks
        assert masks
        assert [zeros(parameters[name][~mask]) for name, mask in masks.items()] == [zeros(m) for m in masks.values()]


def agp(*weights: str) -> dict[str, Any]:
    """From a quarter to three quarters in epochs 0 to 2, by way of 11/16."""
    component = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.25, "final_sparsity": 0.75}
    policy = {"pruner": {"instance_name": "agp"}, **window(0, 3)}
    return {"version": 1, "pruners": {"agp": {**component, "weights": list(weights)}}, "policies": [policy]}


def plus(schedule: dict[str, Any], section: str, kind: str, **components: Any) -> dict[str, Any]:
    """A schedule with more components, each with a policy for epochs 0 to 3."""
    policies = [{kind: {"instance_name": name}, **window(0, 4)} for name in components]
    return {**schedule, section: components, "policies": [*schedule["policies"], *policies]}


CURVE = [0.25, 0.6875, 0.75, 0.75]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


# Classifier


class Convnet(nn.Module):
    """conv 1 -> 4, batch normalization, fc 64 -> 3, for images of 6 by 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(images))).flatten(1))


def images(number: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(number)
    ]


LASSO = {"class": "GroupLassoRegularizer", "reg_regims": {"conv.weight": [0.05, "Filters"]}}
L1 = {"class": "L1Regularizer", "reg_regims": {"fc.weight": 0.01}}
STEPS = {"class": "StepLR", "step_size": 2, "gamma": 0.5}
PLATEAU = {"class": "ReduceLROnPlateau", "mode": "max", "factor": 0.5, "patience": 0, "threshold": 0.01}


def classifier(epochs: int, checkpoint: dict[str, Any] | None = None, lr: dict[str, Any] = STEPS) -> Job:
    model = seeded(Convnet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = plus(agp("fc.weight"), "regularizers", "regularizer", filters=LASSO, small=L1)
    schedule = plus(schedule, "lr_schedulers", "lr_scheduler", training_lr=lr)
    job = Job(model, optimizer, CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT))
    if checkpoint is not None:
        job.load(checkpoint)
    for epoch in range(job.start_epoch, epochs):
        job.compression_scheduler.on_epoch_begin(epoch)
        train_classifier(job, images(), epoch)
        top1, vloss = validate_classifier(job, images())
        job.metrics.append({"min": vloss, "max": top1})
        job.compression_scheduler.on_epoch_end(epoch, optimizer, metrics={"min": vloss, "max": top1})
        job.note()
        job.save(epoch, current_top1=top1)
    return job


def train_classifier(job: Job, train_loader: list[tuple[Tensor, Tensor]], epoch: int) -> None:
    model, optimizer, compression_scheduler = job.model, job.optimizer, job.compression_scheduler
    steps_per_epoch = len(train_loader)
    model.train()
    for train_step, (inputs, target) in enumerate(train_loader):
        compression_scheduler.on_minibatch_begin(epoch, train_step, steps_per_epoch, optimizer)
        loss = cross_entropy(model(inputs), target)
        losses = {"Objective Loss": loss.item()}
        agg_loss = compression_scheduler.before_backward_pass(
            epoch, train_step, steps_per_epoch, loss, optimizer=optimizer, return_loss_components=True
        )
        loss = agg_loss.overall_loss
        losses["Overall Loss"] = loss.item()
        for lc in agg_loss.loss_components:
            losses[lc.name] = lc.value.item()
        job.losses.append(losses)
        optimizer.zero_grad()
        loss.backward()
        compression_scheduler.before_parameter_optimization(epoch, train_step, steps_per_epoch, optimizer)
        optimizer.step()
        compression_scheduler.on_minibatch_end(epoch, train_step, steps_per_epoch, optimizer)
        job.masks_must_hold()


def validate_classifier(job: Job, loader: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    job.model.eval()
    with torch.no_grad():
        outputs = [(job.model(inputs), target) for inputs, target in loader]
    right = sum(int((output.argmax(1) == target).sum()) for output, target in outputs)
    return right / 24, sum(cross_entropy(output, target).item() for output, target in outputs) / len(outputs)


def test_a_classifier_is_pruned_to_its_target_and_keeps_its_masks() -> None:
    assert classifier(4).sparsities == [[sparsity] for sparsity in CURVE]


def test_a_classifier_reads_each_term_of_its_loss_by_name() -> None:
    losses = classifier(1).losses
    assert [list(each) for each in losses] == [["Objective Loss", "Overall Loss", "filters", "small"]] * 3
    parts = [each["Objective Loss"] + each["filters"] + each["small"] for each in losses]
    assert [each["Overall Loss"] for each in losses] == pytest.approx(parts)
    # Of the convolution as it is before its first step: the sum of the norms of its filters, times the strength.
    norms = seeded(Convnet).conv.weight.flatten(1).norm(dim=1)
    assert losses[0]["filters"] == pytest.approx(0.05 * norms.sum().item())


def test_the_schedule_of_a_classifier_sets_its_learning_rate_at_the_end_of_each_epoch() -> None:
    assert classifier(4).rates == [0.1, 0.05, 0.05, 0.025]


def test_the_metrics_that_a_classifier_gives_behind_its_optimizer_reach_a_plateau() -> None:
    job = classifier(4, lr=PLATEAU)
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience=0, threshold=0.01)
    expected = []
    for metrics in job.metrics:
        torchs.step(metrics["max"])
        expected.append(optimizer.param_groups[0]["lr"])
    assert job.rates == expected
    assert len({*expected}) == 2, "it was reached, and not at once"


# Word language model


class WordModel(nn.Module):
    """20 words, 8 numbers for each, an LSTM of two layers; the decoder's weight is the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(20, 8), nn.LSTM(8, 8, 2, dropout=0.0), nn.Linear(8, 20)
        self.decoder.weight = self.encoder.weight

    def forward(self, words: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, hidden = self.rnn(self.encoder(words), hidden)
        return self.decoder(output), hidden

    def init_hidden(self, number: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, number, 8), torch.zeros(2, number, 8)


BPTT = 5
WORDS = (torch.arange(33)[:, None] * torch.tensor([1, 3, 7]) + torch.arange(3)) % 20
"""Three columns that count in steps of 1, 3 and 7 [33, 3]: six sequences of five words, and one of two."""
RECURRENT = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1")


def get_batch(source: Tensor, i: int) -> tuple[Tensor, Tensor]:
    length = min(BPTT, len(source) - 1 - i)
    return source[i : i + length], source[i + 1 : i + 1 + length].flatten()


def repackage_hidden(hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(state.detach() for state in hidden)


def language_model(epochs: int, checkpoint: dict[str, Any] | None = None, best: Path | None = None) -> Job:
    """The scheduler is made without an optimizer, and never hears of one; the learning rate is the loop's own."""
    model = seeded(WordModel)
    compression_scheduler = CompressionScheduler.from_dict(agp("encoder.weight", *RECURRENT), model, None, trace=SILENT)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, patience=0, threshold=10.0)
    job = Job(model, optimizer, compression_scheduler)
    if checkpoint is not None:
        job.load(checkpoint)
        lr_scheduler.load_state_dict(checkpoint["extras"]["lr_scheduler"])
    for epoch in range(job.start_epoch, epochs):
        job.compression_scheduler.on_epoch_begin(epoch)
        train_language_model(job, epoch)
        val_loss = evaluate_language_model(job)
        lr_scheduler.step(val_loss)
        job.compression_scheduler.on_epoch_end(epoch)
        job.note()
        job.save(epoch, lr_scheduler=lr_scheduler.state_dict())
        if best is not None:
            torch.save(model, best)
    return job


def train_language_model(job: Job, epoch: int) -> None:
    model, optimizer, compression_scheduler = job.model, job.optimizer, job.compression_scheduler
    model.train()
    steps_per_epoch = math.ceil(len(WORDS) / BPTT)
    hidden = model.init_hidden(3)
    for batch, i in enumerate(range(0, len(WORDS) - 1, BPTT)):
        data, targets = get_batch(WORDS, i)
        hidden = repackage_hidden(hidden)
        compression_scheduler.on_minibatch_begin(epoch, minibatch_id=batch, minibatches_per_epoch=steps_per_epoch)
        output, hidden = model(data, hidden)
        loss = cross_entropy(output.flatten(0, 1), targets)
        loss = compression_scheduler.before_backward_pass(
            epoch, minibatch_id=batch, minibatches_per_epoch=steps_per_epoch, loss=loss
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        compression_scheduler.on_minibatch_end(epoch, minibatch_id=batch, minibatches_per_epoch=steps_per_epoch)
        job.masks_must_hold()
    assert compression_scheduler.progress.minibatches_per_epoch == batch + 1 == 7


@torch.no_grad()
def evaluate_language_model(job: Job) -> float:
    job.model.eval()
    hidden, total = job.model.init_hidden(3), 0.0
    for i in range(0, len(WORDS) - 1, BPTT):
        data, targets = get_batch(WORDS, i)
        output, hidden = job.model(data, hidden)
        total += len(data) * cross_entropy(output.flatten(0, 1), targets).item()
    return total / len(WORDS)


def test_a_language_model_that_tells_of_no_optimizer_keeps_its_masks() -> None:
    job = language_model(4)
    assert job.sparsities == [[sparsity] * 5 for sparsity in CURVE]
    assert job.model.decoder.weight is job.model.encoder.weight
    assert zeros(job.model.decoder.weight) == 0.75 * 160


def test_the_learning_rate_of_a_language_model_stays_its_own() -> None:
    assert language_model(4).rates == [0.5, 0.25, 0.125, 0.0625]


def test_the_best_language_model_that_is_saved_whole_is_as_sparse(tmp_path: Path) -> None:
    job = language_model(3, best=tmp_path / "model.pt")
    best = torch.load(tmp_path / "model.pt", weights_only=False)
    assert [zeros(weight) / weight.numel() for weight in (best.encoder.weight, best.rnn.weight_hh_l1)] == [0.75, 0.75]
    assert all(torch.equal(*pair) for pair in zip(best.parameters(), job.model.parameters(), strict=True))


# Recommender


class Recommender(nn.Module):
    """8 users, 8 items: a product of embeddings and two layers, added up to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(8, 8), nn.Embedding(8, 8)
        self.layer, self.last = nn.Linear(16, 4), nn.Linear(12, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        users, items = self.users(user), self.items(item)
        hidden = torch.relu(self.layer(torch.cat([users, items], 1)))
        return self.last(torch.cat([users * items, hidden], 1)).flatten()


def interactions() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Users like what is near their own number; three batches of 16, each with as many that they do not."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        user = torch.randint(0, 8, (16,), generator=generator)
        item = (user + torch.randint(0, 2, (16,), generator=generator)) % 8
        yield user.repeat(2), torch.cat([item, (item + 4) % 8]), torch.cat([torch.ones(16), torch.zeros(16)])


def recommender(epochs: int, checkpoint: dict[str, Any] | None = None) -> Job:
    model = seeded(Recommender)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3)
    items = {"class": "L1Regularizer", "reg_regims": {"items.weight": 0.002}}
    schedule = plus(agp("users.weight", "layer.weight"), "regularizers", "regularizer", items=items)
    job = Job(model, optimizer, CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT))
    if checkpoint is not None:
        job.load(checkpoint)
    for epoch in range(job.start_epoch, epochs):
        train_recommender(job, epoch)
        job.note()
        job.save(epoch)
    return job


def train_recommender(job: Job, epoch: int) -> None:
    model, optimizer, compression_scheduler = job.model, job.optimizer, job.compression_scheduler
    batches = list(interactions())
    compression_scheduler.on_epoch_begin(epoch, optimizer)
    model.train()
    for batch_index, (user, item, label) in enumerate(batches):
        compression_scheduler.on_minibatch_begin(epoch, batch_index, len(batches), optimizer)
        outputs = model(user, item)
        loss = binary_cross_entropy_with_logits(outputs, label, reduction="none").mean()
        agg_loss = compression_scheduler.before_backward_pass(
            epoch, batch_index, len(batches), loss, optimizer=optimizer, return_loss_components=True
        )
        job.losses.append({"objective": loss.item(), **{lc.name: lc.value.item() for lc in agg_loss.loss_components}})
        loss = agg_loss.overall_loss
        optimizer.zero_grad()
        loss.backward()
        compression_scheduler.before_parameter_optimization(epoch, batch_index, len(batches), optimizer)
        optimizer.step()
        compression_scheduler.on_minibatch_end(epoch, batch_index, len(batches), optimizer)
        job.masks_must_hold()
    compression_scheduler.on_epoch_end(epoch, optimizer)


def test_a_recommender_is_pruned_to_its_target_whatever_adam_remembers_of_its_weights() -> None:
    job = recommender(4)
    assert job.sparsities == [[sparsity] * 2 for sparsity in CURVE]
    assert job.losses[-1]["objective"] < job.losses[0]["objective"]


def test_a_recommender_reads_the_term_of_its_embedding() -> None:
    first = recommender(1).losses[0]
    expected = 0.002 * seeded(Recommender).items.weight.abs().sum().item()
    assert first == {"objective": first["objective"], "items": pytest.approx(expected)}


# Detection


class Detector(nn.Module):
    """Gives a dict of losses in training, a list of dicts in evaluation; the first layer is frozen, heads are two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(6, 8), nn.Linear(8, 8)
        self.box, self.label = nn.Linear(8, 4), nn.Linear(8, 2)
        self.stem.requires_grad_(False)

    def forward(self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        features = torch.relu(self.body(torch.relu(self.stem(torch.stack(pictures)))))
        boxes, labels = self.box(features), self.label(features)
        if targets is None:
            return [{"boxes": box, "labels": label.argmax()} for box, label in zip(boxes, labels, strict=True)]
        return {
            "loss_classifier": cross_entropy(labels, torch.stack([target["labels"] for target in targets])),
            "loss_box_reg": smooth_l1_loss(boxes, torch.stack([target["boxes"] for target in targets])),
        }


def pictures() -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        inputs = torch.randn(6, 6, generator=generator)
        yield list(inputs), [{"boxes": each[:4], "labels": (each[0] > 0).long()} for each in inputs]


def warmup_lr_scheduler(optimizer: Any, warmup_iters: int, warmup_factor: float) -> Any:
    def factor(step: int) -> float:
        alpha = step / warmup_iters
        return 1.0 if step >= warmup_iters else warmup_factor * (1 - alpha) + alpha

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def detection(epochs: int, checkpoint: dict[str, Any] | None = None) -> Job:
    """The optimizer holds what is trained only; a warm-up moves its rate in each step of the first epoch."""
    model = seeded(Detector)
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.08, momentum=0.9, weight_decay=1e-4)
    lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.5)
    schedule = agp("stem.weight", "body.weight", "box.weight")
    job = Job(model, optimizer, CompressionScheduler.from_dict(schedule, model, optimizer, trace=SILENT))
    if checkpoint is not None:
        job.load(checkpoint)
        lr_scheduler.load_state_dict(checkpoint["extras"]["lr_scheduler"])
    for epoch in range(job.start_epoch, epochs):
        job.compression_scheduler.on_epoch_begin(epoch, optimizer)
        train_detector(job, epoch)
        lr_scheduler.step()
        job.compression_scheduler.on_epoch_end(epoch, optimizer)
        job.note()
        job.save(epoch, lr_scheduler=lr_scheduler.state_dict())
    return job


def train_detector(job: Job, epoch: int) -> None:
    model, optimizer, compression_scheduler = job.model, job.optimizer, job.compression_scheduler
    data_loader = list(pictures())
    model.train()
    warmup = warmup_lr_scheduler(optimizer, min(1000, len(data_loader) - 1), 0.25) if epoch == 0 else None
    for step, (inputs, targets) in enumerate(data_loader):
        compression_scheduler.on_minibatch_begin(epoch, step, len(data_loader), optimizer)
        loss_dict = model(inputs, targets)
        losses = sum(loss for loss in loss_dict.values())
        job.losses.append({"rate": job.rate(), **{name: loss.item() for name, loss in loss_dict.items()}})
        losses = compression_scheduler.before_backward_pass(
            epoch, step, len(data_loader), losses, optimizer, return_loss_components=False
        )
        optimizer.zero_grad()
        losses.backward()
        compression_scheduler.before_parameter_optimization(epoch, step, len(data_loader), optimizer)
        optimizer.step()
        compression_scheduler.on_minibatch_end(epoch, step, len(data_loader), optimizer)
        if warmup is not None:
            warmup.step()
        job.masks_must_hold()


def test_a_detector_is_pruned_to_its_target_in_what_is_frozen_too() -> None:
    job = detection(4)
    assert list(job.compression_scheduler.masks) == ["stem.weight", "body.weight", "box.weight"]
    assert job.sparsities == [[sparsity] * 3 for sparsity in CURVE]
    job.model.eval()
    assert [sorted(each) for each in job.model(next(pictures())[0])] == [["boxes", "labels"]] * 6


def test_the_warm_up_of_a_detector_and_its_steps_stay_its_own() -> None:
    job = detection(4)
    assert [each["rate"] for each in job.losses[:4]] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert job.rates == pytest.approx([0.08, 0.04, 0.04, 0.04])


# All of them


@pytest.mark.parametrize("loop", [classifier, language_model, recommender, detection])
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_loop_that_goes_on_from_its_checkpoint_ends_where_the_straight_run_does(
    loop: Callable[..., Job], stopped: int
) -> None:
    straight, resumed = loop(4), loop(4, loop(stopped).checkpoint)
    assert (resumed.rates, resumed.sparsities) == (straight.rates[stopped:], straight.sparsities[stopped:])
    assert resumed.losses == straight.losses[len(straight.losses) - len(resumed.losses) :]
    ends = zip(straight.model.state_dict().items(), resumed.model.state_dict().items(), strict=True)
    assert [name for (name, one), (_, other) in ends if not torch.equal(one, other)] == []
