"""Quantization without training: look at what flows through a trained model, quantize it, see how good it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import PrunekitError, ScheduleError
from prunekit.model.optimizer import learning_rates
from prunekit.model.parameters import Parameters
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.trust import Trust
from prunekit.progress import Window
from prunekit.quantization.quantizable import Calibrated
from prunekit.quantization.values import QuantizedActivation, QuantizedWeight
from prunekit.schedule.schedule import Schedule, parse
from prunekit.schedule.specs import PolicySpec
from prunekit.schedule.yaml_source import Source
from prunekit.scheduler import CompressionScheduler
from prunekit.trace import FILE_NAME, Trace
from prunekit.training.application import Application, device_of, scheduler_of
from prunekit.training.checkpoint import CHECKPOINT
from prunekit.training.complaints import must_be_trainable
from prunekit.training.evaluation import batches_of, evaluate
from prunekit.training.loop import Run, Warnings
from prunekit.training.losses import go_forward
from prunekit.training.results import Baseline, EpochResult, TrainingResult


def quantize(
    application: Application,
    schedule: Schedule | str | Path | Mapping[str, Any],
    *,
    trained: CompressionScheduler | None = None,
    batches: int = 8,
    run_dir: str | Path | None = None,
    trust: Trust | None = None,
    settings: Mapping[str, Any] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Quantize a trained model as the schedule's quantizers do. Nothing is trained.

    Args:
        application: model, data and loss; its model stays quantized.
        schedule: its quantizers count, from now on; whatever else it says does not.
        trained: the scheduler that the model was trained under: its masks stay in force.
        batches: how many of the training batches are looked at.
        run_dir: the folder for trace, checkpoint and result, which `prunekit export` takes.
        trust: which plugins may be loaded; all that are installed, by default.
        settings: plain data to keep in the checkpoint.
        on_warning: called with each warning; Python's `warnings` by default.

    Returns:
        How good the quantized model is, and, as `dense`, the float model.

    Raises:
        ScheduleError: every problem in the quantizers and in how they fit the model.
        PrunekitError: the schedule has no quantizer, the model is quantized already, or the folder holds a run.
    """
    folder = None if run_dir is None else Path(run_dir)
    if folder is not None and ((folder / CHECKPOINT).exists() or (folder / FILE_NAME).exists()):
        raise PrunekitError(f"{str(folder)!r} already holds a run; choose another folder")
    must_be_trainable(application)
    warn = Warnings(on_warning or (lambda text: warnings.warn(text, stacklevel=4)))
    masks = {} if trained is None else _settle(trained)
    trace = Trace(folder, logger=warn)
    options = {"epochs": 1, "trace": trace, "plugins": load_plugins(trust)}
    scheduler = scheduler_of(quantizers_of(schedule), application, **options)
    # A state is the one way in for masks; all else in it is the scheduler's own.
    scheduler.load_state_dict({**scheduler.state_dict(), "masks": masks})
    before = _float(scheduler, application)
    run = Run(application, scheduler, trace, folder, {**(settings or {}), "epochs": 1})
    with scheduler, run.watched():
        _calibrate(scheduler, application, batches)
        after = evaluate(application)
        scheduler.on_epoch_end(0)
        rate = learning_rates(application.first_optimizer.param_groups)[0]
        run.history = [
            EpochResult(
                0, before.loss, after.loss, after.accuracy, rate, scheduler.sparsity(), run.seconds(), scheduler.stage
            )
        ]
        run.done = 1
        run.save()
        run.lock()
        scheduler.on_train_end()
        result = replace(run.result(), dense=before)
        result.write()
        return result


def quantizers_of(schedule: Schedule | str | Path | Mapping[str, Any]) -> Schedule:
    """The schedule's quantizers, each in force from epoch 0.

    Raises:
        ScheduleError: the schedule can't be read.
        PrunekitError: it has no quantizer.
    """
    if not isinstance(schedule, Schedule):
        schedule = _read(schedule)
    components = [spec for spec in schedule.components if spec.kind == "quantizer"]
    if not components:
        raise PrunekitError("the schedule has no quantizers: there is nothing to quantize with")
    return Schedule(
        components, [PolicySpec("quantizer", spec.name, Window(0, 1)) for spec in components], schedule.source
    )


def _read(schedule: str | Path | Mapping[str, Any]) -> Schedule:
    """A schedule that needs no policies."""
    source = Source.from_data(schedule) if isinstance(schedule, Mapping) else Source.from_file(schedule)
    if isinstance(source.data, dict):
        source.data = {"policies": [], **source.data}
    parsed = parse(source)
    if problems := parsed.problems():
        raise ScheduleError(problems)
    return parsed


def _settle(trained: CompressionScheduler) -> dict[str, Any]:
    """Put into the weights what the forward pass uses for them, and return the masks as they stay in force."""
    if trained.quantized.weights or trained.quantized.activations:
        raise PrunekitError("the model is quantized already: export it as it is, or quantize a run without quantizers")
    with trained.masked():
        values = {p: p.detach().clone() for p in Parameters.of(trained.model).by_name.values()}
    # Not within `masked()`, which takes back what only the forward pass sees.
    for parameter, value in values.items():
        parameter.detach().copy_(value)
    # Plain masks from now on: scales and the like are in the weights.
    own = {"kept": None, "forward_only": False, "double_copies": False, "scale": 1.0}
    return {name: {**own, "pruned": mask.clone()} for name, mask in trained.masks.items()}


def _float(scheduler: CompressionScheduler, application: Application) -> Baseline:
    with scheduler.quantized.suspended():
        evaluation = evaluate(application)
    return Baseline(evaluation.loss, evaluation.accuracy, None)


@torch.no_grad()
def _calibrate(scheduler: CompressionScheduler, application: Application, batches: int) -> None:
    """Let the quantizers see what flows through the model in evaluation."""
    model, device = application.model, device_of(application.model)
    scheduler.on_epoch_begin(0)
    model.eval()
    quantized = scheduler.quantized
    values: list[QuantizedWeight | QuantizedActivation] = [*quantized.weights.values(), *quantized.activations.values()]
    quantizers = {id(value.quantizer): value.quantizer for value in values}
    with ExitStack() as stack:
        for quantizer in quantizers.values():
            if isinstance(quantizer, Calibrated):
                stack.enter_context(quantizer.calibration())
        for batch in islice(batches_of(application.train_loader, "train_loader"), batches):
            go_forward(application, batch, device, "train_loader")
