"""PACT: activations are clipped at a value that training finds, and quantized below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from prunekit_dorefa_quantizer import DorefaQuantizer, straight_through
from torch import Tensor, distributed
from torch.nn import Parameter

from prunekit import hookimpl
from prunekit.components import Context, NonNegative, Positive
from prunekit.pruning import is_distributed
from prunekit.quantization import Levels


@dataclass(kw_only=True)
class PACTQuantizer(DorefaQuantizer):
    """Quantizes activations between 0 and a learned clipping value α, one for each activation; weights as DoReFa does.

    Choi et al. 2018, arXiv 1805.06085: y = clip(a, 0, α), rounded to 2^k - 1 steps of α (equations 1 and 2); the
    gradient is that of a below α, and all of it goes to α from there on (equation 3).

    Args:
        act_clip_init_val: α at the start, above 0.
        act_clip_decay: the weight decay of α; none, and it is the optimizer's own.
    """

    act_clip_init_val: Positive = 8.0
    act_clip_decay: NonNegative | None = None
    _clips: dict[str, Parameter] = field(default_factory=dict, init=False, repr=False)

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        clip = self._clip(name, output.device).to(output.device)
        clipped = torch.where(output >= clip, clip.to(output.dtype), output)
        scale = (2 ** context.activations[name] - 1) / clip.detach()
        return straight_through(clipped, ((clipped.detach() * scale).round() / scale).to(output.dtype))

    @hookimpl
    def before_parameter_optimization(self) -> None:
        """Processes that train one model together step with the mean of their gradients, as they do of the model's."""
        if not is_distributed():
            return
        clips = list(self._clips.values())
        own = [torch.zeros_like(clip) if clip.grad is None else clip.grad for clip in clips]
        means = torch.cat(own) / distributed.get_world_size()
        distributed.all_reduce(means)
        for clip, gradient in zip(clips, means, strict=True):
            clip.grad = gradient.reshape(1)

    def levels(self, name: str, context: Context) -> Levels | None:
        """From 0 to the clipping value."""
        steps = 2 ** context.activations[name] - 1
        return Levels(float(self._clips[name]) / steps, 0, 0, steps) if name in self._clips else None

    def parameter_group(self, activations: Sequence[str], device: torch.device) -> Mapping[str, Any]:
        decay = {} if self.act_clip_decay is None else {"weight_decay": self.act_clip_decay}
        return {"params": [self._clip(name, device) for name in activations], **decay}

    def state_dict(self) -> dict[str, Any]:
        """The clipping value of each activation."""
        return {"clips": {name: clip.detach().clone() for name, clip in self._clips.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the values of `state_dict()`."""
        for name, value in state["clips"].items():
            self._clip(name, value.device).data.copy_(value)

    def _clip(self, name: str, device: torch.device) -> Parameter:
        if name not in self._clips:
            self._clips[name] = Parameter(torch.full((1,), self.act_clip_init_val, device=device))
        return self._clips[name]
