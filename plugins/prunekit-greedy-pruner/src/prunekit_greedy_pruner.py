"""Greedy pruning: filters go step by step, each time from the layer where the model's output suffers least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from prunekit import ArgumentError, hookimpl
from prunekit.components import Context, PositiveInt, Selectors
from prunekit.model import Parameters, unwrapped
from prunekit.pruning import FixedSparsity, Units, is_distributed, prune_count

Step = PositiveInt | Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Error = Callable[[Tensor, Tensor], Tensor]


def squared_difference(output: Tensor, reference: Tensor) -> Tensor:
    """The mean squared difference."""
    return (output - reference).square().mean()


def divergence(output: Tensor, reference: Tensor) -> Tensor:
    """The mean Kullback-Leibler divergence of the class probabilities, dimension 1 of scores, from the reference's."""
    return nn.functional.kl_div(
        output.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True
    ).mean()


ERRORS: Mapping[str, Error] = {"mse": squared_difference, "kl": divergence}


@dataclass(kw_only=True)
class GreedyFilterPruner(FixedSparsity):
    """Prunes filters a few at a time, each time from the layer where the model's output suffers least.

    Abbasi-Asl & Yu 2017, "Structural Compression of Convolutional Neural Networks Based on Greedy Filter Pruning",
    arXiv 1705.07356; Yang et al. 2018, "NetAdapt", arXiv 1804.03230, algorithm 1. Within a layer the filters with the
    smallest L1 norm go first. What suffers is measured without labels: the difference between the outputs of the model
    with and without the filters, in evaluation mode, on inputs that it was given while it trained.

    Args:
        desired_sparsity: the fraction of the weights of all layers together that is to be pruned, 0 to 1. Whole
            filters go, as many as fit in floor(s · n) of n weights; below 1 each layer keeps at least one.
        weights: the weights of the layers, filters along dimension 0.
        step: how many filters of a layer go at a time: a number, or a fraction of those that it has left, rounded up.
        criterion: how outputs are compared: `mse`, their mean squared difference, or `kl`, the divergence of class
            probabilities (scores along dimension 1).
        batches: how many mini-batches of inputs are remembered, the first since the last pruning.
    """

    weights: Selectors
    step: Step = 0.1
    criterion: Literal["mse", "kl"] = "mse"
    batches: PositiveInt = 1
    _inputs: list[Any] = field(default_factory=list, init=False, repr=False)
    _unusable: str | None = field(default=None, init=False, repr=False)

    def check(self, parameters: Mapping[str, Parameter], context: Context) -> Iterator[ArgumentError]:
        """One error for each parameter without filters."""
        for name, weight in parameters.items():
            if weight.dim() < 2:
                message = f"{name!r} has shape {list(weight.shape)} and no filters"
                yield ArgumentError(*context.keys[name], message=message)

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        self._agree()
        inputs, self._inputs = self._inputs, []
        if not inputs:
            context.warn("no input seen, nothing pruned", parameters=list(parameters), unusable=self._unusable)
            return {}
        plan = _Plan.of(parameters, self.sparsity(context), self.step)
        with _evaluating(context.model):
            trial = _Trial.of(context.model, parameters, inputs, ERRORS[self.criterion])
            if not all(trial.outputs):
                context.warn("the model returns no floating tensor, nothing pruned", parameters=list(parameters))
                return {}
            while steps := plan.steps():
                errors = {name: trial.error({**plan.gone, name: count}, plan) for name, count in steps.items()}
                best = min(errors, key=lambda name: errors[name])
                plan.gone[best] = steps[best]
        return {name: plan.mask(name, count) for name, count in plan.gone.items() if count}

    # What the model is given

    def listen(self, parameters: Mapping[str, Parameter], context: Context) -> Iterable[RemovableHandle]:
        """A hook on the model as it is called."""
        yield context.model.register_forward_pre_hook(self._hear, with_kwargs=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled model calls it before its graph
    @torch.no_grad()
    def _hear(self, model: Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Remember the first mini-batches of training."""
        if model.training and len(self._inputs) < self.batches:
            self._unusable = _unusable([inputs, keywords])
            if self._unusable is None:
                self._inputs.append(_copied([inputs, keywords]))

    @hookimpl
    def on_epoch_end(self) -> None:
        """All ranks remember the same between epochs, whichever of them writes the checkpoint."""
        self._agree()

    def _agree(self) -> None:
        """All ranks take the first one's inputs."""
        if is_distributed():
            remembered = [_copied(self._inputs, "cpu")]
            distributed.broadcast_object_list(remembered, src=0)
            self._inputs = remembered[0]

    def state_dict(self) -> dict[str, Any]:
        """The inputs that are remembered: positional and named, for each mini-batch."""
        return {"inputs": list(self._inputs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the inputs of `state_dict()`."""
        self._inputs = list(state["inputs"])


@dataclass
class _Plan:
    """How many filters of each layer are gone, in the order in which they go, and how many more may go.

    Attributes:
        order: layer -> its filters, those that go first in front.
        sizes: layer -> how many weights a filter has.
        gone: layer -> how many filters are gone.
        budget: how many weights may be gone.
        spare: how many filters each layer keeps at least.
        step: how many go at a time.
        weights: layer -> its weights.
    """

    order: dict[str, Tensor]
    sizes: dict[str, int]
    gone: dict[str, int]
    budget: int
    spare: int
    step: int | float
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], sparsity: float, step: int | float) -> _Plan:
        """A plan in which the filters that are zero already are gone, as far as the budget goes."""
        norms = {name: Units(0).groups(w).l1(w.detach()) for name, w in weights.items()}
        order = {name: norm.argsort(stable=True) for name, norm in norms.items()}
        sizes = {name: w.numel() // max(len(w), 1) for name, w in weights.items()}
        budget = math.floor(sparsity * sum(w.numel() for w in weights.values()))
        plan = cls(order, sizes, dict.fromkeys(weights, 0), budget, int(sparsity < 1), step, weights)
        for name, norm in norms.items():
            plan.gone[name] = min(int((norm == 0).sum()), plan.room(name))
        return plan

    def room(self, name: str) -> int:
        """How many more filters of a layer may go."""
        gone = sum(self.sizes[other] * count for other, count in self.gone.items())
        left = len(self.order[name]) - self.gone[name] - self.spare
        return max(0, min(left, (self.budget - gone) // max(self.sizes[name], 1)))

    def steps(self) -> dict[str, int]:
        """Layer -> how many of its filters would be gone after one step more, for the layers where one is possible."""
        return {
            name: self.gone[name] + min(self._at_a_time(name), room) for name in self.order if (room := self.room(name))
        }

    def mask(self, name: str, count: int) -> Tensor:
        """The mask of a layer of which so many filters are gone."""
        weight = self.weights[name]
        places = torch.empty_like(self.order[name], dtype=torch.float32)
        places[self.order[name]] = torch.arange(len(places), device=places.device, dtype=torch.float32)
        return Units(0).groups(weight).spread(prune_count(places, count).to(weight.device))

    def _at_a_time(self, name: str) -> int:
        if isinstance(self.step, int):
            return self.step
        return math.ceil(self.step * (len(self.order[name]) - self.gone[name]))


@dataclass
class _Trial:
    """The model without some filters against the model as it is.

    Attributes:
        model: without what wraps it.
        names: parameter -> its names in that model.
        inputs: positional and named arguments of each mini-batch.
        outputs: what the model as it is makes of each.
        compare: how an output differs from one of these.
    """

    model: Module
    names: Mapping[str, list[str]]
    inputs: list[Any]
    outputs: list[list[Tensor]]
    compare: Error
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: Module, parameters: Iterable[str], inputs: list[Any], compare: Error) -> _Trial:
        inner = unwrapped(model)[1]
        weights = Parameters.of(model).by_name
        raw = list(inner.named_parameters(remove_duplicate=False))
        names = {name: [other for other, parameter in raw if parameter is weights[name]] for name in parameters}
        device = next((parameter.device for parameter in weights.values()), torch.device("cpu"))
        trial = cls(inner, names, _copied(inputs, device), [], compare, weights)
        trial.outputs = [trial._run({}, batch) for batch in trial.inputs]
        return trial

    def error(self, gone: Mapping[str, int], plan: _Plan) -> float:
        """How far the outputs are off without these filters, on average; infinite where they are not finite."""
        changed = {
            raw: self.weights[name] * plan.mask(name, count)
            for name, count in gone.items()
            if count
            for raw in self.names[name]
        }
        errors = [
            self.compare(output, reference).double()
            for batch, references in zip(self.inputs, self.outputs, strict=True)
            for output, reference in zip(self._run(changed, batch), references, strict=True)
        ]
        error = torch.stack(errors).mean()
        if is_distributed():
            distributed.all_reduce(error)  # buffers, such as running statistics, may differ between ranks
        return float(error) if error.isfinite() else math.inf

    def _run(self, changed: Mapping[str, Tensor], batch: Any) -> list[Tensor]:
        inputs, keywords = _copied(batch)  # a model may work in place
        outputs = functional_call(self.model, dict(changed), inputs, keywords)
        return [output.float() for output in _tensors(outputs) if output.is_floating_point()]


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """In evaluation mode, without gradients; modes and random numbers are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a model returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _copied(value: Any, device: Any = None) -> Any:
    """Tensors, and lists, tuples and dicts of them, as copies."""
    if isinstance(value, Tensor):
        return value.detach().clone() if device is None else value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item, device) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _unusable(value: Any) -> str | None:
    """The type of what can't be part of a checkpoint: anything but tensors, plain values and collections of them."""
    if isinstance(value, Mapping | list | tuple):
        items = value.values() if isinstance(value, Mapping) else value
        return next((found for item in items if (found := _unusable(item)) is not None), None)
    return None if value is None or isinstance(value, Tensor | str | bool | int | float) else type(value).__name__
