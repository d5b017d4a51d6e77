"""torch's hooks around every optimizer step of the process, for the runs that listen.

One pair of hooks for all of them: nothing of ours hangs on an optimizer, which may be pickled, copied, replaced or made
later, and it keeps no run alive.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from prunekit.engine.stepping.dropped import Dropped


class Listener(Protocol):
    """Who hears of steps."""

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """An optimizer is about to step: the arguments that it is to get."""

    def after_step(self, optimizer: Optimizer) -> None:
        """It has stepped."""


# In the order in which they began to listen. The hooks belong to the process, as torch's own dictionaries of them do;
# a finalizer could not take them off, since torch may be iterating over these at that very moment.
_listeners: list[tuple[weakref.ref[Listener], Dropped]] = []
_handles: list[RemovableHandle] = []


def listen(listener: Listener, dropped: Dropped) -> None:
    """Let it hear of every step from now on, for as long as somebody else keeps it; then `dropped` hears instead."""
    _forget(listener)
    _listeners.append((weakref.ref(listener), dropped))
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_before))
        _handles.append(register_optimizer_step_post_hook(_after))


def stop_listening(listener: Listener) -> None:
    """It hears no more; with the last one the hooks are taken off."""
    _forget(listener)
    if not _listeners:
        for handle in _handles:
            handle.remove()
        _handles.clear()


def _forget(listener: Listener) -> None:
    heard = [(ref, ref(), dropped) for ref, dropped in _listeners]
    _listeners[:] = [
        (ref, dropped)
        for ref, known, dropped in heard
        if known is not listener and (known is not None or dropped.matters())
    ]


def hears_steps_of(optimizer: object) -> bool:
    """Whether its steps run torch's hooks: it is an `Optimizer`, and its constructor has called torch's."""
    if not isinstance(optimizer, Optimizer) or "_optimizer_step_pre_hooks" not in vars(optimizer):
        return False
    return bool(getattr(type(optimizer).step, "hooked", False))


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is going to leave the weights alone, as a `GradScaler` has told it to.

    Others it does not call at all. Reading the flag waits for the device, as the scaler itself does for those.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def in_backward() -> bool:
    """Whether autograd is under way in this thread: the optimizer steps in a hook of a gradient."""
    return torch._C._current_graph_task_id() != -1


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
    for entry in tuple(_listeners):
        ref, dropped = entry
        if (listener := ref()) is not None:
            args, kwargs = listener.before_step(optimizer, args, kwargs)
        elif dropped.tell(optimizer):
            _listeners[:] = [other for other in _listeners if other is not entry]
    return args, kwargs


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for ref, _ in tuple(_listeners):
        if (listener := ref()) is not None:
            listener.after_step(optimizer)
