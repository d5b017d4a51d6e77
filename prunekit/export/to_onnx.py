"""A model as an ONNX file: weights as whole numbers behind DequantizeLinear, activations through QuantizeLinear.

torch writes the float model with a marker where a quantized weight is read and where an activation is passed on; then
each marker becomes the nodes that quantize. What comes of it is compared with the model in onnxruntime.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunekit.errors import PrunekitError
from prunekit.export.compressed import Compressed, needs
from prunekit.export.measure import seconds
from prunekit.export.numbers import in_half_a_byte, level_type, signed
from prunekit.export.onnxruntime_check import Agreement, compare, forward_pass
from prunekit.model.layers import ACTIVATIONS
from prunekit.quantization.forward import QuantizedForward
from prunekit.quantization.integers import Integers, Levels
from prunekit.training.checkpoint import replace_file

OPSET = 21
"""The first in which QuantizeLinear and DequantizeLinear know 4 and 16 bits."""
_MARK = "prunekit"
_NOT_NEGATIVE = frozenset().union(*(activation.names for activation in ACTIVATIONS if activation.not_negative))


def to_onnx(model: Compressed, path: str | Path, *, timed: bool = True) -> Agreement:
    """Write the model, and compare it with onnxruntime.

    Raises:
        PrunekitError: a library is missing, the model can't be exported, an activation's levels are not known, or
            onnxruntime gives something else; nothing has been written then.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    if model.outputs is None:
        raise PrunekitError("an ONNX file needs inputs to try the model on, and none were given")
    _must_be_float32(model)
    marked = _export(model)
    levels = {name: _known(name, model.levels[name], model) for name in _activations(marked)}
    weights = {str(index): whole for index, whole in enumerate(model.integers.values())}
    names = {str(index): model.names[parameter][0] for index, parameter in enumerate(model.integers)}
    # A copy, because the graph is changed, and the float model is made of the same one.
    proto = _Graph(_copy(marked), weights, names, levels).quantized()
    agreement = compare(model, proto, quantized=bool(levels))
    if timed:
        forwards = {"this file": forward_pass(proto, model), "torch": lambda: model.model(model.inputs)}
        if model.integers or levels:
            forwards["its float model"] = forward_pass(_Graph(marked, {}, {}, {}).floats(), model)
        agreement = replace(agreement, seconds=seconds(forwards))
    _write(proto, Path(path))
    return agreement


def _must_be_float32(model: Compressed) -> None:
    for parameter, (name, *_) in model.names.items():
        if parameter.dtype != torch.float32:
            raise PrunekitError(f"{name!r} is {parameter.dtype}; ONNX files are made of float32: call model.float()")


# The float model with markers


def _export(model: Compressed) -> Any:
    weights = {p: _Mark("Weight", str(index)) for index, p in enumerate(model.integers)}
    activations = {name: _Mark("Activation", name) for name in model.levels}
    forward = QuantizedForward(model.model)
    # Markers in the place of quantizers: a forward pass only calls them.
    forward.activate(cast(Any, weights), cast(Any, activations), model.catalog)
    try:
        with _quiet():
            return _exported(model)
    except Exception as error:
        raise PrunekitError(f"torch can't export the model to ONNX: {_reason(error)}") from error
    finally:
        forward.clear()


def _reason(error: BaseException) -> str:
    """What torch's own long text says at its bottom: the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@dataclass(frozen=True)
class _Mark:
    """A function that leaves a marker node in the graph."""

    kind: str
    name: str

    def __call__(self, values: Tensor) -> Tensor:
        result: Tensor = torch.onnx.ops.symbolic(
            f"{_MARK}::{self.kind}", (values,), {"of": self.name}, dtype=values.dtype, shape=values.shape, version=1
        )
        return result


def _exported(model: Compressed) -> Any:
    """With a batch of any size where the model allows it."""
    options: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    whole, inputs = _OfInputs(model.model).eval(), {"inputs": model.inputs}
    shapes = tree_map(_any_batch, inputs)
    try:
        program = torch.onnx.export(whole, kwargs=inputs, dynamic_shapes=shapes, **options)
    except Exception:
        program = torch.onnx.export(whole, kwargs=inputs, **options)
    assert program is not None
    return _without_prefix(program.model_proto, "model.")


class _OfInputs(nn.Module):
    """A model whose forward pass has one argument, by that name, whatever stands before the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return self.model(inputs)


