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
from prunekit.components.origin import MaskChange, Result
from prunekit.engine.binding import Binding
from prunekit.engine.building.build import build
from prunekit.engine.bus import EventBus
from prunekit.engine.conflicts import endings, exhausted, idle_policies, missed, undecided, without_metrics
from prunekit.engine.copies import Copy, apply_masks, masked_copy, must_be_copyable
from prunekit.engine.foreign_masks import foreign_masks
from prunekit.engine.holders import take_hold
from prunekit.engine.ledger import Ledger
from prunekit.engine.optimizers import Optimizers
from prunekit.engine.order import Order
from prunekit.engine.policies import Policy
from prunekit.engine.quantizers import Quantizers
from prunekit.engine.spellings import also_spelled, must_be_metrics, must_be_optimizer
from prunekit.engine.stage import Stage, stage_of
from prunekit.engine.state import check_fit, fingerprint, fitting_masks, renamed, stateful
from prunekit.engine.windows import Windows
from prunekit.errors import Problem, PrunekitError, ScheduleError, dotted
from prunekit.model.masks import Masks
from prunekit.model.optimizer import learning_rates, sequence_of, set_groups
from prunekit.model.parameters import Parameters, must_have_values
from prunekit.plugins.listeners import given_listeners
from prunekit.plugins.loading import Plugins, core_entry, load_plugins
from prunekit.plugins.lock import Lock
from prunekit.progress import Clock, Progress
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
        self._warnings: list[Problem] = []
        self._warn([*schedule.warnings(), *built.warnings])
        self._policies, self._components = built.policies, built.components
        self._used, self._listeners = built.used, plugins.listeners
        self._plugins = {used.found.distribution: used.found.version for used in built.used}
        for policy in self._policies:
            policy.warn = self.trace.warning
        self._masks = Masks(Parameters.of(model).by_name)
        self._clock, self._next_epoch = Clock(), 0
        self._order = Order(self.trace.warning)
        clock = self._clock  # not `self`: what is quantized stays in the model, and must not keep the scheduler alive
        self._bus = EventBus(self.trace, lambda: clock.progress, plugins.listeners)
        self._ledger = Ledger(self._masks, self._bus, self.trace)
        self._quantizers = Quantizers(self._policies, model, built.catalog, self._ledger)
        self._begun, self._steps_per_epoch = False, steps_per_epoch
        self._metrics: Mapping[str, float] | None = None
        self._optimizers = Optimizers(
            self._masks, self._policies, self._quantizers, self.trace, self._tell_gradients, self._count_step
        )
        self._optimizers.give(optimizers, bases=False)
        clashes = undecided(schedule, self._policies)
        self._windows = Windows(self._policies, model, self._ledger, self._quantizers, clashes)
        self._binding = Binding(model, self._policies, self._ledger, self._quantizers)
        self.attached = True
        take_hold(self)

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
        return self._masks

    @property
    def optimizer(self) -> Optimizer | None:
        """The first optimizer that was given, or else the first that was found to step the model's parameters."""
        return self._optimizers.known.first

    @property
    def policies(self) -> Sequence[Policy]:
        """The policies in the order of the schedule: what each owns, its window and its component."""
        return tuple(self._policies)

    @property
    def components(self) -> Mapping[str, Any]:
        """The object made of each section, by the section's place: `pruners.my_pruner`."""
        return MappingProxyType(self._components)

    @property
    def quantized(self) -> QuantizedForward:
        """What the forward pass reads now in place of weights, and passes on in place of activations."""
        return self._quantizers.forward

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        return self._clock.progress

    @property
    def stage(self) -> Stage:
        """How far compression has come: `dense`, `partial` or `final` (every window has ended or is at its target)."""
        return stage_of(self._policies, self.model, self._masks, self.progress, self._next_epoch)

    @property
    def changes(self) -> Mapping[str, list[tuple[int, MaskChange]]]:
        """What became of each parameter so far: (epoch, change), oldest first."""
        return self._ledger.changes

    @property
    def endings(self) -> Sequence[str]:
        """Where the run, if it ends now, ends otherwise than the schedule's windows: a sparsity not reached, …"""
        return [str(problem) for problem in self._endings(self._order.expected)]

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
            self._attach()
            self._begun = True
            named = {dotted(u.place): f"{u.found.distribution}:{u.name}" for u in self._used if u.kind in NAMED_KINDS}
            more = {"named": named} if named else {}
            self.trace.info("training begins", plugins=self._plugins, policies=len(self._policies), **more)
            with self._bus.listeners_only():  # components are live already where a run goes on within an epoch
                self._fire("on_train_begin", run_dir=self.trace.run_dir)

    @also_spelled()
    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None) -> None:
        """An epoch is about to begin: pruners choose their masks.

        Raises:
            Exception: what a plugin raised, with a note that names it; masks and model are as before.
        """
        self._order.must_be_open()
        if not self.attached and epoch < self._next_epoch:
            raise PrunekitError(f"epoch {epoch} begins, and {self._ended()}")
        self._order.missed_windows(missed(self._policies, self._order.begin_epoch(epoch)))
        self._clock.begin_epoch(epoch)
        self._take(optimizer)
        self._masks.end_forward()  # of a mini-batch that the loop left in the middle
        self._binding.look_up(self.progress)
        # First, so that whoever becomes live hears this very event.
        self._windows.open(self.progress, self._optimizers.known)
        self._fire("on_epoch_begin")

    @also_spelled(minibatch_id="minibatch")
    def on_minibatch_begin(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """A mini-batch is about to go forward: masks are in the weights when this returns.

        Raises:
            PrunekitError: its epoch has not begun, or the scheduler is closed.
        """
        self._order.begin_minibatch(epoch, minibatch, minibatches_per_epoch)
        self._clock.begin_minibatch(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        self._optimizers.begin_minibatch()
        self._masks.end_forward()  # of a mini-batch that the loop left in the middle
        if self._windows.any_open or self._masks:
            self._binding.follow()
        if self._windows.within_epochs:
            self._windows.open_within_epoch(self.progress, self._optimizers.known)
        self._fire("on_minibatch_begin")
        # Behind the event, which may have set the masks that this forward pass is to see.
        self._masks.begin_forward()

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
        if epoch != self._order.epoch or minibatch != self._order.minibatch:
            self._order.within_minibatch(epoch, minibatch)
        self._clock.tell(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        return self._with_terms(loss) if return_loss_components else self.total_loss(loss)

    @also_spelled(minibatch_id="minibatch")
    def before_parameter_optimization(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Gradients are known. The optimizer's step calls it too; only the first call in a mini-batch counts.

        With gradients of a `GradScaler`: behind its `unscale_(optimizer)`, or not at all.
        """
        if epoch != self._order.epoch or minibatch != self._order.minibatch:
            self._order.within_minibatch(epoch, minibatch)
        self._take(optimizer)
        self._optimizers.tell_gradients(optimizer)

    @also_spelled(minibatch_id="minibatch")
    def on_minibatch_end(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """The optimizers have stepped: masks are enforced where hooks have not done so; regularizers drop weights."""
        if epoch != self._order.epoch or minibatch != self._order.minibatch:
            self._order.within_minibatch(epoch, minibatch)
        self._clock.tell(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        self._masks.end_forward()
        self._optimizers.end_minibatch()
        if not self._optimizers.heard:  # nobody tells of the optimizer's steps: each mini-batch counts as one
            self._clock.stepped = True
        self._fire("on_minibatch_end")
        if self._windows.within_epochs:
            self._windows.close("on_minibatch_end", self.progress)

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
        self._order.end_epoch(epoch)
        # Before anything has happened: an event that fails half-way can't be told again.
        self._windows.must_have_metrics(metrics, self.progress._replace(epoch=epoch))
        self._clock.end_epoch(epoch)
        self._take(optimizer)
        self._order.missed_metrics(without_metrics(self._policies, metrics, self.progress))
        self._fire("on_epoch_end", metrics=metrics)
        if self._order.minibatch >= 0 or self._clock.stepped:
            self._order.missed_terms(self._ledger.terms_not_in_loss())
        self._order.end()
        self._ledger.sum_up_epoch(self.progress)
        self._optimizers.end_epoch(self.progress)
        self._next_epoch = self.progress.next_epoch
        self._windows.close("on_epoch_end", self.progress)

    def on_train_end(self) -> None:
        """Training has ended: every hook is off model and optimizers, and the weights are masked and free.

        What is quantized stays so: it is the result. An event of a later epoch goes on where training has ended.
        """
        if self._begun:
            self._begun = False
            self._order.end()
            try:
                self._fire("on_train_end")
            finally:
                self._detach()
            if seen := self._order.expected:  # an epoch that was left in the middle counts
                self._warn([*idle_policies(self.schedule, seen), *self._endings(seen)])
            self.trace.info("training ends", epochs=self._next_epoch)

    def close(self) -> None:
        """Take every hook off model and optimizers, for good; weights stay masked. Safe to call twice."""
        self._detach()
        self._begun = False
        self._order.close()

    def give_way(self) -> None:
        """Close it for one that was made later: weights are left as they are, since they may be new ones by now."""
        self._masks.abandon()
        self.close()

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
        self._order.must_be_open()
        length = number, self._steps_per_epoch
        if problems := [*idle_policies(self.schedule, *length), *exhausted(self.schedule, self._policies, *length)]:
            raise ScheduleError(problems)
        if number <= self._next_epoch and not self.attached:
            raise PrunekitError(f"epochs({number}) has no epoch left: {self._ended()}")
        if number <= self._next_epoch:
            self.trace.warning("no epoch left", epochs=number, done=self._next_epoch)
        self._warn(endings(self.schedule, self._policies, *length))
        self.on_train_begin()
        for epoch in range(self._next_epoch, number):
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
        if length is None and not hasattr(loader, "__len__"):
            raise PrunekitError("the loader has no length; say it: scheduler.minibatches(loader, length=…)")
        total = len(loader) if length is None else length  # type: ignore[arg-type]
        for minibatch, batch in enumerate(loader):
            self.on_minibatch_begin(self._clock.epoch, minibatch, total)
            yield batch
            self.on_minibatch_end(self._clock.epoch, minibatch, total)

    def total_loss(self, loss: Tensor) -> Tensor:
        """The loss plus every term that a live policy adds."""
        if self._order.closed:
            self._order.must_be_open()
        if not self._bus.hears("before_backward_pass"):
            return loss
        return self._with_terms(loss).overall_loss

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
        self._binding.look_up(self.progress)
        return self._masks.applied() if copy is None else masked_copy(copy, self._masks, self.model)

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
        return apply_masks(copy, self._masks, self.model)

    def sparsity(self, name: str | None = None) -> float:
        """The fraction of zeros in a parameter, or in all, counted from the tensors as a forward pass sees them."""
        self._binding.look_up(self.progress)
        parameters = must_have_values(Parameters.of(self.model).by_name, name)
        if name is not None:
            return self._masks.sparsity(name, self._quantizers.forward.read(parameters[name]))
        total = sum(parameter.numel() for parameter in parameters.values())
        zeros = sum(
            self._masks.sparsity(n, self._quantizers.forward.read(p)) * p.numel() for n, p in parameters.items()
        )
        return zeros / max(total, 1)

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
        self._binding.follow()
        taken = foreign_masks(source, self.model)
        self.on_train_begin()
        if taken.left_out:
            self.trace.warning("weights zero all over, not taken", parameters=taken.left_out)
        self._ledger.carry_out([taken.result], "take_masks", self._optimizers.known, self.progress)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks, component and policy state, learning rates and progress; `torch.load(weights_only=True)` reads it."""
        self._binding.look_up(self.progress)
        if self._begun:
            self._masks.hold()
        state = {
            "schedule": fingerprint(self.schedule),
            "plugins": dict(self._plugins),
            "next_epoch": self._next_epoch,
            # `weights_only` refuses named tuples.
            "progress": tuple(self.progress),
            "parameters": list(Parameters.of(self.model).by_name),
            "masks": self._masks.state_dict(),
            "components": {key: c.state_dict() for key, c in stateful(self._components).items()},
            "policies": {str(policy.index): policy.state_dict() for policy in self._policies},
            "learning_rates": learning_rates(self._optimizers.known.groups),
            "ledger": self._ledger.state_dict(),
        }
        if self._bus.hears("on_state_saved"):
            self._bus.fire("on_state_saved", state=state, progress=self.progress)
        return state

    @also_spelled(normalize_dataparallel_keys=None)  # names are the same whatever wraps the model
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Model and optimizer load their own.

        Raises:
            StateError: the state belongs to another schedule or another model; nothing was changed.
            PrunekitError: the scheduler is closed.
        """
        self._order.must_be_open()
        groups = self._optimizers.known.groups
        check_fit(state, self.schedule, self._components, len(groups))
        self._binding.look_up(self.progress)
        parameters = Parameters.of(self.model).by_name
        masks = fitting_masks(state, parameters)
        components = renamed(state["components"], state["parameters"], parameters)
        self._masks.load_state_dict(masks)
        for plugin, version in state["plugins"].items():
            if self._plugins.get(plugin) != version:
                self.trace.warning("plugin changed", plugin=plugin, saved=version, now=self._plugins.get(plugin))
        for key, saved in components.items():
            self._components[key].load_state_dict(saved)
        for policy in self._policies:
            policy.load_state_dict(state["policies"][str(policy.index)], self._masks)
        if groups and state["learning_rates"]:
            set_groups(groups, [{} if rate is None else {"lr": rate} for rate in state["learning_rates"]])
        self._ledger.load_state_dict(state["ledger"])
        self._ledger.rates.forget()
        self._clock.restore(state["progress"])
        self._next_epoch = state["next_epoch"]
        self._order.restore(self.progress, self._next_epoch)
        # Within an epoch, whose beginning will not be told again.
        if self._clock.minibatch >= 0:
            self._windows.open(self.progress, self._optimizers.known)
        else:
            self._quantizers.begin(self.progress)
            self._quantizers.open(self.progress)  # whoever evaluates now sees what the last forward pass saw
        self.trace.info("state restored", **self.progress.trace_keys(), next_epoch=self._next_epoch)
        self._bus.fire("on_state_restored", state=state, progress=self.progress)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressionScheduler:
        """A scheduler on copies of model, optimizer and given listeners, which goes on from here and writes no file.

        Raises:
            PrunekitError: it can't be copied, or not now; the message says what to do instead.
        """
        must_be_copyable(self.model, memo, self._quantizers, self._optimizers.in_minibatch and not self._clock.stepped)
        model, optimizers, trace = deepcopy((self.model, self._optimizers.known.given, self.trace), memo)
        # A module is one in a process, as a class is.
        listeners = [each if ismodule(each) else deepcopy(each, memo) for each in self._given_listeners]
        twin = type(self)(self.schedule, model, optimizers, trace=trace, plugins=self._given, listeners=listeners)
        twin.load_state_dict(self.state_dict())
        twin._optimizers.go_on_as(self._optimizers)
        twin._metrics = deepcopy(self._metrics)
        return twin

    def __reduce__(self) -> NoReturn:
        raise PrunekitError(
            "a scheduler can't be pickled, nor copied without its model: save its state_dict(), and load that into "
            "another one of the same schedule"
        )

    # Inside

    def _attach(self) -> None:
        """Take hold of model and optimizers, again where training had ended."""
        self._order.must_be_open()
        if not self.attached:
            self.attached = True
            take_hold(self)
            self._optimizers.listen()
            self._masks.take_up()

    def _detach(self) -> None:
        """Nothing of ours acts on model and optimizers any more."""
        if self.attached:
            self.attached = False
            self._optimizers.release()
            self._windows.end_training(self.progress)
            self._masks.release()

    def _endings(self, epochs: int) -> list[Problem]:
        """How a run that ends after this many epochs ends otherwise than windows promise."""
        steps = self.progress.step + self.progress.stepped
        # Where epochs have had different numbers of steps, what is said of the run's length must come from the user.
        each = self._steps_per_epoch or (steps // epochs if epochs and not steps % epochs else 0)
        return endings(self.schedule, self._policies, epochs, each)

    def _ended(self) -> str:
        done = self._next_epoch
        more = f"epochs(n) with n above {done} goes on, a new CompressionScheduler begins again"
        return f"training has ended after {done} epochs; {more}"

    def _warn(self, problems: Iterable[Problem]) -> None:
        """Say what is allowed and probably not meant, unless it has been said."""
        for problem in problems:
            if problem not in self._warnings:
                self._warnings.append(problem)
                self.trace.warning("schedule", problem=str(problem))

    def _fire(self, hook: str, **more: Any) -> None:
        """Fire an event, and carry out what its implementations want done once all of them have returned."""
        if self._bus.hears(hook):
            self._ledger.carry_out(self._results(hook, **more), hook, self._optimizers.known, self.progress)

    def _results(self, hook: str, **more: Any) -> list[Result]:
        return self._bus.fire(
            hook,
            **{
                "model": self.model,
                "masks": self._masks,
                "optimizer": self.optimizer,
                "progress": self.progress,
                **more,
            },
        )

    def _with_terms(self, loss: Tensor) -> PolicyLoss:
        """The loss plus every term that a live policy adds, and the terms."""
        if not self._bus.hears("before_backward_pass"):
            return PolicyLoss(loss, [])
        return self._ledger.add_terms(loss, self._results("before_backward_pass", loss=loss))

    def _take(self, optimizer: Optimizer | None) -> None:
        """What every event begins with: the optimizer is known, and so is that training has begun."""
        if not self._begun:
            self._order.must_be_open()
        if optimizer is not None:
            must_be_optimizer(optimizer)
            self._optimizers.give(sequence_of(optimizer))
        if self._ledger.rates.watching:
            self._ledger.rates.check(self._optimizers.known.given, self._clock)
        if not self._begun:
            self.on_train_begin()

    def _tell_gradients(self, optimizer: Optimizer | None) -> None:
        if self._bus.hears("before_parameter_optimization"):
            self._fire("before_parameter_optimization", **({} if optimizer is None else {"optimizer": optimizer}))

    def _count_step(self) -> None:
        self._clock.stepped = True
