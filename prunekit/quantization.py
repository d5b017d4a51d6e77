"""Quantized weights in the forward pass: a parameter keeps its name and its float values, reading it gives others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.errors import PluginError

Quantize = Callable[[Tensor], Tensor]
_FUNCTIONS = "_prunekit_quantize"


class QuantizedForward:
    """The modules of a model whose weights read as quantized now.

    A module's class is replaced by a subclass with a property for each quantized weight (as
    `torch.nn.utils.parametrize` does it), while the parameter stays where it is: `named_parameters`, `state_dict`, the
    optimizer and the masks see the float weight under its own name, whoever reads `module.weight` the quantized one.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._changed: list[tuple[Module, type[Module]]] = []

    def activate(self, quantize: Mapping[str, Quantize], parameters: Mapping[str, Parameter]) -> None:
        """From now on these parameters, by name, read as their function makes of them; all others as they are."""
        self.clear()
        if not quantize:
            return
        functions = {id(parameters[name]): function for name, function in quantize.items()}
        for module in self._model.modules():
            own = {name: functions[id(p)] for name, p in module._parameters.items() if id(p) in functions}
            if own:
                self._changed.append((module, type(module)))
                vars(module)[_FUNCTIONS] = own
                module.__class__ = _reading_quantized(type(module), own)

    def clear(self) -> None:
        """All weights read as they are."""
        for module, cls in self._changed:
            module.__class__ = cls
            del vars(module)[_FUNCTIONS]
        self._changed.clear()


def readable(module: Module) -> bool:
    """Whether a module reads its weights by name when it runs forward; recurrent ones keep them in a list."""
    return not hasattr(module, "_flat_weights")


def checked(quantized: Any, weight: Tensor, who: str) -> Tensor:
    """What a quantizer returned, if it can stand for the weight.

    Raises:
        PluginError: it is no tensor of the weight's shape and type.
    """
    if not isinstance(quantized, Tensor) or (quantized.shape, quantized.dtype) != (weight.shape, weight.dtype):
        got = f"{quantized.dtype} {tuple(quantized.shape)}" if isinstance(quantized, Tensor) else repr(quantized)
        raise PluginError(f"quantize of {who} must return {weight.dtype} {tuple(weight.shape)}, got {got}")
    return quantized


def _reading_quantized(cls: type[Module], names: Iterable[str]) -> type[Module]:
    return type(f"Quantized{cls.__name__}", (cls,), {"__module__": cls.__module__, **{n: _property(n) for n in names}})


def _property(name: str) -> property:
    def read(module: Module) -> Tensor:
        weight = module._parameters[name]
        assert weight is not None
        quantized: Tensor = vars(module)[_FUNCTIONS][name](weight)
        return quantized

    def write(module: Module, value: Parameter | None) -> None:
        module.register_parameter(name, value)

    return property(read, write)