def _without_prefix(proto: Any, prefix: str) -> Any:
    """Constants under the names of the model's parameters."""
    graph = proto.graph
    names = {constant.name: constant.name.removeprefix(prefix) for constant in graph.initializer}
    for constant in graph.initializer:
        constant.name = names[constant.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return proto


def _any_batch(value: object) -> dict[int, str] | None:
    # A size of 1 torch takes for a constant.
    return {0: "batch"} if isinstance(value, Tensor) and value.dim() and value.shape[0] > 1 else None


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Markers become nodes


class _Graph:
    """An ONNX model whose markers are to become something else; it is changed."""

    def __init__(
        self, proto: Any, weights: Mapping[str, Integers], names: Mapping[str, str], levels: Mapping[str, Levels]
    ) -> None:
        self.proto, self.weights, self.names, self.levels = proto, weights, names, levels
        self.constants: dict[str, Any] = {}

    def quantized(self) -> Any:
        """Weights and activations as whole numbers."""
        return self._with({"Weight": self._weight, "Activation": self._activation})

    def floats(self) -> Any:
        """The float model."""
        return self._with({"Weight": self._nothing, "Activation": self._nothing})

    def _with(self, makers: Mapping[str, Callable[[Any, str], Sequence[Any]]]) -> Any:
        graph = self.proto.graph
        nodes = [made for node in graph.node for made in self._made(node, makers)]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
        kept = [constant for constant in graph.initializer if constant.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self.constants.values()])
        for entry in [entry for entry in self.proto.opset_import if entry.domain == _MARK]:
            self.proto.opset_import.remove(entry)
        _strip(self.proto)
        return self.proto

    def _made(self, node: Any, makers: Mapping[str, Callable[[Any, str], Sequence[Any]]]) -> Sequence[Any]:
        if node.domain != _MARK:
            return [node]
        return makers[node.op_type](node, _of(node))

    def _nothing(self, node: Any, of: str) -> Sequence[Any]:
        return [self._node("Identity", [node.input[0]], node.output[0])]

    def _weight(self, node: Any, of: str) -> Sequence[Any]:
        """DequantizeLinear of a constant; in half a byte where 16 numbers are enough."""
        import ml_dtypes

        name, whole = self.names[of], self.weights[of]
        half = in_half_a_byte(whole)
        type_ = None if half is None else ml_dtypes.int4 if half.values.dtype == torch.int8 else ml_dtypes.uint4
        whole = half or signed(whole) or whole  # onnxruntime is about twice as fast with int8 weights as with uint8
        axis = [dim for dim in range(whole.scale.dim()) if whole.scale.shape[dim] > 1]
        inputs = [
            self._constant(f"{name}.int", whole.values, type_),
            self._constant(f"{name}.scale", whole.scale.flatten() if axis else whole.scale.reshape(())),
            self._constant(f"{name}.zero_point", whole.zero_point.reshape(-1 if axis else ()), type_),
        ]
        return [self._node("DequantizeLinear", inputs, node.output[0], axis=axis[0] if axis else 0)]

    def _activation(self, node: Any, of: str) -> Sequence[Any]:
        """Clip, where the levels are fewer than the type's, QuantizeLinear and DequantizeLinear."""
        levels, type_ = cast(tuple[Levels, torch.dtype], level_type(self.levels[of]))
        source, nodes, info = node.input[0], [], torch.iinfo(type_)
        if (levels.least, levels.most) != (info.min, info.max):
            ends = [torch.tensor((n - levels.zero_point) * levels.scale) for n in (levels.least, levels.most)]
            edges = [self._constant(f"{of}.{end}", value) for end, value in zip(("least", "most"), ends, strict=True)]
            nodes.append(self._node("Clip", [source, *edges], f"{of}.clipped"))
            source = f"{of}.clipped"
        scale = self._constant(f"{of}.scale", torch.tensor(levels.scale))
        zero_point = self._constant(f"{of}.zero_point", torch.tensor(levels.zero_point, dtype=type_))
        nodes.append(self._node("QuantizeLinear", [source, scale, zero_point], f"{of}.int"))
        nodes.append(self._node("DequantizeLinear", [f"{of}.int", scale, zero_point], node.output[0]))
        return nodes

    def _constant(self, name: str, values: Tensor, type_: Any = None) -> str:
        from onnx import numpy_helper

        array = values.detach().cpu().numpy()
        self.constants[name] = numpy_helper.from_array(array if type_ is None else array.astype(type_), name)
        return name

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
        from onnx import helper

        return helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes)


def _activations(marked: Any) -> list[str]:
    """The activations that the model's forward pass meets."""
    nodes = [node for node in marked.graph.node if node.domain == _MARK and node.op_type == "Activation"]
    return list(dict.fromkeys(_of(node) for node in nodes))


def _of(node: Any) -> str:
    """Whom a marker stands for."""
    text: str = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "of")
    return text


def _strip(proto: Any) -> None:
    """Take away what torch notes for debugging: source lines and paths of this machine."""
    graph = proto.graph
    del graph.value_info[:], proto.metadata_props[:], graph.metadata_props[:]
    for part in [*graph.node, *graph.input, *graph.output, *graph.initializer]:
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _known(name: str, levels: Levels | None, model: Compressed) -> Levels:
    """An activation's levels; those below 0 are left out where the activation is never negative."""
    if levels is None:
        raise PrunekitError(
            f"what the activation {name!r} gives is not known as evenly spaced levels: its quantizer does not say, or "
            "has seen no inputs yet; ONNX needs them, safetensors does not"
        )
    kind = model.catalog.quantizable[name].kind if name in model.catalog.quantizable else ""
    if kind in _NOT_NEGATIVE:
        levels = Levels(levels.scale, levels.zero_point, max(levels.least, levels.zero_point), levels.most)
    if level_type(levels) is None:
        number = levels.most - levels.least + 1
        raise PrunekitError(f"the activation {name!r} has {number} levels; QuantizeLinear has at most 65536")
    return levels


def _copy(proto: Any) -> Any:
    same = type(proto)()
    same.CopyFrom(proto)
    return same


def _write(proto: Any, path: Path) -> None:
    replace_file(path, lambda file: file.write_bytes(proto.SerializeToString()))
