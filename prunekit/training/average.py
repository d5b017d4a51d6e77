"""An exponential moving average of a model's parameters, which is evaluated and exported in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.errors import StateError
from prunekit.model.parameters import Parameters


class Average:
    """After each step: decay · average + (1 − decay) · parameter. It begins with the parameters after the first step.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`, but by the names of parameters, without
    a copy of the model: masks, quantizers and hooks see the averages in the model itself. Buffers are the model's.

    Args:
        model: whose parameters are averaged; those of whole numbers are not.
        decay: from 0 to below 1.

    Attributes:
        values: parameter name -> average, unmasked; empty before the first step.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {}
        self.look_up()

    def look_up(self) -> None:
        """Find the parameters that the model has now; one of another shape begins anew."""
        self._parameters = _averaged(self.model)
        for name in list(self.values):
            if name not in self._parameters or self.values[name].shape != self._parameters[name].shape:
                del self.values[name]

    @torch.no_grad()
    def update(self) -> None:
        """The optimizers have stepped."""
        known = [name for name in self._parameters if name in self.values]
        if known:
            averages = [self.values[name] for name in known]
            now: list[Tensor] = [self._parameters[name] for name in known]
            torch._foreach_lerp_(averages, now, 1 - self.decay)
        for name in self._parameters.keys() - self.values.keys():
            self.values[name] = self._parameters[name].detach().clone()

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The averages in place of the parameters; undone at the end."""
        before = {name: p.detach().clone() for name, p in _averaged(self.model).items() if name in self.values}
        put_into(self.model, self.values)
        try:
            yield
        finally:
            put_into(self.model, before)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `values`."""
        self.values = {name: value.to(self._parameters[name].device, copy=True) for name, value in state.items()}


@torch.no_grad()
def put_into(model: Module, values: Mapping[str, Tensor]) -> None:
    """Write values into the parameters of these names.

    Raises:
        StateError: the model has no such parameter, or one of another shape.
    """
    parameters = _averaged(model)
    for name, value in values.items():
        if name not in parameters or parameters[name].shape != value.shape:
            shape = f"one of shape {tuple(parameters[name].shape)}" if name in parameters else "none"
            raise StateError(f"the average of {name!r} is {tuple(value.shape)}; of that name the model has {shape}")
        parameters[name].copy_(value)


def _averaged(model: Module) -> dict[str, Parameter]:
    return {name: p for name, p in Parameters.of(model).by_name.items() if p.is_floating_point() or p.is_complex()}
