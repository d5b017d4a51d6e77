"""A schedule that is being carried out: its parts around one model, and how they are taken off it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from prunekit.components.loss_term import PolicyLoss
from prunekit.components.origin import Result
from prunekit.engine.binding import Binding
from prunekit.engine.building.build import Built
from prunekit.engine.bus import EventBus
from prunekit.engine.conflicts import endings, exhausted, idle_policies, undecided
from prunekit.engine.holders import take_hold
from prunekit.engine.ledger import Ledger
from prunekit.engine.order import Order
from prunekit.engine.quantizers import Quantizers
from prunekit.engine.state import check_fit, fingerprint, fitting_masks, renamed, stateful
from prunekit.engine.stepping.optimizers import Optimizers
from prunekit.engine.windows import Windows
from prunekit.errors import Problem, PrunekitError, ScheduleError, did_you_mean
from prunekit.model.masks import Masks
from prunekit.model.optimizer import learning_rates, set_groups
from prunekit.model.parameters import Parameters, must_have_values
from prunekit.plugins.listeners import Listener
from prunekit.progress import Clock, Progress, StepsPerEpoch
from prunekit.quantization.forward import QuantizedForward
from prunekit.schedule.schedule import Schedule
from prunekit.trace import Trace


class Execution:
    """What events go through. Each part knows its own matter and none knows the loop.

    Args:
        schedule: what to do and when.
        model: the network.
        optimizers: those given.
        built: what came of the schedule; there is nothing wrong with it.
        listeners: on the bus for good.
        trace: where lines go.
        steps_per_epoch: how many steps an epoch has; 0 while unknown.

    Attributes:
        next_epoch: how many epochs are complete.
        length: how many there will be in all; 0 while unknown.
        attached: whether it acts on model and optimizers.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: Module,
        optimizers: Sequence[Optimizer],
        built: Built,
        listeners: Sequence[Listener],
        trace: Trace,
        steps_per_epoch: int,
    ) -> None:
        self.schedule, self.model, self.trace, self.steps_per_epoch = schedule, model, trace, steps_per_epoch
        self.policies, self.components = built.policies, built.components
        self.plugins = {used.found.distribution: used.found.version for used in built.used}
        for policy in self.policies:
            policy.warn = trace.warning
        self.clock, self.next_epoch, self.order = Clock(), 0, Order(trace.warning)
        self.masks = Masks(Parameters.of(model).by_name)
        clock = self.clock  # not `self`: what is quantized stays in the model, and must not keep all of this alive
        self.bus = EventBus(trace, lambda: clock.progress, listeners)
        self.ledger = Ledger(self.masks, self.bus, trace)
        self.quantizers = Quantizers(self.policies, model, built.catalog, self.ledger)
        parts = self.masks, self.policies, self.quantizers, trace
        self.optimizers = Optimizers(*parts, on_gradients=self._gradients_known, on_step=self._stepped)
        self.optimizers.give(optimizers, bases=False)
        clashes = undecided(schedule, self.policies)
        self.windows = Windows(self.policies, model, self.ledger, self.quantizers, clashes)
        self.binding = Binding(model, self.policies, self.ledger, self.quantizers)
        self._warned: list[Problem] = []
        self.length = 0
        self.attached = True
        take_hold(self)

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        return self.clock.progress

    @property
    def optimizer(self) -> Optimizer | None:
        """The first that was given, or else found."""
        return self.optimizers.known.first

    # Events

    def fire(self, hook: str, **more: Any) -> None:
        """Fire an event, and carry out what its implementations want done once all of them have returned."""
        if hook in self.bus.callers:  # not `hears()`: each mini-batch asks several times, mostly for nothing
            self.ledger.carry_out(self._results(hook, **more), hook, self.optimizers.known, self.progress)

    def with_terms(self, loss: Tensor) -> PolicyLoss:
        """The loss plus every term that a live policy adds, and the terms."""
        if "before_backward_pass" not in self.bus.callers:
            return PolicyLoss(loss, [])
        return self.ledger.add_terms(loss, self._results("before_backward_pass", loss=loss))

    def _results(self, hook: str, **more: Any) -> list[Result]:
        network = {"model": self.model, "masks": self.masks, "optimizer": self.optimizer}
        return self.bus.fire(hook, **{**network, "progress": self.progress, **more})

    def _gradients_known(self, optimizer: Optimizer | None) -> None:
        if self.bus.hears("before_parameter_optimization"):
            self.fire("before_parameter_optimization", **({} if optimizer is None else {"optimizer": optimizer}))

    def _stepped(self) -> None:
        self.clock.stepped = True

    def tell_moment(self, epoch: int, minibatch: int, minibatches_per_epoch: int) -> None:
        """The loop speaks of another mini-batch than the one that has begun."""
        self.order.within_minibatch(epoch, minibatch)
        self.clock.tell(epoch, minibatch, minibatches_per_epoch)

    def open_windows(self) -> None:
        """Who acts at this moment is on the bus."""
        self.windows.open(self.progress, self.optimizers.known)

    # What is allowed and probably not meant

    def warn(self, problems: Iterable[Problem]) -> None:
        """Say it, unless it has been said."""
        for problem in problems:
            if problem not in self._warned:
                self._warned.append(problem)
                self.trace.warning("schedule", problem=str(problem))

    def warn_of_end(self) -> None:
        """Training has ended: what has not happened, or otherwise than the schedule's windows have it."""
        if seen := self.order.expected:  # an epoch that was left in the middle counts
            self.warn([*idle_policies(self.schedule, seen, self._steps_per_epoch), *self.endings()])

    def endings(self) -> list[Problem]:
        """How a run that ends now ends otherwise than windows promise."""
        return endings(self.schedule, self.policies, self.order.expected, self._steps_per_epoch)

    @property
    def _steps_per_epoch(self) -> StepsPerEpoch:
        """As many as there were so far, whatever has been said of them."""
        epochs, steps = self.order.expected, self.clock.step + self.clock.stepped
        return Fraction(steps, epochs) if steps and epochs else self.steps_per_epoch

    def end_epoch(self) -> None:
        """One more is complete: after the first it is known how many steps a run of so many epochs will have."""
        self.next_epoch = self.clock.epoch + 1
        if self.next_epoch == 1 and self.length and not self.steps_per_epoch and self.windows.within_epochs:
            length = self.length, self._steps_per_epoch
            self.warn([*idle_policies(self.schedule, *length), *endings(self.schedule, self.policies, *length)])

    # Beginning and end

    def attach(self) -> None:
        """Take hold of model and optimizers, again where training had ended."""
        self.order.must_be_open()
        if not self.attached:
            self.attached = True
            take_hold(self)
            self.optimizers.listen()
            self.masks.take_up()

    def detach(self) -> None:
        """Nothing of ours acts on model and optimizers any more."""
        if self.attached:
            self.attached = False
            self.optimizers.release()
            self.windows.end_training()
            self.masks.release()

    def close(self) -> None:
        """For good."""
        self.detach()
        self.order.close()

    def give_way(self) -> None:
        """Close it for one that was made later: weights are left as they are, since they may be new ones by now."""
        self.masks.abandon()
        self.close()

    @property
    def ended(self) -> str:
        """That training has ended, and how to go on, in words."""
        more = f"epochs(n) with n above {self.next_epoch} goes on, a new CompressionScheduler begins again"
        return f"training has ended after {self.next_epoch} epochs; {more}"

    def must_last(self, epochs: int) -> None:
        """Whether there can be a run of this many epochs in all.

        Raises:
            ScheduleError: a policy would never act within it.
            PrunekitError: it has ended, and was as long as that; or all is closed.
        """
        self.order.must_be_open()
        self.length, length = epochs, (epochs, self.steps_per_epoch)
        if problems := [*idle_policies(self.schedule, *length), *exhausted(self.schedule, self.policies, *length)]:
            raise ScheduleError(problems)
        if epochs <= self.next_epoch and not self.attached:
            raise PrunekitError(f"epochs({epochs}) has no epoch left: {self.ended}")
        self.warn(endings(self.schedule, self.policies, *length))

    # What weights are now

    @property
    def quantized(self) -> QuantizedForward:
        """What the forward pass reads in place of weights."""
        return self.quantizers.forward

    def sparsity(self, name: str | None = None) -> float:
        """The fraction of zeros in a parameter, or in all, as a forward pass sees them.

        Raises:
            PrunekitError: the model has no such parameter.
        """
        self.binding.look_up(self.progress)
        found = Parameters.of(self.model)
        name = None if name is None else found.aliases.get(name, name)  # a tied parameter has several
        if name is not None and name not in found.by_name:
            raise PrunekitError(
                f"the model has no parameter {name!r}{did_you_mean(name, [*found.by_name, *found.aliases])}"
            )
        parameters = must_have_values(found.by_name, name)
        if name is not None:
            return self._sparsity(name, parameters[name])
        total = sum(parameter.numel() for parameter in parameters.values())
        return sum(self._sparsity(n, p) * p.numel() for n, p in parameters.items()) / max(total, 1)

    def _sparsity(self, name: str, parameter: Parameter) -> float:
        return self.masks.sparsity(name, self.quantized.read(parameter))

    # State

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "schedule": fingerprint(self.schedule),
            "plugins": dict(self.plugins),
            "next_epoch": self.next_epoch,
            "progress": tuple(self.progress),  # `weights_only` refuses named tuples
            "parameters": list(Parameters.of(self.model).by_name),
            "masks": self.masks.state_dict(),
            "components": {key: c.state_dict() for key, c in stateful(self.components).items()},
            "policies": {str(policy.index): policy.state_dict() for policy in self.policies},
            "learning_rates": learning_rates(self.optimizers.known.groups),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: it does not fit; nothing was changed.
        """
        groups = self.optimizers.known.groups
        check_fit(state, self.schedule, self.components, len(groups))
        self.binding.look_up(self.progress)
        parameters = Parameters.of(self.model).by_name
        masks = fitting_masks(state, parameters)
        components = renamed(state["components"], state["parameters"], parameters)
        self.masks.load_state_dict(masks)
        self._compare_plugins(state["plugins"])
        for key, saved in components.items():
            self.components[key].load_state_dict(saved)
        for policy in self.policies:
            policy.load_state_dict(state["policies"][str(policy.index)], self.masks)
        if groups and state["learning_rates"]:
            set_groups(groups, [{} if rate is None else {"lr": rate} for rate in state["learning_rates"]])
        self.ledger.load_state_dict(state["ledger"])
        self._go_on_from(state)

    def _compare_plugins(self, saved: Mapping[str, str]) -> None:
        for plugin, version in saved.items():
            if self.plugins.get(plugin) != version:
                self.trace.warning("plugin changed", plugin=plugin, saved=version, now=self.plugins.get(plugin))

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        self.clock.restore(state["progress"])
        self.next_epoch = state["next_epoch"]
        self.order.restore(self.progress, self.next_epoch)
        # Within an epoch, whose beginning will not be told again.
        if self.clock.minibatch >= 0:
            self.open_windows()
        else:
            self.quantizers.begin(self.progress)
            self.quantizers.open(self.progress)  # whoever evaluates now sees what the last forward pass saw
