"""CompressionScheduler: what a training loop calls.

Long on purpose: whoever writes a loop reads all calls on one page, with what each promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from prunekit.components.origin import MaskChange, Result
from prunekit.engine.building.build import build
from prunekit.engine.bus import EventBus
from prunekit.engine.conflicts import exhausted, idle_policies
from prunekit.engine.ledger import Ledger
from prunekit.engine.optimizers import Optimizers
from prunekit.engine.policies import Policy
from prunekit.engine.quantizers import Quantizers
from prunekit.engine.stage import Stage, stage_of
from prunekit.engine.state import check_fit, fingerprint, fitting_masks, renamed, stateful
from prunekit.engine.windows import Windows
from prunekit.errors import PrunekitError, ScheduleError, dotted
from prunekit.model.masks import Masks
from prunekit.model.optimizer import learning_rates, set_groups
from prunekit.model.parameters import Parameters
from prunekit.plugins.listeners import given_listeners
from prunekit.plugins.loading import Plugins, core_entry, load_plugins
from prunekit.plugins.lock import Lock
from prunekit.progress import Clock, Progress
from prunekit.pruning.named_kinds import NAMED_KINDS
from prunekit.quantization.forward import QuantizedForward
from prunekit.schedule.schedule import Schedule, parse
from prunekit.schedule.yaml_source import Source
from prunekit.trace import Trace

Batch = TypeVar("Batch")


class CompressionScheduler:
    """Carries out a schedule while a network trains.

    Either the loop calls the events itself (`on_epoch_begin` … `on_epoch_end`), or it runs inside
    `for epoch in scheduler.epochs(n)` and `for batch in scheduler.minibatches(loader)` and adds `total_loss(loss)`.
    Masks are enforced after every optimizer step by a hook on the optimizer; the loop needs no line for it.

    Args:
        schedule: what to do and when.
        model: the network, as the loop trains it (wrapped or not).
        optimizer: needed by schedules with an LR scheduler, and for masks to be enforced right after its steps.
        epochs: the length of the run, if known: a policy that never acts within it is an error.
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
        optimizer: Optimizer | None = None,
        *,
        epochs: int | None = None,
        trace: Trace | None = None,
        plugins: Plugins | None = None,
        listeners: Sequence[object] = (),
    ) -> None:
        self.schedule, self.model, self.optimizer = schedule, model, optimizer
        self.trace = trace or Trace()
        plugins = plugins or load_plugins()
        given, unusable = given_listeners(listeners, plugins.listeners)
        plugins = plugins.plus(given)
        built = build(schedule, plugins.registry, model, optimizer, epochs)
        if problems := [*schedule.problems(), *built.problems, *unusable, *plugins.problems]:
            raise ScheduleError(problems)
        for unused in plugins.broken:
            self.trace.warning("plugin broken", plugin=str(unused.offer), error=unused.reason)
        for unused in plugins.switched_off:
            self.trace.info("plugin left out", plugin=str(unused.offer), reason=unused.reason)
        for warning in [*schedule.warnings(), *built.warnings]:
            self.trace.warning("schedule", problem=str(warning))
        self._policies, self._components = built.policies, built.components
        self._used, self._listeners = built.used, plugins.listeners
        self._plugins = {used.found.distribution: used.found.version for used in built.used}
        for policy in self._policies:
            policy.warn = self.trace.warning
        self._masks = Masks(Parameters.of(model).by_name)
        self._bus = EventBus(self.trace, lambda: self.progress, plugins.listeners)
        self._ledger = Ledger(self._masks, self._bus, self.trace)
        self._quantizers = Quantizers(self._policies, model, built.catalog, self._ledger)
        self._clock, self._next_epoch = Clock(), 0
        self._begun = self._in_minibatch = self._optimization_begun = False
        self._metrics: Mapping[str, float] | None = None
        self._optimizers = Optimizers(self._before_step, self._after_step, self._policies, self._quantizers)
        if optimizer is not None:
            self._optimizers.add(optimizer)
        self._windows = Windows(self._policies, model, self._ledger, self._quantizers)

    @classmethod
    def from_yaml(
        cls, path: str | Path, model: Module, optimizer: Optimizer | None = None, **options: Any
    ) -> CompressionScheduler:
        """A scheduler from a YAML file; options as in the constructor.

        Raises:
            ScheduleError: every problem in the file and in how it fits the model, with file, line and column.
        """
        return cls(parse(Source.from_file(path)), model, optimizer, **options)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], model: Module, optimizer: Optimizer | None = None, **options: Any
    ) -> CompressionScheduler:
        """A scheduler from a dict of the YAML's shape, which is not changed; options as in the constructor."""
        return cls(parse(Source.from_data(data)), model, optimizer, **options)

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> boolean mask (True keeps), for the parameters that have one."""
        return self._masks

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

    def lock(self) -> Lock:
        """The plugins of this run as they are now: what the schedule names, the listeners, and prunekit itself."""
        used = dict.fromkeys(each.entry for each in self._used)
        return Lock((core_entry(), *used, *(listener.entry for listener in self._listeners)))

    # The explicit way: one call per event

    def on_train_begin(self) -> None:
        """Training is about to begin, or to go on; the first event of a run calls it where the loop does not."""
        if not self._begun:
            self._begun = True
            named = {dotted(u.place): f"{u.found.distribution}:{u.name}" for u in self._used if u.kind in NAMED_KINDS}
            more = {"named": named} if named else {}
            self.trace.info("training begins", plugins=self._plugins, policies=len(self._policies), **more)
            with self._bus.listeners_only():  # components are live already where a run goes on within an epoch
                self._fire("on_train_begin", run_dir=self.trace.run_dir)

    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None) -> None:
        """An epoch is about to begin: pruners choose their masks.

        Raises:
            Exception: what a plugin raised, with a note that names it; masks and model are as before.
        """
        self._clock.begin_epoch(epoch)
        self._take(optimizer)
        # First, so that whoever becomes live hears this very event.
        self._windows.open(self.progress, self.optimizer)
        self._fire("on_epoch_begin")

    def on_minibatch_begin(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """A mini-batch is about to go forward: masks are in the weights when this returns."""
        self._clock.begin_minibatch(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        self._in_minibatch, self._optimization_begun = True, False
        self._masks.end_forward()  # of a mini-batch that the loop left in the middle
        if self._windows.open_within_epochs:
            self._windows.open(self.progress, self.optimizer)
        self._fire("on_minibatch_begin")
        # Behind the event, which may have set the masks that this forward pass is to see.
        self._masks.begin_forward()

    def before_backward_pass(
        self,
        epoch: int,
        minibatch: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Optimizer | None = None,
    ) -> Tensor:
        """The loss plus the terms of regularizers and the like: call `backward()` on what this returns."""
        self._clock.tell(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        return self.total_loss(loss)

    def before_parameter_optimization(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Gradients are known. The optimizer's step calls it too; only the first call in a mini-batch counts."""
        self._take(optimizer)
        if not self._optimization_begun:
            self._optimization_begun = True
            self._masks.end_forward()
            self._fire("before_parameter_optimization")

    def on_minibatch_end(
        self, epoch: int, minibatch: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """The optimizer has stepped: masks are enforced, if its hook has not done so, and regularizers drop weights."""
        self._clock.tell(epoch, minibatch, minibatches_per_epoch)
        self._take(optimizer)
        self._in_minibatch = False
        self._masks.end_forward()
        if not self._clock.stepped:
            self._masks.enforce()
        if not self._optimizers.known:  # nobody tells of the optimizer's steps: each mini-batch counts as one
            self._clock.stepped = True
        self._fire("on_minibatch_end")
        if self._windows.close_within_epochs:
            self._windows.close("on_minibatch_end", self.progress)

    def on_epoch_end(
        self, epoch: int, metrics: Mapping[str, float] | None = None, optimizer: Optimizer | None = None
    ) -> None:
        """The epoch has ended: the LR of the next one is set.

        `metrics`: `min` is one to minimise (validation loss), `max` one to maximise (accuracy).
        """
        self._clock.end_epoch(epoch)
        self._take(optimizer)
        self._fire("on_epoch_end", metrics=metrics)
        self._ledger.sum_up_epoch(self.progress)
        self._next_epoch = self.progress.next_epoch
        self._windows.close("on_epoch_end", self.progress)

    def on_train_end(self) -> None:
        """Training has ended; nothing is live on the bus afterwards."""
        if self._begun:
            self._begun = False
            self._fire("on_train_end")
            self._windows.end_training()
            self.trace.info("training ends", epochs=self._next_epoch)

    # The attached way: the loop runs inside these

    def epochs(self, number: int, after_epoch: Callable[[int], None] | None = None) -> Iterator[int]:
        """The epochs of a run of `number`, from where a restored state stands; events are fired around each.

        Args:
            number: how many there are in all.
            after_epoch: called with each epoch once it has ended, where a checkpoint belongs.

        Raises:
            ScheduleError: a policy would never act within the run.
        """
        problems = [*idle_policies(self.schedule, number), *exhausted(self.schedule, self._policies, number)]
        if problems:
            raise ScheduleError(problems)
        self.on_train_begin()
        for epoch in range(self._next_epoch, number):
            self._metrics = None
            self.on_epoch_begin(epoch)
            yield epoch
            self.on_epoch_end(epoch, self._metrics)
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
        if not self._bus.hears("before_backward_pass"):
            return loss
        return self._ledger.add_terms(loss, self._results("before_backward_pass", loss=loss))

    def report(self, **metrics: float) -> None:
        """Metrics of this epoch for what looks at them when it ends: `report(min=validation_loss, max=accuracy)`."""
        self._metrics = {**(self._metrics or {}), **metrics}

    def masked(self) -> AbstractContextManager[None]:
        """For evaluation and checkpoints: every mask applied, those that only the forward pass sees too."""
        return self._masks.applied()

    def sparsity(self, name: str | None = None) -> float:
        """The fraction of zeros in a parameter, or in all, counted from the tensors as a forward pass sees them."""
        parameters = Parameters.of(self.model).by_name
        if name is not None:
            return self._masks.sparsity(name, self._quantizers.forward.read(parameters[name]))
        total = sum(parameter.numel() for parameter in parameters.values())
        zeros = sum(
            self._masks.sparsity(n, self._quantizers.forward.read(p)) * p.numel() for n, p in parameters.items()
        )
        return zeros / max(total, 1)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Masks, component and policy state, learning rates and progress; `torch.load(weights_only=True)` reads it."""
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
            "learning_rates": learning_rates(self.optimizer),
            "ledger": self._ledger.state_dict(),
        }
        if self._bus.hears("on_state_saved"):
            self._bus.fire("on_state_saved", state=state, progress=self.progress)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`. Model and optimizer load their own.

        Raises:
            StateError: the state belongs to another schedule or another model; nothing was changed.
        """
        check_fit(state, self.schedule, self._components, self.optimizer)
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
        if self.optimizer is not None and state["learning_rates"]:
            set_groups(self.optimizer, [{"lr": rate} for rate in state["learning_rates"]])
        self._ledger.load_state_dict(state["ledger"])
        self._clock, self._next_epoch = Clock(*state["progress"]), state["next_epoch"]
        # Within an epoch, whose beginning will not be told again.
        if self._clock.minibatch >= 0:
            self._windows.open(self.progress, self.optimizer)
        else:
            self._quantizers.open(self.progress)  # whoever evaluates now sees what the last forward pass saw
        self.trace.info("state restored", **self.progress.trace_keys(), next_epoch=self._next_epoch)
        self._bus.fire("on_state_restored", state=state, progress=self.progress)

    # Inside

    def _fire(self, hook: str, **more: Any) -> None:
        """Fire an event, and carry out what its implementations want done once all of them have returned."""
        if self._bus.hears(hook):
            self._ledger.carry_out(self._results(hook, **more), hook, self.optimizer, self.progress)

    def _results(self, hook: str, **more: Any) -> list[Result]:
        return self._bus.fire(
            hook, model=self.model, masks=self._masks, optimizer=self.optimizer, progress=self.progress, **more
        )

    def _take(self, optimizer: Optimizer | None) -> None:
        """What every event begins with: the optimizer is known, and so is that training has begun."""
        if optimizer is not None and optimizer is not self.optimizer:
            self._optimizers.add(optimizer)
            self.optimizer = self.optimizer or optimizer
        if not self._begun:
            self.on_train_begin()

    def _before_step(self) -> None:
        if self._in_minibatch and not self._optimization_begun:
            self.before_parameter_optimization(*self.progress[:3])

    def _after_step(self) -> None:
        self._masks.enforce()
        self._clock.stepped = True
