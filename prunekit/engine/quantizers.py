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
from prunekit.errors import PrunekitError
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.progress import Progress
from prunekit.quantization.catalog import Catalog, catalog
from prunekit.quantization.forward import QuantizedForward


class Quantizers:
    """The policies of quantizers, and the forward pass that they change.

    Args:
        policies: of the whole schedule.
        model: the network.
        found: all in it that can be quantized, where a quantizer has asked.
        ledger: keeps account of what becomes of the weights.
    """

    def __init__(self, policies: Iterable[Policy], model: Module, found: Catalog | None, ledger: Ledger) -> None:
        self.policies = [policy for policy in policies if isinstance(policy, QuantizationPolicy)]
        self.forward = QuantizedForward(model)
        self._model, self._catalog, self._ledger = model, found, ledger
        self._opened: Progress | None = None
        self._name = type(model).__name__  # before a quantizer makes a subclass of it

    def begin(self, progress: Progress, *, steps_only: bool = False) -> None:
        """An epoch begins, or a step alone: what quantizers may know whose window is open."""
        for policy in self.policies:
            if policy.window.is_open(progress) and (policy.window.in_steps or not steps_only):
                policy.begin(self._model, self._ledger.masks, progress, self._ledger.bus.blame)

    def open(self, progress: Progress) -> None:
        """Let weights and activations read as the quantizers whose window is open make of them."""
        self._opened = progress
        live = [policy for policy in self.policies if policy.window.is_open(progress)]
        weights = {p.parameters[name]: weight for p in live for name, weight in p.quantized_weights.items()}
        activations = {name: activation for p in live for name, activation in p.quantized_activations.items()}
        self.forward.activate(weights, activations, self._catalog)

    def looked_up(self) -> Catalog | None:
        """The catalog of the model as it is now, where one is needed.

        Raises:
            PrunekitError: an activation that is quantized is gone.
        """
        quantized = {name: policy.origin.policy for policy in self.policies for name in policy.activations}
        if not quantized:
            return self._catalog
        with self.forward.suspended():  # the forward passes that were put in place can't be looked into
            found = catalog(self._model)
        known = set(found.unwrapped_names.values())
        if gone := [f"{name!r}, which {by} quantizes" for name, by in quantized.items() if name not in known]:
            raise PrunekitError(f"no activation of the model any more: {', '.join(gone)}")
        return found

    def rebind(self, found: Catalog | None) -> None:
        """The model has other parameters or modules than it had; `found` is what `looked_up` has said."""
        self._catalog = found
        if self._opened is not None:
            self.forward.clear()  # also where the parameters are the same and stand in other modules
            self.open(self._opened)

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
