"""The quantizers of a schedule while it is carried out: what they quantize now, and what is trained for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from prunekit.components.effects import ModulesQuantized
from prunekit.components.origin import Result
from prunekit.engine.ledger import Ledger
from prunekit.engine.policies import Policy, QuantizationPolicy
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.progress import Progress
from prunekit.quantization.catalog import Catalog
from prunekit.quantization.forward import QuantizedForward


class Quantizers:
    """The policies of quantizers, and the forward pass that they change.

    Args:
        policies: of the whole schedule.
        model: the network.
        catalog: all in it that can be quantized, where a quantizer has asked.
        ledger: keeps account of what becomes of the weights.
    """

    def __init__(self, policies: Iterable[Policy], model: Module, catalog: Catalog | None, ledger: Ledger) -> None:
        self.policies = [policy for policy in policies if isinstance(policy, QuantizationPolicy)]
        self.forward = QuantizedForward(model)
        self._model, self._catalog, self._ledger = model, catalog, ledger
        self._name = type(model).__name__  # before a quantizer makes a subclass of it

    def open(self, progress: Progress) -> None:
        """Let weights and activations read as the quantizers whose window is open make of them."""
        live = [policy for policy in self.policies if policy.window.is_open(progress)]
        for policy in live:
            policy.begin(self._model, self._ledger.masks, progress, self._ledger.bus.blame)
        weights = {p.parameters[name]: weight for p in live for name, weight in p.quantized_weights.items()}
        activations = {name: activation for p in live for name, activation in p.quantized_activations.items()}
        self.forward.activate(weights, activations, self._catalog)

    def tell(self, policy: Policy, optimizers: KnownOptimizers, progress: Progress) -> None:
        """A window opens: which module gets how many bits, and by which line of the schedule."""
        if not isinstance(policy, QuantizationPolicy):
            return
        if policy.bits:
            told = Result(policy.origin, ModulesQuantized(policy.bits))
            self._ledger.carry_out([told], "on_window_open", optimizers, progress)
        for module, reason in policy.untraceable.items():
            what = {"module": module or self._name, "reason": reason}
            self._ledger.trace.warning(
                "activations left alone", **policy.origin._asdict(), **progress.trace_keys(), **what
            )

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Groups for an optimizer: what quantizers train besides the model's own parameters."""
        # torch takes names for all groups of an optimizer or for none.
        named = "param_names" in optimizer.param_groups[0]
        # Two policies may share a component, and an optimizer refuses a parameter that it has already.
        once = {id(policy.component): policy for policy in self.policies}
        groups = [policy.parameter_group(self._model, named=named) for policy in once.values()]
        return [group for group in groups if group]
