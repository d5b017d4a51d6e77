"""The optimizers of a run: hooks around their steps, and the parameters that quantizers want trained."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from prunekit.components.pruner import Observing
from prunekit.engine.policies import LRPolicy, Policy, PruningPolicy
from prunekit.engine.quantizers import Quantizers
from prunekit.engine.stepping.dropped import Dropped
from prunekit.engine.stepping.hooks import hears_steps_of, in_backward, is_skipped, listen, stop_listening
from prunekit.engine.stepping.scale_probe import ScaleProbe
from prunekit.engine.stepping.unreached import Unreached
from prunekit.errors import PrunekitError
from prunekit.model.known_optimizers import KnownOptimizers, inside
from prunekit.model.masks import Masks
from prunekit.model.optimizer import WITHOUT_RATE, groups_of
from prunekit.progress import Progress
from prunekit.trace import Trace

Names = frozenset[str]


class Optimizers:
    """The optimizers of a run: those given, and all others that step parameters of the model, whenever they are made.

    Args:
        masks: in force after each step, for the parameters that the optimizer holds.
        policies: of the whole schedule.
        quantizers: what they train is given to the first optimizer.
        trace: where is said what learning rates and masks can't reach.
        on_gradients: gradients are known, and this optimizer is about to step; None is whichever.
        on_step: an optimizer has stepped.

    Attributes:
        known: the optimizers.
        heard: whether anybody tells of steps: where nobody does, each mini-batch counts as one.
    """

    def __init__(
        self,
        masks: Masks,
        policies: Sequence[Policy],
        quantizers: Quantizers,
        trace: Trace,
        on_gradients: Callable[[Optimizer | None], None],
        on_step: Callable[[], None],
    ) -> None:
        self._masks, self._policies, self._quantizers, self._trace = masks, policies, quantizers, trace
        self._on_gradients, self._on_step = on_gradients, on_step
        self.known = KnownOptimizers(masks)
        self._quantizers_train = False
        self._replaced: list[weakref.ref[Optimizer]] = []
        self._in_minibatch = self._evaluating = self._writes_unheard = self.heard = self._said_unobserved = False
        self._told: list[Names] | None = []  # whose gradients are told of in this mini-batch; None of all
        self._stepped: dict[Names, None] = {}
        self._scale = ScaleProbe()
        # Found once: each mini-batch asks, and a protocol is slow to compare with.
        self._observers = [p for p in policies if isinstance(p, PruningPolicy) and isinstance(p.component, Observing)]
        self._ever_stepped, self._unreached = False, Unreached(self.known, masks, policies, trace)
        for policy in policies:
            if isinstance(policy, LRPolicy):
                policy.optimizers = self.known
        self.listen()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over; what is weak is of this one alone."""
        return {**vars(self), "_replaced": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.listen()

    # Which there are

    def give(self, optimizers: Sequence[Optimizer], *, bases: bool = True) -> None:
        """Whoever writes the loop names these: learning rates move in them too.

        `bases`: LR schedules begin with the rates that they hold (they have done so where they were made for them).
        """
        new = [each for each in optimizers if not self.known.is_given(each)]
        if not new:
            return
        before = self.known.groups if bases else groups_of(new)
        for optimizer in new:
            self._put(optimizer, among=new)
        self._train_quantizers(self.known.given[0])
        self._follow(before, bases=bases)

    def listen(self) -> None:
        """From now on steps are heard of."""
        listen(self, Dropped(self._trace, self._masks.in_force))

    def end_epoch(self, progress: Progress) -> None:
        """An epoch has ended: what these optimizers do not reach is said."""
        if self._ever_stepped:
            self._unreached.tell(progress)

    def release(self) -> None:
        """Take all hooks off: steps are not heard of any more."""
        self._in_minibatch = False
        stop_listening(self)

    def _put(self, optimizer: Optimizer, among: Sequence[Optimizer]) -> None:
        """Among those given: in the place of one whose parameters it has taken over, else at the end."""
        wrapped = inside(optimizer)
        hearable = [each for each in (optimizer, *wrapped) if hears_steps_of(each)]
        self.heard |= bool(hearable)
        self._writes_unheard |= not hears_steps_of(optimizer)
        if not hearable:
            name = type(optimizer).__name__
            self._trace.warning("optimizer's steps not heard", optimizer=name, consequence=_UNHEARD)
        given, came_back = self.known.given, any(ref() is optimizer for ref in self._replaced)
        place = next((i for i, old in enumerate(given) if self._takes_over(optimizer, old, among)), None)
        self.known.forget(optimizer)
        if place is None or came_back:  # what comes back is used in turn with another
            given.append(optimizer)
            return
        self._replaced.append(weakref.ref(given[place]))
        self._trace.info("optimizer replaced", before=type(given[place]).__name__, after=type(optimizer).__name__)
        given[place] = optimizer

    def _takes_over(self, new: Optimizer, old: Optimizer, among: Sequence[Optimizer]) -> bool:
        """Whether an optimizer that came later holds all that another one does, and neither wraps the other."""
        if any(each is old for each in among) or self._related(new, old):
            return False
        names = self.known.names(old)
        return bool(names) and names <= self.known.names(new)

    @staticmethod
    def _related(one: Optimizer, other: Optimizer) -> bool:
        shared = {id(group) for group in one.param_groups} & {id(group) for group in other.param_groups}
        around = any(each is other for each in inside(one)) or any(each is one for each in inside(other))
        return bool(shared) or around

    def _find(self, optimizer: Optimizer) -> None:
        """One steps that may be new."""
        if not self.known.find(optimizer):
            return
        self.heard = True
        if any(ref() is optimizer for ref in self._replaced):  # it is used in turn with the one in its place
            self.give([optimizer])
            return
        self._train_quantizers(optimizer)
        old = next((each for each in self.known.given if self._takes_over(optimizer, each, ())), None)
        # With learning rates to move the old one stays: these go to nobody who was not given.
        if old is not None and not any(isinstance(policy, LRPolicy) for policy in self._policies):
            self._put(optimizer, among=())

    def _train_quantizers(self, optimizer: Optimizer) -> None:
        """Give the first optimizer of the run the parameters that quantizers train."""
        if self._quantizers_train:
            return
        self._quantizers_train = True
        inner = next((each for each in (optimizer, *inside(optimizer)) if hears_steps_of(each)), optimizer)
        for group in self._quantizers.groups(inner):
            inner.add_param_group(group)

    def _follow(self, before: Sequence[Any], *, bases: bool) -> None:
        """Let LR schedules know the groups that there are now; those that were there before keep their base."""
        places = {id(group): place for place, group in enumerate(before)}
        groups = self.known.groups
        former = [places.get(id(group)) for group in groups]
        schedules = [policy for policy in self._policies if isinstance(policy, LRPolicy)]
        if not schedules or (not bases and len(groups) == len(before)):
            return
        if any(group.get("lr") is None for group in groups):
            raise PrunekitError(f"{schedules[0].origin} sets learning rates, and {WITHOUT_RATE}")
        for component in {id(policy.component): policy.component for policy in schedules}.values():
            component.rebase(groups, former)

    # Around a mini-batch

    @property
    def in_minibatch(self) -> bool:
        """Whether a mini-batch has begun and not ended."""
        return self._in_minibatch

    def go_on_as(self, other: Optimizers) -> None:
        """Within a mini-batch: from where those of another run stand."""
        self._in_minibatch, self._told, self._stepped = other._in_minibatch, other._told, dict(other._stepped)

    def begin_minibatch(self) -> None:
        """A mini-batch begins: nobody has stepped in it."""
        if self._in_minibatch:
            self._masks.end_forward()  # of one that the loop left in the middle
        self._in_minibatch, self._told = True, []
        if self._stepped:
            self._stepped = {}

    def tell_gradients(self, optimizer: Optimizer | None) -> None:
        """The loop says that gradients are known, of all parameters or of those that one of several optimizers holds.

        Only the first time in a mini-batch counts.
        """
        if optimizer is not None and self._in_minibatch and self._holds_a_part(optimizer):
            self._masks.end_forward(self.known.names(optimizer))
            self._gradients_known(optimizer)
        elif self._told is not None and not self._told:
            self._told = None
            self._masks.end_forward()
            if self._observers:
                self._scale.look(p for policy in self._observers for p in policy.parameters.values())
                self._ask(None)
            else:
                self._on_gradients(None)

    def end_minibatch(self) -> None:
        """Masks are in force in all parameters afterwards."""
        self._in_minibatch = False
        if not self._masks.entries:
            return
        self._masks.end_forward()
        if self._writes_unheard or not self._stepped:
            self._masks.enforce()  # somebody may have written after the last step that was heard
        elif max(map(len, self._stepped)) < len(self._masks.parameters):
            self._masks.enforce_others(frozenset().union(*self._stepped))

    # Around a step

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """An optimizer of this process is about to step; its arguments, with the closure wrapped."""
        names = self.known.names(optimizer)
        if not names and not self.known.is_given(optimizer):
            return args, kwargs
        self._find(optimizer)
        self._masks.end_forward(names)
        if "closure" in kwargs and kwargs["closure"] is not None:
            return args, {**kwargs, "closure": self._wrapped(kwargs["closure"], optimizer)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._wrapped(args[1], optimizer), *args[2:]), kwargs
        self._gradients_known(optimizer)
        return args, kwargs

    def after_step(self, optimizer: Optimizer) -> None:
        """It has stepped: masks are enforced in what it holds."""
        names = self.known.names(optimizer)
        if (not names and not self.known.is_given(optimizer)) or is_skipped(optimizer):
            return
        self._gradients_known(optimizer)  # of an optimizer that never called its closure
        self._masks.enforce(names)
        self._stepped[names] = None
        self._ever_stepped = True
        self._on_step()
        if self._in_minibatch and self._masks.hides and self._holds_a_part(optimizer):
            self._masks.begin_forward_again(names)  # a generator is trained through the discriminator that has stepped

    def _wrapped(self, closure: Callable[..., Any], optimizer: Optimizer) -> Callable[..., Any]:
        if isinstance(closure, _MaskedClosure) and closure.owner is self:
            return closure  # of a wrapper around this optimizer
        return _MaskedClosure(self, closure, optimizer)

    def evaluate(self, closure: Callable[..., Any], optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Forward and backward inside a step, on masked weights as in the plain loop; then gradients are known."""
        if self._evaluating:
            return closure(*args, **kwargs)
        self._evaluating = True
        try:
            # SAM and line searches have written to the weights since they were last masked.
            self._masks.enforce(self.known.names(optimizer))
            if self._in_minibatch:
                self._masks.end_forward()  # of what other optimizers hold
                self._masks.begin_forward()
            result = closure(*args, **kwargs)
        finally:
            self._evaluating = False
            self._masks.end_forward()
        self._gradients_known(optimizer)
        return result

    def _gradients_known(self, optimizer: Optimizer) -> None:
        """Tell of the gradients of what an optimizer holds, once in a mini-batch."""
        if self._told is None and self._scale.was_scaled():
            self._trace.warning("gradients observed before unscale_", consequence=_SCALED)
        if not self._in_minibatch or self._told is None or is_skipped(optimizer):
            return
        names = self.known.names(optimizer)
        if any(names is told or names <= told for told in self._told):
            return
        if in_backward():
            self._say_unobserved(optimizer)
            return
        first = not self._told
        self._told.append(names)
        if first or self._observers:
            self._ask(optimizer)

    def _ask(self, optimizer: Optimizer | None) -> None:
        """Let the event be fired, with what observers must know of the optimizer that is about to step."""
        if self._observers:
            part = optimizer is not None and self._holds_a_part(optimizer)
            for policy in self._observers:
                policy.stepping = self.known.names(optimizer) if optimizer is not None and part else None
                policy.gradients.scale = getattr(optimizer, "grad_scale", None)
        self._on_gradients(optimizer)

    def _holds_a_part(self, optimizer: Optimizer) -> bool:
        """Whether others hold what it does not."""
        names = self.known.names(optimizer)
        return any(not self.known.names(each) <= names for each in self.known)

    def _say_unobserved(self, optimizer: Optimizer) -> None:
        """Once: an optimizer that steps within the backward pass sees the gradients alone."""
        observers = [str(policy.origin) for policy in self._observers]
        if observers and not self._said_unobserved:
            self._said_unobserved = True
            self._trace.warning("gradients not observed", optimizer=type(optimizer).__name__, policies=observers)


_SCALED = "observers took the scale for part of them; leave before_parameter_optimization out, or unscale first"
_UNHEARD = "each mini-batch counts as a step, and masks are enforced when it ends"


@dataclass(frozen=True)
class _MaskedClosure:
    """What an optimizer gets in place of the loop's closure."""

    owner: Optimizers
    closure: Callable[..., Any]
    optimizer: Optimizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.evaluate(self.closure, self.optimizer, args, kwargs)
