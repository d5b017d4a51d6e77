"""What a schedule has made of a model: the values that its forward pass uses, and the whole numbers behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.errors import PrunekitError
from prunekit.export.numbers import fitted, must_restore
from prunekit.model.parameters import Parameters
from prunekit.model.wrappers import unwrapped
from prunekit.quantization.catalog import INPUT, Catalog
from prunekit.quantization.integers import Integers, Integral, Levels
from prunekit.quantization.values import QuantizedActivation, QuantizedWeight
from prunekit.scheduler import CompressionScheduler

_MOST_BITS = 16
"""Weights of more bits stay floats: a float32 does not hold all their whole numbers exactly."""


@dataclass(frozen=True)
class Compressed:
    """A model as a schedule has left it, for the length of a `with` block.

    Attributes:
        model: in evaluation, without wrappers; its parameters hold what the forward pass uses, masked and quantized.
            Activations are as they are.
        integers: the parameters with whole numbers behind them, in the smallest type.
        names: each parameter's names in the model, several where it is tied.
        levels: what each quantized activation can give; None where its quantizer does not say.
        catalog: where the activations are.
        inputs: what the model is tried on.
        outputs: what it gives for them with its activations quantized too, None without inputs.
        dense: bytes of the state of the same model before training, where that is known: what files are compared with.
    """

    model: Module
    integers: Mapping[Parameter, Integers] = field(default_factory=dict)
    names: Mapping[Parameter, tuple[str, ...]] = field(default_factory=dict)
    levels: Mapping[str, Levels | None] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)
    inputs: object = None
    outputs: object = None
    dense: bytes | None = None

    @property
    def by_name(self) -> dict[str, Integers]:
        """The whole numbers by each name that a parameter has in `model.state_dict()`."""
        return {name: self.integers[p] for p, names in self.names.items() if p in self.integers for name in names}


@contextmanager
def compressed(
    scheduler: CompressionScheduler, inputs: object = None, *, dense: bytes | None = None
) -> Iterator[Compressed]:
    """The scheduler's model as its forward pass is now: every mask applied, every weight quantized.

    At the end of the block the model is as it was.

    Args:
        scheduler: in the middle of a run, or behind it.
        inputs: a batch for the model, as its loader gives it; ONNX needs one.
        dense: bytes to compare files with.

    Raises:
        PluginError: a quantizer's whole numbers are not those of its values.
    """
    model = unwrapped(scheduler.model)[1]
    training = model.training
    try:
        with ExitStack() as stack, torch.no_grad():
            model.eval()
            stack.enter_context(scheduler.masked())
            parameters = Parameters.of(scheduler.model).by_name
            values = {p: scheduler.quantized.read(p).clone() for p in parameters.values()}
            weights, activations = scheduler.quantized.weights, scheduler.quantized.activations
            integers = {p: found for p in values if (found := _integers(weights.get(p), p, values[p])) is not None}
            levels = {name: _levels(activation) for name, activation in activations.items()}
            outputs = None if inputs is None else scheduler.model(inputs)
            where = _within(model, scheduler.quantized.catalog or Catalog())
            # Values that were read quantized are written now: they must not be quantized once more.
            stack.enter_context(scheduler.quantized.suspended())
            stack.enter_context(_holding(values))
            yield Compressed(model, integers, _names(model), levels, where, inputs, outputs, dense)
    finally:
        model.train(training)


def needs(library: str, *modules: str) -> None:
    """Whether a format's libraries are installed.

    Raises:
        PrunekitError: one is missing; the message says how to install it.
    """
    from importlib.util import find_spec

    missing = [name for name in (library, *modules) if find_spec(name) is None]
    if missing:
        what = " and ".join(missing)
        raise PrunekitError(f"{library} files need {what}; install it with: pip install 'prunekit[export]'")


def _integers(weight: QuantizedWeight | None, parameter: Parameter, values: Tensor) -> Integers | None:
    if weight is None or not isinstance(weight.quantizer, Integral) or not parameter.numel():
        return None
    bits = weight.context.settings.get(weight.name)
    if isinstance(bits, int) and bits > _MOST_BITS:
        return None
    found = weight.quantizer.integers(weight.name, parameter.detach(), weight.context)
    if found is None:
        return None
    found = fitted(found, weight.masks.get(weight.name))
    must_restore(found, values, f"{type(weight.quantizer).__name__}, {weight.name!r}")
    return found


def _levels(activation: QuantizedActivation) -> Levels | None:
    quantizer = activation.quantizer
    return quantizer.levels(activation.name, activation.context) if isinstance(quantizer, Integral) else None


def _within(model: Module, found: Catalog) -> Catalog:
    """The catalog of a model in its wrappers as that of the model."""
    return replace(found, modules={**found.modules, INPUT: model})


def _names(model: Module) -> dict[Parameter, tuple[str, ...]]:
    found: dict[Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[parameter] = (*found.get(parameter, ()), name)
    return found


@contextmanager
def _holding(values: Mapping[Parameter, Tensor]) -> Iterator[None]:
    """The parameters hold these values, until the end of the block."""
    before = {parameter: parameter.detach().clone() for parameter in values}
    for parameter, value in values.items():
        parameter.detach().copy_(value)
    try:
        yield
    finally:
        for parameter, value in before.items():
            parameter.detach().copy_(value)
