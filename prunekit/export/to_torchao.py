"""A model's state with its weights in torchao's own quantized tensors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from prunekit.errors import PrunekitError
from prunekit.export.compressed import Compressed, needs
from prunekit.export.numbers import signed
from prunekit.quantization.integers import Integers
from prunekit.training.checkpoint import replace_file

_KINDS = (nn.Linear, nn.Conv2d, nn.Embedding)
"""The layers for which torchao has the arithmetic."""


def to_torchao(model: Compressed, path: str | Path) -> dict[str, str]:
    """Write the state: `model.load_state_dict(torch.load(path), assign=True)` takes it, after `import torchao`.

    A weight whose numbers fit a byte becomes an `Int8Tensor` (a linear layer's with zero point 0) or an
    `IntxUnpackedToInt8Tensor`; all others are floats as the forward pass uses them.

    Returns:
        Parameter -> the type of its tensor, for the quantized ones.

    Raises:
        PrunekitError: torchao is not installed, no weight is quantized or fits, or activations are quantized.
    """
    needs("torchao")
    if model.levels:
        some = next(iter(model.levels))
        raise PrunekitError(
            f"activations are quantized ({some!r} …), and torchao's tensors hold weights alone: the model would not "
            "compute what it was trained to; export it to onnx"
        )
    if not model.integers:
        raise PrunekitError(
            "no weight is quantized, so there is nothing to put into torchao's tensors: prunekit quantize quantizes a "
            "trained model; safetensors and onnx take floats"
        )
    made = tensors(model)
    if not made:
        reasons = ", ".join(f"{name!r} ({_obstacle(model, name, whole)})" for name, whole in model.by_name.items())
        raise PrunekitError(f"torchao has no tensor for any of the quantized weights: {reasons}")
    state = {**{name: value.detach().cpu().clone() for name, value in model.model.state_dict().items()}, **made}
    replace_file(Path(path), lambda file: torch.save(state, file))
    return {name: type(tensor).__name__ for name, tensor in made.items()}


def tensors(model: Compressed) -> dict[str, Tensor]:
    """torchao's tensors by the parameter's name in the state, for the weights that it has one for."""
    numbers = model.by_name
    return {name: _tensor(model, name, whole) for name, whole in numbers.items() if not _obstacle(model, name, whole)}


def quantized_copy(model: Compressed) -> Module:
    """A model of its own, with torchao's tensors in it."""
    from copy import deepcopy

    copy = deepcopy(model.model)
    for name, tensor in tensors(model).items():
        path, _, own = name.rpartition(".")
        setattr(copy.get_submodule(path), own, nn.Parameter(tensor, requires_grad=False))
    return copy


def _obstacle(model: Compressed, name: str, whole: Integers) -> str:
    """Why a weight can't become one of torchao's tensors; empty if it can."""
    path, _, own = name.rpartition(".")
    layer = model.model.get_submodule(path)
    if own != "weight" or not isinstance(layer, _KINDS):
        return f"the {own} of a {type(layer).__name__}"
    if signed(whole) is None:
        return f"{str(whole.values.dtype).removeprefix('torch.')} is wider than a byte"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}"
    return ""


def _types() -> tuple[Any, Any]:
    """torchao's two types; on import it complains about its GPU libraries where there is no GPU."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import IntxUnpackedToInt8Tensor
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
    finally:
        logging.disable(before)
    return Int8Tensor, IntxUnpackedToInt8Tensor


def _tensor(model: Compressed, name: str, whole: Integers) -> Tensor:
    int8, intx = _types()
    layer = model.model.get_submodule(name.rpartition(".")[0])
    whole = signed(whole) or whole
    ones = (1,) * whole.values.dim()
    scale, zero_point = (value.expand(ones) if not value.dim() else value for value in (whole.scale, whole.zero_point))
    block = [size // parts for size, parts in zip(whole.values.shape, scale.shape, strict=True)]
    dtype = model.model.get_parameter(name).dtype
    common: tuple[Any, ...] = (whole.values.clone(), scale.to(dtype).clone())
    if isinstance(layer, nn.Linear) and not bool(zero_point.any()):
        tensor: Tensor = int8(*common, block, dtype, zero_point=zero_point.clone())
    else:
        tensor = intx(*common, zero_point.clone(), torch.int8, tuple(block), dtype, None)
    return tensor
