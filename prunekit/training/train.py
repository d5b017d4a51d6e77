"""`prunekit.train`: a run is put together and checked, then its loop begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunekit.components.kinds import KINDS, LR_SCHEDULER
from prunekit.engine.foreign_masks import foreign_masks
from prunekit.errors import PrunekitError, StateError
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.trust import Trust
from prunekit.schedule.schedule import Schedule, parse
from prunekit.schedule.yaml_source import Source
from prunekit.trace import FILE_NAME, Level, Trace
from prunekit.training.application import Application, scheduler_of
from prunekit.training.checkpoint import CHECKPOINT, load_checkpoint
from prunekit.training.complaints import must_be_trainable
from prunekit.training.loop import Run, Warnings
from prunekit.training.results import EpochResult, MinibatchResult, TrainingResult


def train(
    application: Application,
    schedule: Schedule | str | Path | Mapping[str, Any],
    epochs: int,
    *,
    run_dir: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    trace_level: Level = "info",
    resume: bool = False,
    masks_from: str | Path | None = None,
    trust: Trust | None = None,
    listeners: Sequence[object] = (),
    settings: Mapping[str, Any] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_minibatch: Callable[[MinibatchResult], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train an application's model under a schedule.

    Args:
        application: model, optimizers, data and loss; changed in place.
        schedule: the schedule, or the YAML file or dict to read it from.
        epochs: the length of the run.
        run_dir: the folder for trace, checkpoints (one before the first epoch and one after each; the best one
            stays) and result. Without it nothing is written.
        seed: for the random numbers of torch, numpy and Python, set before training; None leaves them as they are.
        device: where to train; where the model is, by default.
        trace_level: at `debug` each hook implementation leaves a line.
        resume: continue from the checkpoint in `run_dir`, bit for bit as if never stopped.
        masks_from: the folder of another run, whose masks are enforced until the schedule sets others; the weights are
            the application's. A run that is resumed has its own.
        trust: which plugins may be loaded; all that are installed, by default.
        listeners: objects, modules or classes with hook implementations, which run after those that are installed.
        settings: plain data to keep in the checkpoint, for whoever resumes.
        on_epoch: called after each epoch.
        on_minibatch: called after each mini-batch.
        on_warning: called with each warning; Python's `warnings` by default.

    Raises:
        ScheduleError: every problem in the schedule and in how it fits the model; nothing has been trained or written.
        StateError: there is no checkpoint to resume from, or it belongs to another run, or has more epochs behind it
            than this run is to have; or the masks do not fit.
        ApplicationError: the application can't be trained; what it raises itself gets a note that says in which part.
            Before the first step, nothing is left of the run.
        PrunekitError: the folder already holds another run.
        TrainingInterrupted: Ctrl-C (a KeyboardInterrupt); the trace's last line says where.
    """
    folder = None if run_dir is None else Path(run_dir)
    must_be_trainable(application)
    checkpoint, foreign = _checkpoint(folder, resume, epochs), _foreign_masks(masks_from, application, resume)
    found = None if folder is None or not folder.exists() else frozenset(path.name for path in folder.iterdir())
    warn = Warnings(on_warning or (lambda text: warnings.warn(text, stacklevel=4)))
    trace = Trace(folder, trace_level, logger=warn)
    if device is not None:
        application.model.to(device)
    options = {"epochs": epochs, "trace": trace, "plugins": load_plugins(trust), "listeners": listeners}
    options["steps_per_epoch"] = application.steps_per_epoch
    scheduler = scheduler_of(_schedule(schedule), application, **options)
    run = Run(application, scheduler, trace, folder, {**(settings or {}), "epochs": epochs, "seed": seed})
    run.found, run.on_epoch, run.on_minibatch = found, on_epoch, on_minibatch
    with scheduler, run.watched():
        run.begin(checkpoint, seed, foreign)
        return run.until(epochs)


def default_epochs(schedule: Schedule, steps_per_epoch: int = 0) -> int | None:
    """The length of a run that nobody has said: up to the end of the last pruner, regularizer or quantizer policy.

    It is long enough for every policy to act once. Policies of learning rates often end long after the run; their end
    counts where there are no others. None if that can't be told: of windows in
    steps where nobody knows how many an epoch has.
    """
    deciding = [policy for policy in schedule.policies if KINDS[policy.kind].decides_length]
    lengths = [policy.window.epochs_to_end(steps_per_epoch) for policy in deciding or schedule.policies]
    lengths += [policy.window.epochs_to_act(steps_per_epoch) for policy in schedule.policies]
    known = [length for length in lengths if length is not None]
    return max(known) if known and len(known) == len(lengths) else None


def dense_schedule(schedule: Schedule) -> Schedule:
    """What a dense twin is trained under: the schedule's learning rates and nothing else."""
    components = [spec for spec in schedule.components if spec.kind == LR_SCHEDULER.name]
    return Schedule(components, [policy for policy in schedule.policies if policy.kind == LR_SCHEDULER.name])


def _checkpoint(folder: Path | None, resume: bool, epochs: int) -> dict[str, Any] | None:
    if resume and folder is None:
        raise StateError("no run to resume: run_dir says where")
    if folder is None:
        return None
    if resume:
        checkpoint = load_checkpoint(folder)
        if (done := checkpoint["epoch"]) > epochs:
            raise StateError(f"{str(folder)!r} has {done} epochs behind it: it can't be a run of {epochs}")
        return checkpoint
    if (folder / CHECKPOINT).exists() or (folder / FILE_NAME).exists():
        raise PrunekitError(f"{str(folder)!r} already holds a run; resume it or choose another folder")
    return None


def _foreign_masks(run_dir: str | Path | None, application: Application, resume: bool) -> Mapping[str, Any] | None:
    """The state of another run's scheduler, whose masks fit."""
    if run_dir is None:
        return None
    if resume:
        raise StateError("a run that is resumed has its own masks: give no masks_from")
    state: Mapping[str, Any] = load_checkpoint(run_dir)["scheduler"]
    # Here, where nothing has been written: a run that fails later is one to be resumed.
    foreign_masks(state, application.model)
    return state


def _schedule(schedule: Schedule | str | Path | Mapping[str, Any]) -> Schedule:
    """The schedule as far as it can be read; its problems are told by the scheduler, with its own."""
    if isinstance(schedule, Schedule):
        return schedule
    return parse(Source.from_data(schedule) if isinstance(schedule, Mapping) else Source.from_file(schedule))
