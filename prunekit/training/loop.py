"""The loop behind `prunekit train`: epochs that are trained, evaluated and saved, and what came of them."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from prunekit.components.origin import Origin
from prunekit.errors import StateError
from prunekit.model.optimizer import learning_rates
from prunekit.model.parameter_mask import count_nonzero
from prunekit.model.parameters import Parameters
from prunekit.plugins.lock import LOCK, Lock
from prunekit.scheduler import CompressionScheduler
from prunekit.trace import Trace
from prunekit.training.application import Application
from prunekit.training.checkpoint import (
    BEST,
    CHECKPOINT,
    random_states,
    replace_file,
    seed_everything,
    set_random_states,
)
from prunekit.training.complaints import complaint
from prunekit.training.evaluation import Sums, batches_of, evaluate
from prunekit.training.results import (
    Baseline,
    Best,
    Change,
    EpochResult,
    Evaluation,
    MinibatchResult,
    ParameterResult,
    TrainingResult,
    best_of,
)
from prunekit.training.updates import Updates


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a run; its folder holds a checkpoint of the state after `epochs_done` epochs."""

    def __init__(self, epoch: int, minibatch: int, epochs_done: int) -> None:
        super().__init__(f"interrupted in epoch {epoch}, mini-batch {minibatch}")
        self.epoch, self.minibatch, self.epochs_done = epoch, minibatch, epochs_done


