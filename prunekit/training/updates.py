"""From a batch to a step of the optimizers: loss, terms, gradients, and the average that follows the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from prunekit.errors import ApplicationError, StateError
from prunekit.scheduler import CompressionScheduler
from prunekit.training.application import Application, device_of
from prunekit.training.average import Average, put_into
from prunekit.training.complaints import blaming, must_have_gradient, place_of
from prunekit.training.losses import BatchLoss, loss_of, must_be_finite


class Updates:
    """Trains an application's model on one mini-batch after the other, as the application asks for it.

    Args:
        application: what is trained, and how.
        scheduler: whose terms are added to the loss, once in each mini-batch.

    Attributes:
        begun: whether there has been a step.
        average: of the parameters, where the application wants one.
    """

    def __init__(self, application: Application, scheduler: CompressionScheduler) -> None:
        self.application, self.scheduler, self.begun = application, scheduler, False
        self.device = device_of(application.model)
        decay = application.ema_decay
        self.average = None if decay is None else Average(application.model, decay)
        # Gradients of 16 bits with a short exponent vanish unless the loss is scaled; all others pass through as is.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=application.autocast is torch.float16)

    def begin_epoch(self) -> None:
        """The model may have got other parameters since the last one."""
        if self.average is not None:
            self.average.look_up()

    def train_on(self, batch: Any, minibatch: int, minibatches: int) -> BatchLoss:
        """Go forward and backward, and take a step if this mini-batch completes one.

        Args:
            batch: what the loader gave.
            minibatch: which it is, of this epoch.
            minibatches: how many the epoch has; a step ends with the last of them at the latest.
        """
        place = minibatch % self.application.accumulate
        if place == 0:
            for optimizer in self.application.optimizers.values():
                optimizer.zero_grad()
        loss = loss_of(self.application, batch, self.device, "train_loader")
        if not self.begun:
            must_be_finite(loss, self.application)
        gathered = min(self.application.accumulate, max(minibatches - minibatch + place, 1))
        with blaming("loss" if self.application.step is None else "step"):
            self._go_backward(loss, gathered)
        if place + 1 == gathered:
            with blaming("optimizer"):
                self._step()
        return loss

    def must_have_stepped(self, minibatches: int, promised: int) -> None:
        """Whether the last mini-batch of an epoch was the one that completed its last step.

        Raises:
            ApplicationError: the loader's length is not what it gave, so that gradients are left over.
        """
        if self.application.accumulate > 1 and minibatches != promised:
            what = f"has the length {promised}, and gave {minibatches} batches: the last step can't be completed"
            raise ApplicationError("train_loader", what)

    def averaged(self) -> AbstractContextManager[None]:
        """For evaluation: the average in the model, where there is one; masks are the scheduler's to apply."""
        return nullcontext() if self.average is None else self.average.in_model()

    def end(self) -> None:
        """Training has ended: the average stays in the model."""
        if self.average is not None:
            put_into(self.application.model, self.average.values)

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, average and scale of the loss, as a checkpoint keeps them."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.application.optimizers.items()}
        average = None if self.average is None else self.average.values
        return {"optimizers": optimizers, "average": average, "loss_scale": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: it has other optimizers, or an average where this application has none, or the other way round.
        """
        optimizers, saved = self.application.optimizers, state["optimizers"]
        if list(saved) != list(optimizers):
            raise StateError(f"the run has the optimizers {list(saved)}, the application {list(optimizers)}")
        # What is empty was saved before the first step, by a run with another type or average.
        if self._scaler.is_enabled() != bool(state["loss_scale"]) or (self.average is None) != (
            state["average"] is None
        ):
            raise StateError("the run was begun with another autocast or ema_decay than the application has")
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(saved[name])
        self._scaler.load_state_dict(state["loss_scale"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _go_backward(self, loss: BatchLoss, gathered: int) -> None:
        """Gradients of the loss with all terms, as their share of a step."""
        if isinstance(self.application.optimizer, Mapping) and loss.parts:
            self._go_backward_by_name(loss.parts, gathered)
        else:
            self._shared(self.scheduler.total_loss(loss.total), gathered).backward()  # type: ignore[no-untyped-call]

    def _go_backward_by_name(self, losses: Mapping[str, Tensor], gathered: int) -> None:
        """Each loss into the parameters of the optimizer of its name alone, the terms of policies into all."""
        optimizers = self.application.optimizers
        if losses.keys() != optimizers.keys():
            what = f"gives losses {list(losses)}; there must be one for each of the optimizers {list(optimizers)}"
            raise ApplicationError("step", what, place_of(self.application.step))
        for name, loss in losses.items():
            must_have_gradient(loss, "step", self.application.step, name)
        # A policy gets one loss, the sum of all. What it makes of that reaches each of them by the chain rule.
        leaves = {name: loss.detach().requires_grad_() for name, loss in losses.items()}
        total = self.scheduler.total_loss(reduce(add, leaves.values()))
        self._shared(total, gathered).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        *_, last = losses
        for name, loss in losses.items():
            inputs = _trained(optimizers[name])
            loss.backward(leaves[name].grad, inputs=inputs, retain_graph=name != last)  # type: ignore[no-untyped-call]

    def _shared(self, loss: Tensor, gathered: int) -> Tensor:
        return self._scaler.scale(loss / gathered if gathered > 1 else loss)

    def _step(self) -> None:
        optimizers = self.application.optimizers.values()
        if self.application.clip_norm is not None:
            for optimizer in optimizers:
                self._scaler.unscale_(optimizer)
                clip_grad_norm_(_trained(optimizer), self.application.clip_norm)
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        self.begun = True
        # A step whose scaled gradients overflowed was left out.
        if self.average is not None and self.scheduler.progress.stepped:
            self.average.update()


def _trained(optimizer: Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
