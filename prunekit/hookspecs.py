"""THE contract: one hook specification per event.

A training loop fires them in this order:

    on_train_begin
    for epoch in ...:
        on_epoch_begin                      pruners choose their masks
        for minibatch in ...:
            on_minibatch_begin              masks are in the weights
            output, loss = ...              (forward)
            before_backward_pass            loss terms are added
            total_loss.backward()
            before_parameter_optimization
            optimizer.step()                masks are enforced
            on_minibatch_end                regularizers drop weights; in steps, the rate of the next
        on_epoch_end                        the learning rate of the next epoch
    on_train_end

An implementation takes only the arguments that it names, and returns what it wants done (`SetMasks`, `LossTerm`, …)
instead of doing it: prunekit carries effects out when every implementation has returned, so an exception leaves masks
and model as they were. Implementations run in the order of the schedule's policies, listeners last. The mark of each
hook says what else an implementation may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from prunekit.components.effects import Effect
    from prunekit.components.loss_term import LossTerm
    from prunekit.components.origin import MaskChange, Origin
    from prunekit.progress import Progress

PROJECT = "prunekit"
hookimpl = pluggy.HookimplMarker(PROJECT)
_Hook = TypeVar("_Hook", bound=Callable[..., Any])


@dataclass(frozen=True)
class Role:
    """The mark of a hook: what its implementations may ask for in `@hookimpl(…)`, and why for no more."""

    name: str
    options: tuple[str, ...]
    reason: str
    first_result: bool = False

    def __call__(self, hook: _Hook) -> _Hook:
        hook.role = self  # type: ignore[attr-defined]
        return pluggy.HookspecMarker(PROJECT)(hook, firstresult=self.first_result)


event = Role("event", ("tryfirst", "trylast", "wrapper"), "these change what is returned, and in which order")
decision = Role("decision", event.options, "the first result that is not None counts", first_result=True)
notification = Role("notification", ("tryfirst", "trylast"), "nothing is returned that could be changed")
offer = Role("offer", (), "all are asked, and two that offer one name are an error")


# Events of training, in firing order: effects are returned


@event
def on_train_begin(
    model: Module,
    masks: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    progress: Progress,
    run_dir: Path | None,
) -> Effect | list[Effect] | None:
    """Training is about to begin. `run_dir` is the run's folder, if it has one."""


@event
def on_epoch_begin(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress
) -> Effect | list[Effect] | None:
    """An epoch is about to begin."""


@event
def on_minibatch_begin(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress
) -> Effect | list[Effect] | None:
    """A mini-batch is about to go forward."""


@event
def before_backward_pass(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress, loss: Tensor
) -> LossTerm | list[LossTerm] | None:
    """The loss of the mini-batch is known. Terms that are returned are added to it."""


@event
def before_parameter_optimization(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress
) -> Effect | list[Effect] | None:
    """Gradients are known; the optimizer is about to step: once in a mini-batch for each that steps."""


@event
def on_minibatch_end(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress
) -> Effect | list[Effect] | None:
    """The optimizer has stepped and the masks have been enforced."""


@event
def on_epoch_end(
    model: Module,
    masks: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    progress: Progress,
    metrics: Mapping[str, float] | None,
) -> Effect | list[Effect] | None:
    """The epoch has ended. `metrics`, where the loop gives them: `min` is one to minimise, `max` one to maximise."""


@event
def on_train_end(
    model: Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None, progress: Progress
) -> Effect | list[Effect] | None:
    """Training has ended."""


# Decisions: the first result that is not None counts


@decision
def veto_pruning(
    policy: Origin, masks: Mapping[str, Tensor], proposed: Mapping[str, Tensor], progress: Progress
) -> str | None:
    """A pruner has chosen masks (`proposed`) and they are about to be set. A reason, as text, keeps them from it."""


# Notifications of what has become of it: nothing is returned


@notification
def on_window_open(policy: Origin, progress: Progress) -> None:
    """A policy's first active epoch is about to begin, or a resumed run starts inside its window."""


@notification
def on_window_close(policy: Origin, progress: Progress) -> None:
    """A policy's last active epoch has ended."""


@notification
def on_masks_changed(changes: Sequence[MaskChange], progress: Progress) -> None:
    """Masks were set or kept, or weights zeroed; sparsities are counted from the tensors."""


@notification
def on_loss_terms(means: Mapping[str, float], progress: Progress) -> None:
    """An epoch has ended in which terms were added to the loss: the name of each -> its mean over the mini-batches."""


@notification
def on_learning_rate_changed(before: Sequence[float | None], after: Sequence[float | None], progress: Progress) -> None:
    """The learning rate of at least one group of the optimizers has changed; None is one that has no rate."""


@notification
def on_modules_quantized(bits: Mapping[str, Mapping[str, int | str | None]], progress: Progress) -> None:
    """A quantizer works on modules from now on: name -> `weights`, `activations` and `bias` in bits, and `by` what."""


@notification
def on_state_saved(state: Mapping[str, Any], progress: Progress) -> None:
    """The scheduler's `state_dict()` was taken."""


@notification
def on_state_restored(state: Mapping[str, Any], progress: Progress) -> None:
    """The scheduler has continued from a `state_dict()`."""


# Components that are only known at run time: all listeners are asked


@offer
def find_component(kind: str, name: str) -> type | None:
    """The class that this plugin offers under `name`, where no entry point does; two classes are an error."""


@offer
def list_components(kind: str) -> Iterable[str] | None:
    """The names that `find_component` knows."""
