"""Asking a component outside a training: for masks, a penalty or quantized values, and all it decides in a window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from prunekit.components.context import Context
from prunekit.components.pruner import Observing
from prunekit.progress import Progress
from prunekit.quantization.catalog import INPUT
from prunekit.testing.laws import QUANTIZER, REGULARIZER, NotApplicable
from prunekit.testing.runs import MINIBATCHES, WINDOW, Run, reseed


def masks_of(run: Run, moment: Progress | None = None) -> Mapping[str, Tensor]:
    """The masks that the component would choose now, or at another moment.

    Raises:
        NotApplicable: it is none that makes masks.
    """
    component, policy = run.component, run.policy
    if not hasattr(component, "compute_masks") or not getattr(component, "thresholds", True):
        raise NotApplicable("it makes no masks")
    with torch.no_grad():
        masks: Mapping[str, Tensor] = component.compute_masks(policy.parameters, context_of(run, moment))
    return masks


def observed_masks_of(run: Run, moment: Progress | None = None) -> Mapping[str, Tensor]:
    """The masks that a pruner which looks at gradients would set: none where it is no such pruner."""
    if not isinstance(run.component, Observing):
        return {}
    make_up_gradients(run)
    with torch.no_grad():
        return run.component.observe(run.policy.parameters, context_of(run, moment)) or {}


def make_up_gradients(run: Run) -> None:
    """A gradient for each weight that is trained and has none, the same at every call."""
    for weight in run.policy.parameters.values():
        if weight.requires_grad and weight.grad is None:
            made_up = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
            weight.grad = made_up.to(weight.dtype)


def penalty_of(run: Run, moment: Progress | None = None) -> Tensor:
    """What a regularizer would add to the loss now, or at another moment."""
    penalty: Tensor = run.component.penalty(run.policy.parameters, context_of(run, moment))
    return penalty


def quantized_weights_of(run: Run) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What the forward pass would use for each weight, and the weight."""
    for name, weight in run.policy.parameters.items():
        yield name, run.component.quantize(name, weight, context_of(run)), weight


def quantized_activations_of(run: Run, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What would go on in place of what each activation gives, and that, which is made up, the same at every call."""
    for name in getattr(run.policy, "activations", ()):
        # Transposed, so that each of the four rows, as each channel, has values from one end to the other.
        made_up = torch.linspace(-1, 2, 4 * 96).reshape(96, 4).T.to(dtype).requires_grad_()
        given = made_up if name == INPUT else made_up.relu()
        yield name, run.component.quantize_activation(name, given, context_of(run)), made_up


def context_of(run: Run, moment: Progress | None = None) -> Context:
    """What the component may know now, or at another moment."""
    context: Context = run.policy.context(run.model, run.scheduler.masks, moment or run.now)
    return context


def ask(run: Run) -> None:
    """What the component is asked in a step, each time one mini-batch on."""
    run.asked += 1
    if run.subject.kind == QUANTIZER:
        list(quantized_weights_of(run))
        list(quantized_activations_of(run))
    elif run.subject.kind == REGULARIZER:
        penalty_of(run)
        with suppress(NotApplicable):
            masks_of(run)
    else:
        masks_of(run)
        observed_masks_of(run)


def decisions(run: Run) -> dict[str, Any]:
    """All that the component decides over the window while nothing is trained."""
    reseed()
    begin_window(run)
    decided: dict[str, Any] = {"masks": {name: mask.clone() for name, mask in run.scheduler.masks.items()}}
    if run.subject.kind == REGULARIZER:
        total = run.scheduler.total_loss(torch.zeros(()))
        decided["penalty"] = total.detach()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
    if run.subject.kind == QUANTIZER:
        decided["values"] = {name: read.detach().clone() for name, read, _ in quantized_weights_of(run)}
        decided["activations"] = {name: passed.detach().clone() for name, passed, _ in quantized_activations_of(run)}
    return decided


def begin_window(run: Run) -> None:
    """Begin every active epoch, and train in none; a pruner that looks at gradients sees some that are made up."""
    for epoch in WINDOW.active:
        run.scheduler.on_epoch_begin(epoch)
        if isinstance(run.component, Observing):
            make_up_gradients(run)
            run.scheduler.on_minibatch_begin(epoch, 0, MINIBATCHES)
            run.scheduler.before_parameter_optimization(epoch, 0, MINIBATCHES)
            run.scheduler.on_minibatch_end(epoch, 0, MINIBATCHES)


def touched(run: Run) -> dict[str, Any]:
    """A copy of all in the model that a component could lay hands on."""
    model = run.model
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
    }
