"""What stands in place of one weight and of what one activation gives, while a quantizer's window is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.components.context import Context
from prunekit.components.quantizer import Quantizer
from prunekit.errors import PluginError
from prunekit.quantization.quantizable import QuantizesModules


@dataclass(eq=False)
class QuantizedWeight:
    """What is read in place of one weight. Plain enough for torch.compile to look through.

    Attributes:
        name: of the parameter.
        quantizer: makes the values.
        context: what it may know in this epoch.
        masks: what is masked stays zero.
        failed: told of an exception before it goes on.
    """

    name: str
    quantizer: Quantizer
    context: Context
    masks: Mapping[str, Tensor]
    failed: Callable[[Exception], None]

    def __call__(self, weight: Tensor) -> Tensor:
        """The values that the forward pass uses for the weight."""
        # Without the handler, which writes to the trace: nothing that could be compiled.
        if torch.compiler.is_compiling():
            return self._values(weight)
        try:
            return self._values(weight)
        except Exception as error:
            self.failed(error)
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedWeight:
        """A copy of the model reads its weights as the model does."""
        return self

    def _values(self, weight: Tensor) -> Tensor:
        values = self.quantizer.quantize(self.name, weight, self.context)
        _must_stand_for(values, weight, self.name)
        # Not `get`, which catches a KeyError: what torch.compile has compiled would never see a mask that comes later.
        return values * self.masks[self.name].to(values.device) if self.name in self.masks else values


@dataclass(eq=False)
class QuantizedActivation:
    """What goes on in place of what one activation gives.

    Attributes:
        name: of the activation, without what wraps the model.
        quantizer: makes the values.
        context: what it may know in this epoch.
        failed: told of an exception before it goes on.
    """

    name: str
    quantizer: QuantizesModules
    context: Context
    failed: Callable[[Exception], None]

    def __call__(self, output: Tensor) -> Tensor:
        """The values that go on in place of the output."""
        if torch.compiler.is_compiling():
            return self.quantizer.quantize_activation(self.name, output, self.context)
        try:
            values = self.quantizer.quantize_activation(self.name, output, self.context)
            _must_stand_for(values, output, self.name, "quantize_activation")
            return values
        except Exception as error:
            self.failed(error)
            raise


def _must_stand_for(values: Any, original: Tensor, name: str, method: str = "quantize") -> None:
    if not isinstance(values, Tensor) or values.shape != original.shape or values.dtype != original.dtype:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise PluginError(f"{method} must return {original.dtype} {tuple(original.shape)} for {name!r}, got {got}")
