"""What torch.compile and data parallelism wrap around a model."""

from __future__ import annotations

from torch import nn
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: Module) -> tuple[str, Module]:
    """The prefix that wrappers put before the names of a model's modules, and the model within them."""
    prefix = ""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), Module):
            prefix, model = f"{prefix}_orig_mod.", model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | DistributedDataParallel):
            prefix, model = f"{prefix}module.", model.module
        else:
            return prefix, model
