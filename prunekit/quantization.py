"""Quantized weights in the forward pass: a parameter keeps its name and its float values, reading it gives others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.components import Context, Quantizer
from prunekit.errors import PluginError

_READINGS = "_prunekit_readings"


@dataclass(eq=False)
class Reading:
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
        if torch.compiler.is_compiling():
            return self._values(weight)
        try:
            return self._values(weight)
        except Exception as error:
            self.failed(error)
            raise

    def _values(self, weight: Tensor) -> Tensor:
        values = self.quantizer.quantize(self.name, weight, self.context)
        _must_stand_for(values, weight, self.name)
        mask = self.masks.get(self.name)
        return values if mask is None else values * mask


class QuantizedForward:
    """The modules of a model whose weights read as quantized now.

    A module's class is replaced by a subclass with a property for each quantized weight (as
    `torch.nn.utils.parametrize` does it), while the parameter stays where it is: `named_parameters`, `state_dict`, the
    optimizer and the masks see the float weight under its own name, whoever reads `module.weight` the quantized one.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._readings: Mapping[Parameter, Reading] = {}
        self._changed: list[tuple[Module, type[Module]]] = []

    def activate(self, readings: Mapping[Parameter, Reading]) -> None:
        """From now on these parameters read as their reading makes of them, all others as they are."""
        if readings == self._readings:
            return
        self.clear()
        self._readings = readings
        for module in self._model.modules() if readings else ():
            own = {name: readings[p] for name, p in module._parameters.items() if p is not None and p in readings}
            if own:
                self._changed.append((module, type(module)))
                vars(module)[_READINGS] = own
                module.__class__ = _reading_quantized(type(module), own)

    def clear(self) -> None:
        """All weights read as they are."""
        for module, cls in self._changed:
            module.__class__ = cls
            del vars(module)[_READINGS]
        self._changed.clear()
        self._readings = {}


def readable(module: Module) -> bool:
    """Whether a module reads its weights by name when it runs forward; recurrent ones keep them in a list."""
    return not hasattr(module, "_flat_weights")


def _must_stand_for(values: Any, weight: Tensor, name: str) -> None:
    if not isinstance(values, Tensor) or values.shape != weight.shape or values.dtype != weight.dtype:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise PluginError(f"quantize must return {weight.dtype} {tuple(weight.shape)} for {name!r}, got {got}")


def _reading_quantized(cls: type[Module], names: Iterable[str]) -> type[Module]:
    return type(f"Quantized{cls.__name__}", (cls,), {"__module__": cls.__module__, **{n: _property(n) for n in names}})


def _property(name: str) -> property:
    def read(module: Module) -> Tensor:
        weight = module._parameters[name]
        assert weight is not None
        quantized: Tensor = vars(module)[_READINGS][name](weight)
        return quantized

    def write(module: Module, value: Parameter | None) -> None:
        module.register_parameter(name, value)

    return property(read, write)