class Run:
    """One run: its parts, and what has come of it so far.

    Attributes:
        found: the names of what was in its folder before it; None if that was not there.
    """

    found: frozenset[str] | None = None

    on_epoch: Callable[[EpochResult], None] | None = None
    on_minibatch: Callable[[MinibatchResult], None] | None = None

    def __init__(
        self,
        application: Application,
        scheduler: CompressionScheduler,
        trace: Trace,
        folder: Path | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.application, self.scheduler, self.trace = application, scheduler, trace
        self.updates = Updates(application, scheduler)
        self.folder, self.settings = folder, dict(settings)
        self.history: list[EpochResult] = []
        self.done, self.seconds_before, self.started = 0, 0.0, time.perf_counter()

    def begin(
        self, checkpoint: Mapping[str, Any] | None, seed: int | None, foreign: Mapping[str, Any] | None = None
    ) -> None:
        """Take up a checkpoint, or write the first, with the masks of a state of another schedule in it."""
        if checkpoint is None and seed is not None:
            seed_everything(seed)
        if checkpoint is not None:
            self.restore(checkpoint)
        self.scheduler.on_train_begin()
        if checkpoint is not None:
            # Last, because listeners may have drawn numbers when they heard that training begins.
            set_random_states(checkpoint["random"], self.generators(), checkpoint["generators"])
        else:
            if foreign is not None:
                self.scheduler.take_masks(foreign)
            self.save()
        self.lock()

    def lock(self) -> None:
        """Keep, or compare, what the run's plugins are."""
        if self.folder is None:
            return
        path, now = self.folder / LOCK, self.scheduler.lock()
        if path.exists():
            for entry in now.entries:
                if objection := Lock.read(path).objection(entry):
                    self.trace.warning("plugin changed", plugin=str(entry), difference=objection)
        else:
            now.write(path)

    def until(self, epochs: int) -> TrainingResult:
        """The epochs that are left, and the end."""
        for epoch in range(self.done, epochs):
            self.epoch(epoch)
        self.updates.end()
        self.scheduler.on_train_end()
        result = self.result()
        result.write()
        return result

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The trace's last line says where the run was when it could not go on."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            now = self.scheduler.progress
            self.trace.info("training interrupted", **now.trace_keys())
            raise TrainingInterrupted(now.epoch, now.minibatch, self.done) from interrupt
        except Exception as error:
            now, text = self.scheduler.progress, f"{type(error).__name__}: {error}"
            self.trace.error("training failed", **now.trace_keys(), error=text, exc_info=error)
            if complaint(error) is not None and not self.updates.begun and self.done == 0:
                self.remove()
            raise

    def remove(self) -> None:
        """Nothing has come of the run: leave its folder as it was."""
        if self.folder is None or not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.name not in (self.found or ()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.found is None:
            self.folder.rmdir()

    def epoch(self, epoch: int) -> None:
        """Train, evaluate, save. The explicit events, because a checkpoint belongs between two epochs."""
        start = time.perf_counter()
        self.scheduler.on_epoch_begin(epoch)
        self.updates.begin_epoch()
        rate = learning_rates(self.application.first_optimizer.param_groups)[0]
        trained = self.minibatches(epoch)
        evaluation = self.evaluate()
        metrics = {"min": evaluation.loss}
        if evaluation.accuracy is not None:
            metrics["max"] = evaluation.accuracy
        self.scheduler.on_epoch_end(epoch, metrics=metrics)
        sparsity, seconds = self.scheduler.sparsity(), time.perf_counter() - start
        result = EpochResult(
            epoch=epoch,
            train_loss=trained.pop("", math.nan),
            loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            learning_rate=rate,
            sparsity=sparsity,
            seconds=seconds,
            stage=self.scheduler.stage,
            train_parts=trained,
            parts=evaluation.parts,
            metrics=evaluation.metrics,
        )
        # Once: it stays so, or the line would come with each epoch that follows.
        if not math.isfinite(result.train_loss) and all(math.isfinite(former.train_loss) for former in self.history):
            self.trace.warning("training loss is not finite", epoch=epoch, loss=result.train_loss)
        self.history.append(result)
        self.done = self.scheduler.progress.next_epoch
        self.save()
        if self.on_epoch is not None:
            self.on_epoch(result)

    def minibatches(self, epoch: int) -> dict[str, float]:
        """Train on every mini-batch; the mean loss (named ""), and the means of its parts."""
        loader, optimizer = self.application.train_loader, self.application.first_optimizer
        # A sampler of several processes shuffles by the epoch that it is told.
        set_epoch = _or_none(attrgetter("sampler.set_epoch"), loader)
        if set_epoch is not None:
            set_epoch(epoch)
        self.application.model.train()
        sums, number, of = Sums(), 0, len(loader)  # type: ignore[arg-type]  # checked before training
        sparsity = self.scheduler.sparsity() if self.on_minibatch is not None else 0.0
        for batch in self.scheduler.minibatches(batches_of(loader, "train_loader"), of):
            loss = self.updates.train_on(batch, number, of)
            # Summed up on the device: a float for each mini-batch would wait for it each time.
            sums.add({"": loss.total, **loss.parts})
            number += 1
            if self.on_minibatch is not None:
                self.on_minibatch(MinibatchResult(epoch, number - 1, of, sparsity, sums.tensor(""), optimizer))
        self.updates.must_have_stepped(number, of)
        return sums.over(number)

    def evaluate(self) -> Evaluation:
        """How good the model is that a checkpoint is to be judged by."""
        with self.updates.averaged(), self.scheduler.masked():
            return evaluate(self.application)

    def result(self) -> TrainingResult:
        """What came of all."""
        quantized = self.scheduler.quantized
        with self.scheduler.masked():
            evaluation = evaluate(self.application)
            parameters = tuple(
                ParameterResult(name, tuple(p.shape), p.numel(), count_nonzero(quantized.read(p)), self.changes(name))
                for name, p in Parameters.of(self.application.model).by_name.items()
            )
        return TrainingResult(
            evaluation.loss,
            evaluation.accuracy,
            self.dense(),
            parameters,
            tuple(self.history),
            self.seconds(),
            self.folder,
            self.settings,
            tuple(self.scheduler.endings),
            self.scheduler.stage,
            self.best(),
        )

    def best(self) -> Best | None:
        """The epoch whose checkpoint is kept besides the last one."""
        best = best_of(self.history)
        path = None if self.folder is None else self.folder / BEST
        return None if best is None else Best(best.epoch, best.stage, best.loss, best.accuracy, path)

    def changes(self, name: str) -> tuple[Change, ...]:
        """By whose hand a parameter was pruned."""
        epochs: dict[Origin, list[int]] = {}
        for epoch, change in self.scheduler.changes.get(name, ()):
            epochs.setdefault(change.origin, []).append(epoch)
        return tuple(
            Change(origin.component, origin.policy, origin.plugin, origin.version, min(when), max(when))
            for origin, when in epochs.items()
        )

    def dense(self) -> Baseline | None:
        """The last evaluation before the first weight was pruned."""
        changes = [entry for entries in self.scheduler.changes.values() for entry in entries]
        first = min((epoch for epoch, c in changes if c.sparsity_after > c.sparsity_before), default=self.done)
        before = [result for result in self.history if result.epoch < first]
        return Baseline(before[-1].loss, before[-1].accuracy, before[-1].epoch) if before else None

    def seconds(self) -> float:
        """Since the run began, without the time between an interruption and its resumption."""
        return self.seconds_before + time.perf_counter() - self.started

    def save(self) -> None:
        """Write the checkpoint; one that is there already stays whole until the new one is."""
        if self.folder is None:
            return
        state = {
            "model": self.application.model.state_dict(),
            **self.updates.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "stage": self.scheduler.stage,
            "epoch": self.done,
            "random": random_states(),
            "generators": [generator.get_state() for generator in self.generators()],
            "history": [asdict(result) for result in self.history],
            "seconds": self.seconds(),
            "settings": self.settings,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / CHECKPOINT, lambda path: torch.save(state, path))
        self.keep_best()

    def keep_best(self) -> None:
        """Keep the last checkpoint beside those that follow if there is none better."""
        if self.folder is not None and self.history and best_of(self.history) is self.history[-1]:
            last = self.folder / CHECKPOINT
            replace_file(self.folder / BEST, lambda path: shutil.copyfile(last, path))

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Everything but the random numbers, which come last."""
        try:
            self.application.model.load_state_dict(checkpoint["model"])
            self.updates.load_state_dict(checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            raise StateError(f"the checkpoint does not fit the application: {error}") from error
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.history = [EpochResult(**result) for result in checkpoint["history"]]
        self.done, self.seconds_before = checkpoint["epoch"], checkpoint["seconds"]
        self.keep_best()  # a run may have been killed before it could

    def generators(self) -> list[torch.Generator]:
        """The random number generators that the loaders and their samplers have of their own, each once."""
        loaders = (self.application.train_loader, self.application.test_loader)
        places = ("generator", "sampler.generator", "batch_sampler.sampler.generator")
        found = [_or_none(attrgetter(place), loader) for loader in loaders for place in places]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


class Warnings:
    """A logger that tells the user of warnings; all else is in the run's folder."""

    def __init__(self, on_warning: Callable[[str], None]) -> None:
        self.on_warning = on_warning

    def warning(self, event: str, **values: Any) -> None:
        details = ", ".join(f"{key} {value!r}" for key, value in values.items())
        self.on_warning(str(values.get("problem", f"{event}: {details}")))

    def debug(self, event: str, **values: Any) -> None: ...

    info = error = debug


def _or_none(place: Callable[[Any], Any], holder: Any) -> Any:
    try:
        return place(holder)
    except AttributeError:
        return None
