"""A model as a safetensors file: floats as the forward pass uses them, or whole numbers with scales."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunekit.export.compressed import Compressed, needs
from prunekit.export.numbers import restored
from prunekit.quantization.integers import Integers
from prunekit.training.checkpoint import replace_file

INT, SCALE, ZERO_POINT = ".int", ".scale", ".zero_point"


def to_safetensors(model: Compressed, path: str | Path, *, integers: bool = False) -> None:
    """Write the model's state under its own names: `model.load_state_dict(load_file(path))` takes it.

    With `integers` the quantized weights are stored as whole numbers in place of floats: `NAME.int` in the smallest
    type, `NAME.scale`, `NAME.zero_point`, and NAME is `(int - zero_point) * scale`; `from_safetensors` reads that.

    Raises:
        PrunekitError: safetensors is not installed.
    """
    needs("safetensors")
    from safetensors.torch import save_file

    state = {name: value.detach().cpu() for name, value in model.model.state_dict().items()}
    for name, whole in model.by_name.items() if integers else ():
        state.pop(name)
        state |= {name + INT: whole.values, name + SCALE: whole.scale, name + ZERO_POINT: whole.zero_point}
    own = {name: value.cpu().contiguous().clone() for name, value in state.items()}  # tied ones share memory
    replace_file(Path(path), lambda file: save_file(own, file, metadata={"format": "pt"}))


def from_safetensors(path: str | Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state for `load_state_dict`, the weights that are stored as whole numbers made of these."""
    needs("safetensors")
    from safetensors.torch import load_file

    state: dict[str, Tensor] = load_file(path)
    for name in [
        key.removesuffix(INT) for key in state if key.endswith(INT) and key.removesuffix(INT) + SCALE in state
    ]:
        state[name] = restored(Integers(*(state.pop(name + part) for part in (INT, SCALE, ZERO_POINT))), dtype)
    return state
