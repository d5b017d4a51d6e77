"""Optimizers and wrappers of them, as people write them."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Delegating(Optimizer):
    """Forwards everything, and never called torch's constructor, as Accelerate's does."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure)


class NoOptimizer:
    """Has what an optimizer has, and inherits from nothing, as Lightning's does."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


class SlowWeights(Optimizer):
    """Lookahead: it writes the mean of slow and fast weights back."""

    init = True

    def __init__(self, optimizer: Optimizer) -> None:
        if self.init:
            super().__init__(optimizer.param_groups, {})
        self.optimizer, self.param_groups, self.number = optimizer, optimizer.param_groups, 0
        self.slow = [[p.detach().clone() + 1 for p in group["params"]] for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = self.optimizer.step(closure)
        self.number += 1
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            for parameter, value in zip(group["params"], slow, strict=True):
                parameter.data.lerp_(value, 0.5)
        return loss


class SlowWeightsWithoutInit(SlowWeights):
    """Likewise, of those that never called torch's constructor."""

    init = False

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        # A step of its own: torch patches that of a class when its first object is made.
        return getattr(SlowWeights.step, "__wrapped__", SlowWeights.step)(self, closure)


class SAM(Optimizer):
    """Climbs to the worst point nearby, takes the gradient there with the closure, and steps from where it was."""

    def __init__(self, parameters: Any, base_optimizer: Any, **defaults: Any) -> None:
        super().__init__(parameters, {"rho": 0.05, **defaults})
        self.base_optimizer = base_optimizer(self.param_groups, **defaults)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.first_step()
        loss = torch.enable_grad()(closure)()
        self.second_step()
        return loss

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old_p"] = parameter.data.clone()
                parameter.add_(0.05 * parameter.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = self.state[parameter]["old_p"]
        self.base_optimizer.step()


class OwnRate(Optimizer):
    """Adafactor's shape: it finds its rate itself, and one group has none at all."""

    def __init__(self, parameters: Any, **defaults: Any) -> None:
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["row"] = parameter.grad.square().mean(0)
                    parameter -= 0.01 * parameter.grad
