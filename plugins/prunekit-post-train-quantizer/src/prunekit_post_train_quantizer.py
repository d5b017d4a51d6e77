"""Post-training range-linear quantization: integers over the ranges that a trained model is seen to use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from prunekit_range_linear_quantizer import Linear, Mode, linear, weight_numbers
from torch import Tensor, distributed

from prunekit import ArgumentError, Progress, hookimpl
from prunekit.components import Context, Positive
from prunekit.quantization import INPUT, Bits, BitsQuantizer, Integers, Levels, ModuleBits, Quantizable

# What is remembered of an activation: over samples, their number, the sums of their least and of their largest values;
# over elements, their number, their sum, that of their squares; the least and the largest.
_SAMPLES, _LOWS, _HIGHS, _NUMBER, _SUM, _SQUARES, _LOW, _HIGH = range(8)
_NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float("inf"), float("-inf"))


@dataclass(kw_only=True)
class PostTrainLinearQuantizer(BitsQuantizer):
    """Rounds weights and what layers give to integers over ranges that are looked at, not trained.

    Krishnamoorthi 2018, arXiv 1806.08342, section 3; the arithmetic is that of Jacob et al. 2017, arXiv 1712.05877,
    section 2. With scale s and zero point z a value becomes (clamp(round(s · x - z)) + z) / s, clamped to the integers
    of its bits; 0 is always among the values. A weight's range is its own. The range of what a linear layer, a
    convolution, an embedding, an activation or a sum of two tensors gives, and of the model's inputs, comes from
    batches that `prunekit quantize` shows it, or in a schedule from the training batches of the epoch: training goes on
    in floats, evaluation is quantized. What goes to a ReLU and nowhere else is rounded behind the ReLU, once.

    Args:
        bits_activations: of the model's inputs and of what layers, activations and sums of two tensors give; none
            leaves them alone.
        bits_weights: of the weights of linear layers, convolutions and embeddings; none leaves them alone.
        bits_parameters: the same as `bits_weights`, as the reference spells it.
        bits_accum: of sums. Sums are floats here, so only 32, the reference's default, is taken.
        mode: `SYMMETRIC` spans -m … m of the largest magnitude m, `SYMMETRIC_RESTRICTED` with one integer less, so that
            there are as many below 0 as above; `ASYMMETRIC_…` spans from the least to the largest value and 0, in
            integers that are `SIGNED` or `UNSIGNED`.
        per_channel_wts: a range for each output channel (dimension 0) of a weight in place of one for the tensor.
        clip_acts: an activation's range. `NONE`: from the least to the largest value seen; `AVG`: from the average of
            each sample's least value to that of its largest; `N_STD`: `clip_n_stds` standard deviations around the
            mean, and no further than the least and the largest value.
        clip_n_stds: how many, above 0; for `N_STD`.
    """

    bits_activations: Bits = 8
    bits_weights: Bits = 8
    bits_parameters: Bits = None
    bits_accum: Literal[32] = 32
    mode: Mode = "SYMMETRIC"
    per_channel_wts: bool = False
    clip_acts: Literal["NONE", "AVG", "N_STD"] = "NONE"
    clip_n_stds: Positive | None = None
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _looking: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.clip_acts == "N_STD") != (self.clip_n_stds is not None):
            raise ArgumentError("clip_n_stds", message="goes with clip_acts: N_STD, and that needs it")
        if self.bits_parameters is not None:
            self.bits_weights = self.bits_parameters

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        plan = super().bits(_with_outputs(modules))
        before = {name for name in plan if modules[name].before_relu and not self._asked_for(plan[name])}
        plan = {name: replace(bits, activations=None) if name in before else bits for name, bits in plan.items()}
        return {name: bits for name, bits in plan.items() if bits.weights or bits.activations or bits.bias}

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterator[ArgumentError]:
        yield from super().check_bits(_with_outputs(modules))

    # torch.compile fails where it meets the model, whose mode counts here, by a second way.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        if self._floats(context) or not weight.numel():
            return weight
        values, bits = weight.detach(), context.settings[name]
        numbers = weight_numbers(self.mode, bits, values, self.per_channel_wts)
        return self._back(numbers, self._whole(numbers, bits, values)) + (weight - values)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        if self._floats(context):
            self._look(name, output.detach())
            return output
        values, bits = output.detach(), context.activations[name]
        numbers = self._numbers(name, context, values)
        rounded = self._back(numbers, self._whole(numbers, bits, values)) + (output - values)
        return torch.where(numbers.scale > 0, rounded, output)

    @hookimpl
    def on_epoch_begin(self) -> None:
        """Look anew: the weights have changed."""
        for seen in self._seen.values():
            seen.copy_(seen.new_tensor(_NOTHING))

    @hookimpl
    def on_minibatch_end(self, progress: Progress) -> None:
        """The last one: processes that train one model together go on with what all of them have seen."""
        if progress.is_last_minibatch and self._seen and distributed.is_available() and distributed.is_initialized():
            together = torch.stack(list(self._seen.values()))
            sums, lows, highs = (together[:, part].contiguous() for part in (slice(_LOW), _LOW, _HIGH))
            distributed.all_reduce(sums)
            distributed.all_reduce(lows, distributed.ReduceOp.MIN)
            distributed.all_reduce(highs, distributed.ReduceOp.MAX)
            together = torch.column_stack([sums, lows, highs])
            self._seen = dict(zip(self._seen, together.unbind(), strict=True))

    @contextmanager
    def calibration(self) -> Iterator[None]:
        """Look at activations, in evaluation too, and quantize nothing."""
        self.on_epoch_begin()
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def integers(self, name: str, weight: Tensor, context: Context) -> Integers | None:
        """Those of a weight's range, or of the ranges of its channels."""
        if not weight.numel():
            return None
        values, bits = weight.detach(), context.settings[name]
        numbers = weight_numbers(self.mode, bits, values, self.per_channel_wts)
        return Integers(self._whole(numbers, bits, values), 1 / numbers.scale, -numbers.zero_point)

    def levels(self, name: str, context: Context) -> Levels | None:
        """All integers of its bits, over the range that was seen."""
        seen = self._seen.get(name)
        if seen is None or not seen[_SAMPLES]:
            return None
        numbers = self._numbers(name, context, seen.new_zeros(0, dtype=torch.float32))
        if not numbers.scale > 0:
            return None
        least, most = _ends(self.mode, context.activations[name])
        return Levels(1 / float(numbers.scale), -int(numbers.zero_point), least, most)

    def state_dict(self) -> dict[str, Any]:
        """What was seen of each activation."""
        return {"seen": {name: tensor.clone() for name, tensor in self._seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._seen = {name: tensor.clone() for name, tensor in state["seen"].items()}

    def _asked_for(self, bits: ModuleBits) -> bool:
        """Whether an override gives what a module gives its bits, and not `bits_activations`."""
        return self._key_of("activations", bits.given_by) != ("bits_activations",)

    def _floats(self, context: Context) -> bool:
        return self._looking or context.model.training

    def _look(self, name: str, values: Tensor) -> None:
        """Add to what was seen in this epoch."""
        if not values.numel():
            return
        samples = (values.flatten(1) if values.dim() > 1 else values.reshape(1, -1)).double()
        lows, highs, number = samples.amin(1), samples.amax(1), samples.new_tensor(samples.numel())
        ends = [samples.new_tensor(len(samples)), lows.sum(), highs.sum()]
        seen = self._seen.setdefault(name, samples.new_tensor(_NOTHING))
        seen[:_LOW] += torch.stack([*ends, number, samples.sum(), samples.square().sum()])
        seen[_LOW] = torch.minimum(seen[_LOW], lows.min())
        seen[_HIGH] = torch.maximum(seen[_HIGH], highs.max())

    def _numbers(self, name: str, context: Context, values: Tensor) -> Linear:
        """Scale and zero point of an activation; of one that was not seen, those of these values.

        The scale of a range without an end is 0: no integers span it.
        """
        low, high = values.aminmax() if values.numel() else (values.new_zeros(()), values.new_zeros(()))
        seen = self._seen.get(name)
        if seen is not None:
            edges = (edge.to(values) for edge in self._range(seen))
            low, high = (torch.where(seen[_SAMPLES] > 0, e, own) for e, own in zip(edges, (low, high), strict=True))
        ends = low.isfinite() & high.isfinite()
        numbers = linear(self.mode, context.activations[name], low.where(ends, 0), high.where(ends, 0))
        return numbers._replace(scale=numbers.scale.where(ends, 0))

    def _range(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        if self.clip_acts == "AVG":
            return seen[_LOWS] / seen[_SAMPLES], seen[_HIGHS] / seen[_SAMPLES]
        if self.clip_n_stds is None:
            return seen[_LOW], seen[_HIGH]
        mean = seen[_SUM] / seen[_NUMBER]
        variance = (seen[_SQUARES] - seen[_NUMBER] * mean.square()) / (seen[_NUMBER] - 1).clamp(min=1)
        away = self.clip_n_stds * variance.clamp(min=0).sqrt()
        return torch.maximum(mean - away, seen[_LOW]), torch.minimum(mean + away, seen[_HIGH])

    def _whole(self, numbers: Linear, bits: int, values: Tensor) -> Tensor:
        return numbers.whole(values).clamp(*_ends(self.mode, bits))

    def _back(self, numbers: Linear, whole: Tensor) -> Tensor:
        return (whole + numbers.zero_point) / numbers.scale


def _ends(mode: Mode, bits: int) -> tuple[int, int]:
    """The least and the largest integer of a mode."""
    if mode == "ASYMMETRIC_UNSIGNED":
        return 0, 2**bits - 1
    most = 2 ** (bits - 1) - 1
    return (-most, most) if mode == "SYMMETRIC_RESTRICTED" else (-most - 1, most)


def _with_outputs(modules: Mapping[str, Quantizable]) -> dict[str, Quantizable]:
    """What layers and sums give, and the model's inputs, can be quantized too."""
    return {
        name: replace(module, activations=module.activations or module.weights or module.adds or name == INPUT)
        for name, module in modules.items()
    }
