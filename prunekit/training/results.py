"""What came of a training run: of each epoch, of each parameter, of all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.engine.stage import STAGES, Stage
from prunekit.model.optimizer import learning_rates
from prunekit.trace import FILE_NAME
from prunekit.training.checkpoint import replace_file

RESULT = "result.json"


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        loss: the mean over samples.
        accuracy: the fraction of right answers where targets are classes, or what the application calls so.
        parts: of the loss, by name, where the application gives some.
        metrics: the application's own.
    """

    loss: float
    accuracy: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochResult:
    """What came of an epoch.

    Attributes:
        epoch: counted from 0.
        train_loss: mean over the mini-batches, without the terms that policies add.
        loss: of the evaluation after the epoch, with every mask applied.
        accuracy: likewise; None where targets are no classes.
        learning_rate: of the first optimizer's first group during the epoch; None where the optimizer finds it itself.
        sparsity: of all parameters together, after the epoch.
        seconds: training and evaluation.
        stage: how far compression has come after the epoch.
        train_parts: of `train_loss`, by name, where the application gives some.
        parts: of `loss`, likewise.
        metrics: the application's own.
    """

    epoch: int
    train_loss: float
    loss: float
    accuracy: float | None
    learning_rate: float | None
    sparsity: float
    seconds: float
    stage: Stage = "dense"
    train_parts: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MinibatchResult:
    """A mini-batch has been trained on. Reading `loss` waits for the device: do that now and then only.

    Attributes:
        epoch, minibatch: counted from 0.
        minibatches_per_epoch: how many there are.
        sparsity: of all parameters together, when the epoch began.
    """

    epoch: int
    minibatch: int
    minibatches_per_epoch: int
    sparsity: float
    _total: Tensor
    _optimizer: Optimizer

    @property
    def loss(self) -> float:
        """The mean over the epoch so far."""
        return float(self._total) / (self.minibatch + 1)

    @property
    def learning_rate(self) -> float | None:
        """Of the first optimizer's first group; None where the optimizer finds it itself."""
        return learning_rates(self._optimizer.param_groups)[0]


@dataclass(frozen=True)
class Change:
    """By whose hand the zeros in a parameter came, and the first and the last epoch in which it moved them."""

    component: str
    policy: str
    plugin: str
    version: str
    first_epoch: int
    last_epoch: int


@dataclass(frozen=True)
class ParameterResult:
    """What became of a parameter, counted from the tensor as a forward pass sees it."""

    name: str
    shape: tuple[int, ...]
    dense: int
    nonzero: int
    changes: tuple[Change, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return sparsity_of([self])


@dataclass(frozen=True)
class Baseline:
    """The dense model to compare with: of the last epoch before the first mask, or (`epoch` None) a twin of its own."""

    loss: float
    accuracy: float | None
    epoch: int | None


@dataclass(frozen=True)
class Best:
    """The best of a run's models: of those that are compressed furthest the one with the highest accuracy.

    `path` is where its checkpoint lies, if the run has a folder. Without accuracy it is the one with the lowest loss.
    """

    epoch: int
    stage: Stage
    loss: float
    accuracy: float | None
    path: Path | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        loss: of the last evaluation, after training has ended.
        accuracy: likewise.
        dense: what to compare that with; None where pruning began with the first epoch.
        parameters: what became of each, in the model's order.
        epochs: what came of each, those before a resume too.
        seconds: of the whole run.
        run_dir: the folder with trace, checkpoint and result, if the run has one.
        settings: what the run was started with.
        endings: where it ended otherwise than the schedule's windows: a sparsity not reached, a float model.
        stage: how far compression has come.
        best: the epoch whose checkpoint is kept besides the last one.
    """

    loss: float
    accuracy: float | None
    dense: Baseline | None
    parameters: tuple[ParameterResult, ...]
    epochs: tuple[EpochResult, ...]
    seconds: float
    run_dir: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    endings: tuple[str, ...] = ()
    stage: Stage = "dense"
    best: Best | None = None

    @property
    def trace(self) -> Path | None:
        """The trace's file."""
        return None if self.run_dir is None else self.run_dir / FILE_NAME

    @property
    def pruned(self) -> tuple[ParameterResult, ...]:
        """The parameters that a policy has changed."""
        return tuple(parameter for parameter in self.parameters if parameter.changes)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; numbers that are not finite become None."""
        data = asdict(self)
        data["run_dir"] = None if self.run_dir is None else str(self.run_dir)
        if self.best is not None and self.best.path is not None:
            data["best"]["path"] = str(self.best.path)
        for entry, parameter in zip(data["parameters"], self.parameters, strict=True):
            entry["sparsity"] = parameter.sparsity
        data["totals"] = {"pruned": _total(self.pruned), "all": _total(self.parameters)}
        plain: dict[str, Any] = _finite(data)
        return plain

    def write(self) -> None:
        """Write `result.json` into the run's folder, if there is one."""
        if self.run_dir is not None:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
            replace_file(self.run_dir / RESULT, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def best_of(epochs: Iterable[EpochResult]) -> EpochResult | None:
    """The best by stage first and by accuracy, or loss, second; of equals the first."""
    return max(epochs, key=lambda epoch: (STAGES.index(epoch.stage), _goodness(epoch)), default=None)


def _goodness(epoch: EpochResult) -> float:
    value = -epoch.loss if epoch.accuracy is None else epoch.accuracy
    return -math.inf if math.isnan(value) else value


def sparsity_of(parameters: Iterable[ParameterResult]) -> float:
    """The fraction of zeros in parameters together."""
    both = [(parameter.dense, parameter.nonzero) for parameter in parameters]
    dense = sum(number for number, _ in both)
    return (dense - sum(number for _, number in both)) / max(dense, 1)


def _total(parameters: Iterable[ParameterResult]) -> dict[str, Any]:
    chosen = list(parameters)
    counts = {"dense": sum(p.dense for p in chosen), "nonzero": sum(p.nonzero for p in chosen)}
    return {"parameters": len(chosen), **counts, "sparsity": sparsity_of(chosen)}


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
