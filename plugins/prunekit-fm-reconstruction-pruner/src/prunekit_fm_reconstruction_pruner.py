"""Channel pruning by feature-map reconstruction: what the pruned channels did, the kept ones learn to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from prunekit import ArgumentError, Progress, hookimpl
from prunekit.components import Context, PositiveInt, Probability
from prunekit.model import CONVOLUTION, operation_of, owners
from prunekit.pruning import RANKING, FixedSparsity, Groups, RankedPruner, RankingName, RankSums, generator_at, widened


@dataclass(kw_only=True)
class FMReconstructionChannelPruner(FixedSparsity, RankedPruner):
    """Prunes input channels of convolutions, and fits the weights of the others to the layer's output, at once.

    He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168, equation 1: of the
    channels those with the smallest magnitude go, and the kept weights W become the least-squares solution of
    min ||Y - X W||², without intercept. X are patches of the layer's input, drawn from the mini-batches since the last
    pruning, and Y what the layer as it is makes of them, without its bias.

    Args:
        weights: the weights of convolutions without groups, each ranked by itself unless `group_dependency` says
            otherwise.
        group_type: `Channels`, the input channels; nothing else.
        magnitude_fn: the magnitude of a channel: `l1` or `l2`, each over the number of its weights, or an installed
            ranking.
        ranking_noise: the probability with which a magnitude is multiplied by a draw from N(0, 1).
        samples: how many patches are drawn from each mini-batch, on each rank.
        phase: which forward passes are drawn from: `training` (the model is in training mode), `evaluation` or `all`.
        seed: of the draws; the same after a resume.
    """

    group_type: Literal["Channels"] = "Channels"
    granularity: None = field(default=None, init=False)
    kwargs: None = field(default=None, init=False)
    noise: float = field(default=0, init=False, repr=False)
    magnitude_fn: RankingName = "l1"
    ranking_noise: Probability = 0
    samples: PositiveInt = 128
    phase: Literal["all", "training", "evaluation"] = "training"
    _sums: RankSums = field(default_factory=RankSums, init=False, repr=False)
    _draws: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[str, Parameter] = field(default_factory=dict, init=False, repr=False)
    _model: Module | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.noise = self.ranking_noise
        super().__post_init__()

    def scores(self, name: str, weight: Tensor, groups: Groups, context: Context) -> Tensor:
        return RANKING.of(self.magnitude_fn, "magnitude_fn")(weight, groups)

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """Besides what every ranked pruner refuses: what is no convolution, and convolutions with groups."""
        yield from super().check(parameters, context)
        modules = owners(context.model)
        for name, weight in parameters.items():
            owner, what = modules[name], None
            is_convolution = operation_of(owner) is CONVOLUTION
            if not is_convolution and weight.dim() > 1:
                what = f"belongs to a {type(owner).__name__}, which is no convolution"
            elif is_convolution and owner.groups != 1:
                what = f"belongs to a convolution in {owner.groups} groups: an input channel reaches some outputs only"
            if what is not None:
                yield ArgumentError(*context.keys[name], message=f"{name!r} {what}")

    # What the layers are given

    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        """A hook on each convolution."""
        self._weights, self._model = dict(parameters), context.model
        modules = owners(context.model)
        for name in parameters:
            yield modules[name].register_forward_hook(partial(self._hear, name))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled model calls it between two of its graphs
    @torch.no_grad()
    def _hear(self, name: str, convolution: Module, inputs: Any, output: Any) -> None:
        """Draw patches from a layer's input; what is remembered of them is Xᵀ X."""
        assert self._model is not None
        counts = self.phase == "all" or (self.phase == "training") == self._model.training
        if not counts or not isinstance(output, Tensor) or not output.numel():
            return
        drawn = self._draws[name] = self._draws.get(name, 0) + 1
        generator = generator_at(self.seed, Progress(drawn), name)
        found = widened(patches(convolution, inputs[0].detach(), self.samples, generator))
        self._sums.add(name, found.mT @ found)

    @hookimpl
    def on_epoch_end(self) -> None:
        """All ranks remember the same between epochs, whichever of them writes the checkpoint."""
        self._agree(self._weights)

    def _agree(self, parameters: Mapping[str, Parameter]) -> None:
        """Add what this rank has seen, and all others, to what they agree on."""
        for name, weight in parameters.items():
            size = math.prod(weight.shape[1:])
            self._sums.agree(name, [size, size], weight.device)

    # What comes of it

    def reconstruct(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor], context: Context
    ) -> Mapping[str, Tensor]:
        """The weights with which the kept channels come closest to the output of all."""
        self._agree(parameters)
        agreed = self._sums.take()
        silent = [name for name in masks if name not in agreed or not agreed[name].any()]
        if silent:
            context.warn("no input seen, weights not reconstructed", parameters=silent, phase=self.phase)
        wild = [name for name in masks if name not in silent and not agreed[name].isfinite().all()]
        if wild:
            context.warn("input not finite, weights not reconstructed", parameters=wild)
        return {
            name: reconstructed(parameters[name].detach(), mask, agreed[name])
            for name, mask in masks.items()
            if name not in (*silent, *wild)
        }

    def state_dict(self) -> dict[str, Any]:
        """Per parameter Xᵀ X of the patches since the last pruning, of this rank and of all, and how often it drew."""
        return {"sums": self._sums.state_dict(), "draws": dict(self._draws)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the memory of `state_dict()`."""
        self._sums.load_state_dict(state["sums"])
        self._draws = dict(state["draws"])


def patches(convolution: Any, images: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Patches of a convolution's input, each what one output position sees: [number, channels * kernel].

    Drawn with replacement; all there are, in order, where that is no more than `number`.
    """
    size, stride, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
    spatial = range(len(size))
    images = images if images.dim() == len(size) + 2 else images[None]
    pads = [pad for d in reversed(spatial) for pad in _padding(convolution, d)]
    if any(pads):
        mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
        images = nn.functional.pad(images, pads, mode)
    for d in spatial:
        images = images.unfold(2 + d, dilation[d] * (size[d] - 1) + 1, stride[d])
    places = (len(images), *images.shape[2 : 2 + len(size)])
    total = math.prod(places)
    drawn = torch.arange(total) if total <= number else torch.randint(total, (number,), generator=generator)
    image, *position = torch.unravel_index(drawn.to(images.device), places)
    where: tuple[Any, ...] = (image, slice(None), *position)
    found = images[where]
    for d in spatial:
        found = found.index_select(2 + d, torch.arange(size[d], device=found.device) * dilation[d])
    return found.reshape(len(found), -1)


def reconstructed(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """A convolution's weight [out, in, …] with the kept input channels fitted to the output that it gives now.

    With the patches X = [K P], kept and pruned columns, and the weights alike, K (W_k + D) = K W_k + P W_p in the sense
    of least squares: Kᵀ K D = Kᵀ P W_p. Of several solutions D is the smallest, so that weights about which the patches
    say nothing stay as they are. The weights of pruned channels stay too.
    """
    kept = mask[0].reshape(-1).cpu()
    if kept.all() or not kept.any():
        return weight
    gram, flat = gram.cpu().double(), weight.reshape(len(weight), -1).cpu().double().clone()
    wanted = gram[kept][:, ~kept] @ flat[:, ~kept].mT
    # Not lstsq: of a matrix without full rank its answer differs from call to call (driver gelsy).
    flat[:, kept] += (torch.linalg.pinv(gram[kept][:, kept], hermitian=True) @ wanted).mT
    return flat.reshape(weight.shape).to(weight)


def _padding(convolution: Any, d: int) -> tuple[int, int]:
    """How much is padded before and after along a dimension."""
    if convolution.padding == "valid":
        return 0, 0
    if convolution.padding == "same":
        total = convolution.dilation[d] * (convolution.kernel_size[d] - 1)
        return total // 2, total - total // 2
    return convolution.padding[d], convolution.padding[d]
