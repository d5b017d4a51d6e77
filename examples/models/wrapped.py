"""A module inside another, whose parameters are named `module.…`, as torch's DataParallel names them."""

from torch import Tensor, nn


class Wrapped(nn.Module):
    """Calls `module` and nothing else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """What `module` gives."""
        outputs: Tensor = self.module(inputs)
        return outputs
