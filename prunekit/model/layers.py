"""What forward passes do, in all its spellings: the one vocabulary of layers, activations, normalizations and sums.

A new activation is one line in `ACTIVATIONS`; `quantizable=True` there lets quantizers round what it gives.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, functional
from torch.nn.modules.batchnorm import _BatchNorm

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Operation:
    """Something that a forward pass does, whether it is written as a module, as a function or as a method.

    Attributes:
        modules: classes of modules that do it; their subclasses do it too.
        functions: functions of tensors that do it.
        methods: methods of tensors that do it, by name.
        in_place: those of the functions and methods that write the result into their first argument.
        output_axis: of a layer with weights: the dimension of its weight along which its outputs lie.
        keeps_channels: it leaves channels where they are.
        repeatable: done twice it gives the same twice, and leaves nothing behind. What draws random numbers or counts
            statistics is not.
        quantizable: an activation whose result quantizers round.
        not_negative: nothing that it gives is below 0.
    """

    modules: tuple[type[Module], ...] = ()
    functions: tuple[Function, ...] = ()
    methods: tuple[str, ...] = ()
    in_place: tuple[Function | str, ...] = ()
    output_axis: int | None = None
    keeps_channels: bool = False
    repeatable: bool = True
    quantizable: bool = False
    not_negative: bool = False

    @property
    def function_names(self) -> frozenset[str]:
        """By which names code calls its functions and methods."""
        return frozenset((*(function.__name__ for function in self.functions), *self.methods))

    @property
    def names(self) -> frozenset[str]:
        """The names of its classes, functions and methods."""
        return self.function_names | {cls.__name__ for cls in self.modules}


def _operation(names: str, *modules: type[Module], **properties: Any) -> Operation:
    """An operation with all that torch has under these names: `torch.relu`, `F.relu_`, `tensor.relu_` for `relu`."""
    plain = names.split()
    changing = [f"{name}_" for name in plain]  # torch's spelling of what works in place
    written = _functions(changing) + _methods(changing)
    return Operation(modules, _functions(plain + changing), _methods(plain + changing), written, **properties)


def _functions(names: list[str]) -> tuple[Function, ...]:
    # torch has some of them under two addresses, as one object or as two.
    found = [getattr(place, name, None) for name in names for place in (torch, functional)]
    return tuple(dict.fromkeys(function for function in found if function is not None))


def _methods(names: list[str]) -> tuple[str, ...]:
    return tuple(name for name in names if hasattr(Tensor, name))


def _activation(name: str, module: type[Module], **properties: Any) -> Operation:
    return _operation(name, module, keeps_channels=True, **properties)


# Layers with weights

CONVOLUTION = _operation("conv1d conv2d conv3d", nn.Conv1d, nn.Conv2d, nn.Conv3d, output_axis=0)
TRANSPOSED_CONVOLUTION = _operation(
    "conv_transpose1d conv_transpose2d conv_transpose3d",
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    output_axis=1,
)
LINEAR = _operation("linear", nn.Linear, output_axis=0)
EMBEDDING = _operation("embedding", nn.Embedding, output_axis=1)

WEIGHTED = (CONVOLUTION, TRANSPOSED_CONVOLUTION, LINEAR, EMBEDDING)

# Activations

ACTIVATIONS = (
    _activation("relu", nn.ReLU, quantizable=True, not_negative=True),
    _activation("relu6", nn.ReLU6, quantizable=True, not_negative=True),
    _activation("celu", nn.CELU),
    _activation("elu", nn.ELU),
    _activation("gelu", nn.GELU),
    _activation("hardshrink", nn.Hardshrink),
    _activation("hardsigmoid", nn.Hardsigmoid, not_negative=True),
    _activation("hardswish", nn.Hardswish),
    _activation("hardtanh", nn.Hardtanh),
    _activation("leaky_relu", nn.LeakyReLU),
    _activation("logsigmoid", nn.LogSigmoid),
    _activation("mish", nn.Mish),
    _activation("prelu", nn.PReLU),
    _activation("rrelu", nn.RReLU, repeatable=False),
    _activation("selu", nn.SELU),
    _activation("sigmoid", nn.Sigmoid, not_negative=True),
    _activation("silu", nn.SiLU),
    _activation("softplus", nn.Softplus, not_negative=True),
    _activation("softshrink", nn.Softshrink),
    _activation("softsign", nn.Softsign),
    _activation("tanh", nn.Tanh),
    _activation("tanhshrink", nn.Tanhshrink),
    _activation("threshold", nn.Threshold),
)
QUANTIZABLE_ACTIVATIONS = tuple(activation for activation in ACTIVATIONS if activation.quantizable)

# What lies between a layer and its activation

# torch's own base class: `nn.SyncBatchNorm` is a batch normalization too, and no subclass of `nn.BatchNorm2d`.
BATCH_NORM = _operation("batch_norm", _BatchNorm, keeps_channels=True, repeatable=False)
INSTANCE_NORM = _operation(
    "instance_norm",
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    keeps_channels=True,
    repeatable=False,
)
GROUP_NORM = _operation("group_norm", nn.GroupNorm, keeps_channels=True)
DROPOUT = _operation(
    "dropout dropout1d dropout2d dropout3d",
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    keeps_channels=True,
    repeatable=False,
)
MAX_POOL = _operation(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    keeps_channels=True,
)
AVERAGE_POOL = _operation(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    keeps_channels=True,
)
IDENTITY = Operation((nn.Identity,), keeps_channels=True)

# What takes several tensors

SUM = Operation((), (torch.add, operator.add, operator.iadd), ("add", "add_"), in_place=(operator.iadd, "add_"))

OPERATIONS = (
    *WEIGHTED,
    *ACTIVATIONS,
    *(BATCH_NORM, INSTANCE_NORM, GROUP_NORM, DROPOUT, MAX_POOL, AVERAGE_POOL, IDENTITY),
    SUM,
)

FUSED_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""torch's own layers that call their attribute `activation` inside, where nothing can be put in its place."""

_BY_CLASS = {cls: operation for operation in OPERATIONS for cls in operation.modules}
# By identity: who asks may hold anything that can be called, and not all of that can be hashed.
_BY_FUNCTION = {id(function): operation for operation in OPERATIONS for function in operation.functions}
_BY_METHOD = {method: operation for operation in OPERATIONS for method in operation.methods}


def operation_of(what: object) -> Operation | None:
    """What a module, a function or, by its name, a method of tensors does; None for what is not in the vocabulary.

    >>> operation_of(nn.Conv2d(1, 1, 1)) is CONVOLUTION
    True
    >>> operation_of("relu_") is operation_of(nn.ReLU()) is operation_of(torch.relu)
    True
    """
    if isinstance(what, Module):
        return next((_BY_CLASS[cls] for cls in type(what).__mro__ if cls in _BY_CLASS), None)
    return _BY_METHOD.get(what) if isinstance(what, str) else _BY_FUNCTION.get(id(what))
