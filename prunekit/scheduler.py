"""CompressionScheduler: what a training loop calls.

Long on purpose: whoever writes a loop reads all calls on one page, with what each promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from inspect import ismodule
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from prunekit.components.kinds import QUANTIZER
from prunekit.components.loss_term import PolicyLoss
from prunekit.components.origin import MaskChange
from prunekit.engine.building.build import build
from prunekit.engine.conflicts import missed, without_metrics
from prunekit.engine.copies import Copy, apply_masks, masked_copy, must_be_copyable
from prunekit.engine.execution import Execution
from prunekit.engine.foreign_masks import foreign_masks
from prunekit.engine.given import must_be_of_their_kinds
from prunekit.engine.policies import Policy
from prunekit.engine.spellings import also_spelled, must_be_metrics, must_be_optimizer
from prunekit.engine.stage import Stage, stage_of
from prunekit.errors import PrunekitError, ScheduleError, dotted
from prunekit.model.optimizer import sequence_of
from prunekit.plugins.listeners import given_listeners
from prunekit.plugins.loading import Plugins, core_entry, load_plugins
from prunekit.plugins.lock import Lock
from prunekit.progress import Progress
from prunekit.pruning.named_kinds import NAMED_KINDS
from prunekit.quantization.forward import QuantizedForward, left_by_others
from prunekit.schedule.schedule import Schedule, parse
from prunekit.schedule.yaml_source import Source
from prunekit.trace import Trace

Batch = TypeVar("Batch")


class CompressionScheduler:
    """Carries out a schedule while a network trains.

    Either the loop calls the events itself (`on_epoch_begin` … `on_epoch_end`), or it runs inside
    `for epoch in scheduler.epochs(n)` and `for batch in scheduler.minibatches(loader)` and adds `total_loss(loss)`.
    Masks are enforced after every step of any optimizer that holds parameters of the model; the loop needs no line.
    When training ends, and after `with CompressionScheduler(…) as scheduler`, every hook is off and the weights are
    masked.

    Args:
        schedule: what to do and when.
        model: the network, as the loop trains it (wrapped or not).
        optimizer: one or several: an LR scheduler needs them, since it moves the rates of these alone.
        epochs: the length of the run, if known: a policy that never acts within it is an error.
        steps_per_epoch: how many steps the optimizer takes in an epoch, if known: the same for windows in steps.
        trace: where lines go; `Trace(run_dir)` keeps them in a folder.
        plugins: what may be used; `load_plugins()`, all that is installed, by default.
        listeners: objects, modules or classes with hook implementations, which run after those that are installed.

    Raises:
        ScheduleError: every problem found in the schedule, before anything is changed.
        PrunekitError: an argument is no schedule, model, optimizer, trace or sequence of listeners.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        epochs: int | None = None,
        steps_per_epoch: int = 0,
        trace: Trace | None = None,
        plugins: Plugins | None = None,
        listeners: Sequence[object] = (),
    ) -> None:
        must_be_of_their_kinds(schedule, model, trace, listeners)
        self.schedule, self.model, optimizers = schedule, model, sequence_of(optimizer)
        self.trace = trace or Trace()
        self._given = plugins = plugins or load_plugins()
        given, unusable = given_listeners(listeners, plugins.listeners)
        self._given_listeners = tuple(listener.implementation for listener in given)
        plugins = plugins.plus(given)
        with ExitStack() as while_built:
            if any(component.kind == QUANTIZER.name for component in schedule.components):
                while_built.enter_context(left_by_others(model))
            built = build(schedule, plugins.registry, model, optimizers, epochs, steps_per_epoch)
            if problems := [*schedule.problems(), *built.problems, *unusable, *plugins.problems]:
                raise ScheduleError(problems)
        for unused in plugins.broken:
            self.trace.warning("plugin broken", plugin=str(unused.offer), error=unused.reason)
        for unused in plugins.switched_off:
            self.trace.info("plugin left out", plugin=str(unused.offer), reason=unused.reason)
        self._used, self._listeners = built.used, plugins.listeners
        self._begun = False
        self._metrics: Mapping[str, float] | None = None
        self._execution = Execution(schedule, model, optimizers, built, plugins.listeners, self.trace, steps_per_epoch)
        self._execution.length = epochs or 0
        self._execution.warn([*schedule.warnings(), *built.warnings])

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        model: Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        **options: Any,
    ) -> CompressionScheduler:
        """A scheduler from a YAML file; options as in the constructor.

        Raises:
            ScheduleError: every problem in the file and in how it fits the model, with file, line and column.
        """
        return cls(parse(Source.from_file(path)), model, optimizer, **options)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        model: Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        **options: Any,
    ) -> CompressionScheduler:
        """A scheduler from a dict of the YAML's shape, which is not changed; options as in the constructor."""
        return cls(parse(Source.from_data(data)), model, optimizer, **options)

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> boolean mask (True keeps), for the parameters that have one."""
        return self._execution.masks

    @property
    def optimizer(self) -> Optimizer | None:
        """The first optimizer that was given, or else the first that was found to step the model's parameters."""
        return self._execution.optimizers.known.first

    @property
    def policies(self) -> Sequence[Policy]:
        """The policies in the order of the schedule: what each owns, its window and its component."""
        return tuple(self._execution.policies)

    @property
    def components(self) -> Mapping[str, Any]:
        """The object made of each section, by the section's place: `pruners.my_pruner`."""
        return MappingProxyType(self._execution.components)

    @property
    def quantized(self) -> QuantizedForward:
        """What the forward pass reads now in place of weights, and passes on in place of activations."""
        return self._execution.quantizers.forward

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        return self._execution.clock.progress

    @property
    def attached(self) -> bool:
        """Whether it acts on model and optimizers: until training ends, or it is closed."""
        return self._execution.attached

    @property
    def stage(self) -> Stage:
        """How far compression has come: `dense`, `partial` or `final` (every window has ended or is at its target)."""
        run = self._execution
        return stage_of(run.policies, run.model, run.masks, run.progress, run.next_epoch)

    @property
    def changes(self) -> Mapping[str, list[tuple[int, MaskChange]]]:
        """What became of each parameter so far: (epoch, change), oldest first."""
        return self._execution.ledger.changes

    @property
    def endings(self) -> Sequence[str]:
        """Where the run, if it ends now, ends otherwise than the schedule's windows: a sparsity not reached, …"""
        return [str(problem) for problem in self._execution.endings()]

    def lock(self) -> Lock:
        """The plugins of this run as they are now: what the schedule names, the listeners, and prunekit itself."""
        used = dict.fromkeys(each.entry for each in self._used)
        return Lock((core_entry(), *used, *(listener.entry for listener in self._listeners)))

    # The explicit way: one call per event

    def on_train_begin(self) -> None:
        """Training is about to begin, or to go on; the first event of a run calls it where the loop does not.

        Raises:
            PrunekitError: the scheduler is closed.
        """
        if not self._begun:
            run = self._execution
            run.attach()
            self._begun = True
            named = {dotted(u.place): f"{u.found.distribution}:{u.name}" for u in self._used if u.kind in NAMED_KINDS}
            more = {"named": named} if named else {}
            self.trace.info("training begins", plugins=run.plugins, policies=len(run.policies), **more)
            with run.bus.listeners_only():  # components are live already where a run goes on within an epoch
                run.fire("on_train_begin", run_dir=self.trace.run_dir)

    @also_spelled()
    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None) -> None:
        """An epoch is about to begin: pruners choose their masks.

        Raises:
            Exception: what a plugin raised, with a note that names it; masks and model are as before.
        """
        run = self._execution
        run.order.must_be_open()
        if not run.attached and epoch < run.next_epoch:
            raise PrunekitError(f"epoch {epoch} begins, and {run.ended}")
        run.order.missed_windows(missed(run.policies, run.order.begin_epoch(epoch)))
        run.clock.begin_epoch(epoch)
        self._take(optimizer)
        run.masks.end_forward()  # of a mini-batch that the loop left in the middle
        run.binding.look_up(run.progress)
        # First, so that whoever becomes live hears this very event.
        run.open_windows()
        run.fire("on_epoch_begin")

    @also_spelled(minibatch_id="minibatch")
    def on_minibatch_begin(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """A mini-batch is about to go forward: masks are in the weights when this returns.

        Raises:
            PrunekitError: its epoch has not begun, or the scheduler is closed.
        """
        run = self._execution
        run.order.begin_minibatch(epoch, minibatch, minibatches_per_epoch)
        run.clock.begin_minibatch(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        run.optimizers.begin_minibatch()
        if run.windows.any_open or run.masks.entries:
            run.binding.follow()
        if run.windows.within_epochs:
            run.windows.open_within_epoch(run.progress, run.optimizers.known)
        run.fire("on_minibatch_begin")
        # Behind the event, which may have set the masks that this forward pass is to see.
        if run.masks.entries:
            run.masks.begin_forward()

    @overload
    def before_backward_pass(
        self,
        epoch: int,
        minibatch: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Optimizer | None = None,
        return_loss_components: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def before_backward_pass(
        self,
        epoch: int,
        minibatch: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Optimizer | None = None,
        *,
        return_loss_components: Literal[True],
    ) -> PolicyLoss: ...

    @also_spelled(minibatch_id="minibatch")
    def before_backward_pass(
        self,
        epoch: int,
        minibatch: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Optimizer | None = None,
        return_loss_components: bool = False,
    ) -> Tensor | PolicyLoss:
        """The loss plus the terms of regularizers and the like: call `backward()` on what this returns.

        With `return_loss_components` it is the `overall_loss` of what this returns, beside each term with its name.
        """
        clock = self._execution.clock
        if epoch != clock.epoch or minibatch != clock.minibatch:
            self._execution.tell_moment(epoch, minibatch, minibatches_per_epoch)
        if optimizer is not None or not self._begun:
            self._take(optimizer)
        return self._execution.with_terms(loss) if return_loss_components else self.total_loss(loss)

    @also_spelled(minibatch_id="minibatch")
    def before_parameter_optimization(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Gradients are known. The optimizer's step calls it too; only the first call in a mini-batch counts.

        With gradients of a `GradScaler`: behind its `unscale_(optimizer)`, or not at all.
        """
        clock = self._execution.clock
        if epoch != clock.epoch or minibatch != clock.minibatch:
            self._execution.tell_moment(epoch, minibatch, minibatches_per_epoch)
        if optimizer is not None or not self._begun:
            self._take(optimizer)
        self._execution.optimizers.tell_gradients(optimizer)

    @also_spelled(minibatch_id="minibatch")
    def on_minibatch_end(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """The optimizers have stepped: masks are enforced where hooks have not done so; regularizers drop weights."""
        run = self._execution
        if epoch != run.clock.epoch or minibatch != run.clock.minibatch:
            run.tell_moment(epoch, minibatch, minibatches_per_epoch)
        if optimizer is not None or run.ledger.rates.watching or not self._begun:
            self._take(optimizer)
        run.optimizers.end_minibatch()
        if not run.optimizers.heard:  # nobody tells of the optimizer's steps: each mini-batch counts as one
            run.clock.stepped = True
        run.fire("on_minibatch_end")
        if run.windows.within_epochs:
            run.windows.close("on_minibatch_end", run.progress)

    @also_spelled()
    def on_epoch_end(
        self, epoch: int, optimizer: Optimizer | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """The epoch has ended: the LR of the next one is set.

        `metrics`: `min` is one to minimise (validation loss), `max` one to maximise (accuracy).

        Raises:
            PrunekitError: it has not begun, or the scheduler is closed.
        """
        must_be_metrics(metrics)
        if optimizer is not None:
            must_be_optimizer(optimizer)
        run = self._execution
        run.order.end_epoch(epoch)
        # Before anything has happened: an event that fails half-way can't be told again.
        run.windows.must_have_metrics(metrics, run.progress._replace(epoch=epoch))
        run.clock.end_epoch(epoch)
        self._take(optimizer)
        run.order.missed_metrics(without_metrics(run.policies, metrics, run.progress))
        run.fire("on_epoch_end", metrics=metrics)
        if run.order.minibatch >= 0 or run.clock.stepped:
            run.order.missed_terms(run.ledger.terms_not_in_loss())
        run.order.end()
        run.ledger.sum_up_epoch(run.progress)
        run.optimizers.end_epoch(run.progress)
        run.end_epoch()
        run.windows.close("on_epoch_end", run.progress)

    def on_train_end(self) -> None:
        """Training has ended: every hook is off model and optimizers, and the weights are masked and free.

        What is quantized stays so: it is the result. An event of a later epoch goes on where training has ended.
        """
        if self._begun:
            self._begun, run = False, self._execution
            run.order.end()
            try:
                run.fire("on_train_end")
            finally:
                run.detach()
            run.warn_of_end()
            self.trace.info("training ends", epochs=run.next_epoch)

    def close(self) -> None:
        """Take every hook off model and optimizers, for good; weights stay masked. Safe to call twice."""
        self._begun = False
        self._execution.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        """Close it; a block that comes to its end has ended training."""
        try:
            if exception is None:
                self.on_train_end()
        finally:
            self.close()

    # The attached way: the loop runs inside these

    def epochs(self, number: int, after_epoch: Callable[[int], None] | None = None) -> Iterator[int]:
        """The epochs of a run of `number`, from where a restored state stands; events are fired around each.

        Args:
            number: how many there are in all.
            after_epoch: called with each epoch once it has ended, where a checkpoint belongs.

        Raises:
            ScheduleError: a policy would never act within the run.
            PrunekitError: the run has ended, and was as long as that; or the scheduler is closed.
        """
        run = self._execution
        run.must_last(number)
        if number <= run.next_epoch:
            self.trace.warning("no epoch left", epochs=number, done=run.next_epoch)
        self.on_train_begin()
        for epoch in range(run.next_epoch, number):
            self._metrics = None
            self.on_epoch_begin(epoch)
            yield epoch
            self.on_epoch_end(epoch, metrics=self._metrics)
            if after_epoch is not None:
                after_epoch(epoch)
        self.on_train_end()

    def minibatches(self, loader: Iterable[Batch], length: int | None = None) -> Iterator[Batch]:
        """The batches of a loader; events are fired around each.

        Args:
            loader: anything to iterate over.
            length: the number of batches, where `len(loader)` does not tell.
        """
        try:
            total = len(loader) if length is None else length  # type: ignore[arg-type]
        except TypeError as error:  # also a DataLoader of an IterableDataset, which looks as if it had one
            raise PrunekitError("the loader has no length; say it: scheduler.minibatches(loader, length=…)") from error
        for minibatch, batch in enumerate(loader):
            self.on_minibatch_begin(self._execution.clock.epoch, minibatch, total)
            yield batch
            self.on_minibatch_end(self._execution.clock.epoch, minibatch, total)

    def total_loss(self, loss: Tensor) -> Tensor:
        """The loss plus every term that a live policy adds."""
        if self._execution.order.closed:
            self._execution.order.must_be_open()
        if "before_backward_pass" not in self._execution.bus.callers:
            return loss
        return self._execution.with_terms(loss).overall_loss

    def report(self, **metrics: float) -> None:
        """Metrics of this epoch for what looks at them when it ends: `report(min=validation_loss, max=accuracy)`."""
        self._metrics = {**(self._metrics or {}), **metrics}

    def masked(self, copy: Copy | None = None) -> AbstractContextManager[None]:
        """For evaluation and checkpoints: every mask applied, those that only the forward pass sees too.

        `copy`: another copy of the model (an EMA, say) or a state_dict, to be masked instead. What only the forward
        pass sees is undone at the end; the zeros that are enforced stay.

        Raises:
            PrunekitError: on entering: the masks do not fit the copy, which has not been changed.
        """
        self._execution.binding.look_up(self.progress)
        return self._execution.masks.applied() if copy is None else masked_copy(copy, self._execution.masks, self.model)

    def apply_to(self, copy: Copy) -> Mapping[str, tuple[float, float]]:
        """Put zeros where the masks are into another copy of the model, by name: an EMA, SWA, the best checkpoint.

        The zeros that only the forward pass sees are put in too; its scales, and what quantizers make of weights, are
        not. Doing it again changes nothing.

        Args:
            copy: a model, wrapped or not, or a `state_dict()`; its tensors are changed in place.

        Returns:
            Parameter name -> its sparsity before and after.

        Raises:
            PrunekitError: names or shapes that do not fit, all of them; nothing has been changed.
        """
        return apply_masks(copy, self._execution.masks, self.model)

    def sparsity(self, name: str | None = None) -> float:
        """The fraction of zeros in a parameter, or in all, counted from the tensors as a forward pass sees them.

        Raises:
            PrunekitError: the model has no such parameter, or one without values.
        """
        return self._execution.sparsity(name)

    def take_masks(self, source: object = None) -> None:
        """Enforce masks from elsewhere, until a policy of this schedule sets others for the same parameters.

        Args:
            source: the state of a scheduler under any schedule; a mapping of names to masks, in any type in which they
                are 0 and 1 (also the `state_dict()` of a model that `torch.nn.utils.prune` has pruned); a model or its
                `state_dict()`, of which the zeros are taken that weights of two or more dimensions have. By default
                the zeros of the weights that are being trained.

        Raises:
            StateError: what does not fit, all of it, or that there is nothing to take; nothing has been changed.
        """
        run = self._execution
        run.binding.follow()
        taken = foreign_masks(source, self.model)
        self.on_train_begin()
        if taken.left_out:
            self.trace.warning("weights zero all over, not taken", parameters=taken.left_out)
        run.ledger.carry_out([taken.result], "take_masks", run.optimizers.known, run.progress)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks, component and policy state, learning rates and progress; `torch.load(weights_only=True)` reads it."""
        run = self._execution
        run.binding.look_up(run.progress)
        if self._begun:
            run.masks.hold()
        state = run.state_dict()
        if run.bus.hears("on_state_saved"):
            run.bus.fire("on_state_saved", state=state, progress=run.progress)
        return state

    @also_spelled(normalize_dataparallel_keys=None)  # names are the same whatever wraps the model
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Model and optimizer load their own.

        Raises:
            StateError: the state belongs to another schedule or another model; nothing was changed.
            PrunekitError: the scheduler is closed.
        """
        run = self._execution
        run.order.must_be_open()
        run.load_state_dict(state)
        self.trace.info("state restored", **run.progress.trace_keys(), next_epoch=run.next_epoch)
        run.bus.fire("on_state_restored", state=state, progress=run.progress)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressionScheduler:
        """A scheduler on copies of model, optimizer and given listeners, which goes on from here and writes no file.

        Raises:
            PrunekitError: it can't be copied, or not now; the message says what to do instead.
        """
        run = self._execution
        within_step = run.optimizers.in_minibatch and not run.clock.stepped
        must_be_copyable(self.model, memo, run.quantizers, within_step)
        model, optimizers, trace = deepcopy((self.model, run.optimizers.known.given, self.trace), memo)
        # A module is one in a process, as a class is.
        listeners = [each if ismodule(each) else deepcopy(each, memo) for each in self._given_listeners]
        options: dict[str, Any] = {"steps_per_epoch": run.steps_per_epoch, "trace": trace, "plugins": self._given}
        twin = type(self)(self.schedule, model, optimizers, listeners=listeners, **options)
        twin.load_state_dict(self.state_dict())
        twin._execution.optimizers.go_on_as(run.optimizers)
        twin._metrics = deepcopy(self._metrics)
        return twin

    def __reduce__(self) -> NoReturn:
        raise PrunekitError(
            "a scheduler can't be pickled, nor copied without its model: save its state_dict(), and load that into "
            "another one of the same schedule"
        )

    # Inside

    def _take(self, optimizer: Optimizer | None) -> None:
        """What every event begins with: the optimizer is known, and so is that training has begun."""
        run = self._execution
        if not self._begun:
            run.order.must_be_open()
        if optimizer is not None:
            must_be_optimizer(optimizer)
            run.optimizers.give([optimizer])
        if run.ledger.rates.watching:
            run.ledger.rates.check(run.optimizers.known.given, run.clock)
        if not self._begun:
            self.on_train_begin()
