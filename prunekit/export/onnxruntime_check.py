"""An ONNX file in onnxruntime, compared with the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunekit.errors import PrunekitError
from prunekit.export.compressed import Compressed

FLOAT_TOLERANCE = 1e-4
"""How far outputs may be apart, as a fraction of the largest, where only weights are quantized."""
LEVEL_TOLERANCE = 0.05
"""How far they may be apart on average, as a fraction of their standard deviation, where activations are: one that
lies in the middle between two levels may become either, since onnxruntime adds in another order."""


@dataclass(frozen=True)
class Agreement:
    """How the file's outputs in onnxruntime compare with the model's, on real inputs.

    Attributes:
        largest: difference.
        mean: difference, as a fraction of the outputs' standard deviation.
        same: how many inputs get the same class; None where outputs are no scores of classes.
        of: how many inputs there were.
        seconds: of one forward pass on one thread: `this file` in onnxruntime; `its float model` there, if anything is
            quantized; `torch`, of floats.
    """

    largest: float
    mean: float
    same: int | None
    of: int
    seconds: Mapping[str, float]


def compare(model: Compressed, proto: Any, *, quantized: bool) -> Agreement:
    """The file's outputs against the model's; `quantized`: activations are, so that outputs may differ by a level.

    Raises:
        PrunekitError: onnxruntime can't run the file, or gives something else.
    """
    try:
        got = [torch.from_numpy(array) for array in forward_pass(proto, model)()]
    except PrunekitError:
        raise
    except Exception as error:
        raise PrunekitError(f"onnxruntime can't run what came of the model: {error}") from error
    expected = [value.detach().cpu() for value in tree_leaves(model.outputs) if isinstance(value, Tensor)]
    if [tuple(tensor.shape) for tensor in got] != [tuple(tensor.shape) for tensor in expected]:
        raise PrunekitError("onnxruntime gives outputs of other shapes than the model")
    one, other = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (got, expected))
    apart = (one - other).abs()
    largest, mean = float(apart.max()), float(apart.mean() / other.std().clamp(min=1e-30))
    limit = FLOAT_TOLERANCE * float(other.abs().max())
    if not (mean <= LEVEL_TOLERANCE if quantized else largest <= limit):
        allowed = f"{LEVEL_TOLERANCE:g} standard deviations on average" if quantized else f"{limit:.3g}"
        raise PrunekitError(
            f"onnxruntime's outputs are up to {largest:.3g} from the model's, on average {mean:.3g} standard "
            f"deviations; allowed are {allowed}"
        )
    first = expected[0]
    same = int((got[0].argmax(1) == first.argmax(1)).sum()) if len(expected) == 1 and first.dim() == 2 else None
    return Agreement(largest, mean, same, len(first) if first.dim() else 1, {})


def forward_pass(proto: Any, model: Compressed) -> Callable[[], list[Any]]:
    """A forward pass in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = [value for value in tree_leaves(model.inputs) if isinstance(value, Tensor)]
    feed = {put.name: value.detach().cpu().numpy() for put, value in zip(session.get_inputs(), given, strict=True)}
    return lambda: cast(list[Any], session.run(None, feed))
