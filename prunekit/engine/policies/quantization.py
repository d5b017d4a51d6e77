"""Policies of quantizers: what the forward pass reads and passes on while their window is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module

from prunekit.components.context import Context
from prunekit.components.kinds import QUANTIZER
from prunekit.components.quantizer import Quantizer
from prunekit.engine.checked import Checked, GivenModel
from prunekit.engine.policies.policy import Policy
from prunekit.engine.problems import Problems
from prunekit.progress import Progress
from prunekit.quantization.catalog import reads_weights_by_name
from prunekit.quantization.quantizable import QuantizesModules
from prunekit.quantization.values import QuantizedActivation, QuantizedWeight


@dataclass(eq=False)
class QuantizationPolicy(Policy):
    """Gives the forward pass other values for weights and activations, from the first active epoch to the last.

    Attributes:
        activations: the ones it quantizes, with their bits.
        bits: module -> its bits as the trace tells them, and by which line of the schedule.
        untraceable: modules whose activation functions can't be found, with the reason.
    """

    kind = QUANTIZER
    component: Quantizer
    activations: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, Mapping[str, int | str | None]] = field(default_factory=dict)
    untraceable: Mapping[str, str] = field(default_factory=dict)
    quantized_weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    quantized_activations: dict[str, QuantizedActivation] = field(default_factory=dict)

    @classmethod
    def bind(cls, checked: Checked, network: GivenModel | None, problems: Problems) -> Self:
        policy = super().bind(checked, network, problems)
        plan = checked.bits
        policy.activations, policy.bits, policy.untraceable = plan.activations, plan.modules, plan.untraceable
        if network is not None and not isinstance(policy.component, QuantizesModules):
            _must_be_readable(checked, network.model, problems)
        return policy

    def begin(self, model: Module, masks: Mapping[str, Tensor], progress: Progress, blame: Callable[..., None]) -> None:
        """An epoch or a step begins: what the quantizer may know.

        Quantized weights and activations stay the same objects all through the window: the forward pass holds them.
        """
        context = self.context(model, masks, progress)
        failed = partial(blame, hook="quantize", origin=self.origin)
        for name in self.parameters:
            if name not in self.quantized_weights:
                self.quantized_weights[name] = QuantizedWeight(name, self.component, context, masks, failed)
            self.quantized_weights[name].context = context
        failed = partial(blame, hook="quantize_activation", origin=self.origin)
        for name in self.activations:
            assert isinstance(self.component, QuantizesModules)
            if name not in self.quantized_activations:
                self.quantized_activations[name] = QuantizedActivation(name, self.component, context, failed)
            self.quantized_activations[name].context = context

    def context(self, model: Module, masks: Mapping[str, Tensor], progress: Progress) -> Context:
        return replace(super().context(model, masks, progress), activations=self.activations)

    def parameter_group(self, model: Module, named: bool = False) -> dict[str, Any]:
        """What the optimizer is to train besides the model's own parameters; empty where there is nothing.

        `named`: with a name for each parameter, as an optimizer that knows the names of the others asks for.
        """
        if not self.activations or not isinstance(self.component, QuantizesModules):
            return {}
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        group = dict(self.component.parameter_group(list(self.activations), device))
        if named and group:
            group["params"] = [(f"{self.name}.{index}", p) for index, p in enumerate(group["params"])]
        return group


def _must_be_readable(checked: Checked, model: Module, problems: Problems) -> None:
    """Say which of the weights a quantizer can't reach."""
    chosen = {id(parameter): name for name, parameter in checked.owned.parameters.items()}
    for module in model.modules():
        hidden = [] if reads_weights_by_name(module) else list(module._parameters.values())
        for name in [chosen[id(parameter)] for parameter in hidden if id(parameter) in chosen]:
            message = f"{name!r} can't be quantized: {type(module).__name__} does not read its weights by name"
            problems.add(checked.made.place(checked.owned.keys[name]), message)
