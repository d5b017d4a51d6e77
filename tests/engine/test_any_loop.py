"""Loops put together at random: model, optimizers, what happens between mini-batches and schedule obey the laws."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import is_not
from typing import Any

import pytest
import torch
from helpers import MLP, Recorder, batches, pruning, through_a_file, window
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.optim import SGD, AdamW, Optimizer

from prunekit import CompressionScheduler, PrunekitError, Trace
from prunekit.model.parameters import Parameters

EPOCHS, BATCHES = 3, 4

# Models: inputs are [16, 12]; each has a layer `fc1`, whose weight has a mask


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.fc2(torch.relu(self.norm(self.fc1(x.view(-1, 3, 2, 2)))).mean((2, 3)))
        return features


class Recurrent(nn.Module):
    """An embedding with sparse gradients before an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.rnn, self.fc2 = nn.Embedding(9, 6, sparse=True), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.float().abs() * 4).long().clamp(max=8)
        logits: Tensor = self.fc2(self.rnn(self.fc1(words))[0][:, -1])
        return logits


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.again, self.fc2 = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.again.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(torch.relu(self.again(torch.relu(self.fc1(x)))))
        return logits


class Parallel(nn.Module):
    """As DataParallel and its like call what they wrap."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits


BARE: dict[str, Callable[[], nn.Module]] = {
    "MLP": MLP,
    "convolution": Convolutional,
    "sparse embedding": Recurrent,
    "tied": Tied,
    "compiled": MLP,
    "wrapped": MLP,
}
AROUND: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "wrapped": Parallel,
}

# Schedules


def quantizing() -> dict[str, Any]:
    policy = {"quantizer": {"instance_name": "q"}, **window(0, EPOCHS)}
    quantizers = {"q": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": None}}
    both = pruning(levels={"fc1.weight": 0.5}, when=window(1, EPOCHS))
    return {**both, "quantizers": quantizers, "policies": [*both["policies"], policy]}


def regularizing() -> dict[str, Any]:
    policy = {"regularizer": {"instance_name": "r", "args": {"keep_mask": True}}, **window(0, 2)}
    regularizers = {"r": {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.05}, "threshold_criteria": "Max"}}
    return {"version": 1, "regularizers": regularizers, "policies": [policy]}


GRADUAL = {"initial_sparsity": 0.1, "final_sparsity": 0.8, "weights": ["fc1.weight"]}
MOVEMENT = {"initial_sparsity": 0.0, "final_sparsity": 0.6, "weights": ["fc1.weight"]}
HIDDEN = {"mask_on_forward_only": True, "use_double_copies": True}
SCHEDULES: dict[str, dict[str, Any]] = {
    "level": pruning(when={"epochs": [1]}),
    "forward only": pruning(when=window(0, 2), args={"mask_on_forward_only": True, "keep_mask": True}),
    "double copies": pruning(when=window(0, EPOCHS), args=HIDDEN),
    "gradual in epochs": pruning("AutomatedGradualPruner", window(0, EPOCHS), **GRADUAL),
    "gradual in steps": pruning(
        "AutomatedGradualPruner", {"starting_step": 1, "ending_step": 6, "frequency": 2}, **GRADUAL
    ),
    "L1": regularizing(),
    "SNIP": pruning("SNIPPruner", {"epochs": [1]}, weights=["fc1.weight"], desired_sparsity=0.5),
    "movement": pruning("MovementPruner", window(0, EPOCHS), args=HIDDEN, **MOVEMENT),
    "level and DoReFa": quantizing(),
}

# Optimizers: how a loop takes a step


def made(parameters: Any, dense: bool) -> Optimizer:
    return AdamW(list(parameters), lr=0.01) if dense else SGD(list(parameters), lr=0.1)


class Loop:
    """A training loop; what it holds is made anew when parameters are."""

    given = True

    def __init__(self, model: nn.Module, dense: bool) -> None:
        self.model, self.dense, self.taken = model, dense, 0
        self.renew()

    def renew(self) -> None:
        self.optimizers = [made(self.model.parameters(), self.dense)]

    def backward(self, loss: Callable[[], Tensor]) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss().backward()

    def step(self, loss: Callable[[], Tensor]) -> None:
        self.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()

    @property
    def offered(self) -> Any:
        return self.optimizers


class Two(Loop):
    def renew(self) -> None:
        parameters = list(self.model.parameters())
        self.optimizers = [made(parameters[:1], self.dense), made(parameters[1:], self.dense)]


class InTurn(Two):
    """As a GAN trains its halves: a forward pass and a step of each, in one mini-batch."""

    def step(self, loss: Callable[[], Tensor]) -> None:
        for optimizer in self.optimizers:
            self.backward(loss)
            optimizer.step()


class Outer(Optimizer):
    """Such as libraries write around another, whose constructor never calls torch's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)


class Wrapping(Loop):
    def renew(self) -> None:
        self.optimizers = [Outer(made(self.model.parameters(), self.dense))]


class Unnamed(Loop):
    """Nobody tells the scheduler of the optimizer."""

    given = False


class Replacing(Loop):
    def step(self, loss: Callable[[], Tensor]) -> None:
        super().step(loss)
        self.taken += 1
        if self.taken % 3 == 0:
            state, _ = self.optimizers[0].state_dict(), self.renew()
            self.optimizers[0].load_state_dict(state)


class Closing(Loop):
    def step(self, loss: Callable[[], Tensor]) -> None:
        def closure() -> float:
            self.optimizers[0].zero_grad()
            (value := loss()).backward()
            return float(value.detach())

        self.optimizers[0].step(closure)


class InBackward(Loop):
    """Each parameter is stepped as soon as its gradient is there."""

    handles: tuple[Any, ...] = ()

    def renew(self) -> None:
        for handle in self.handles:
            handle.remove()
        parameters = list(self.model.parameters())
        self.optimizers = [made([parameter], self.dense) for parameter in parameters]
        steps = [lambda _, optimizer=optimizer: optimizer.step() for optimizer in self.optimizers]
        pairs = zip(parameters, steps, strict=True)
        self.handles = tuple(parameter.register_post_accumulate_grad_hook(step) for parameter, step in pairs)

    def step(self, loss: Callable[[], Tensor]) -> None:
        self.backward(loss)


class Scaling(Loop):
    """The first step overflows and is skipped."""

    def __init__(self, model: nn.Module, dense: bool) -> None:
        super().__init__(model, dense)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    def step(self, loss: Callable[[], Tensor]) -> None:
        self.optimizers[0].zero_grad()
        self.scaler.scale(loss()).backward()
        self.scaler.step(self.optimizers[0])
        self.scaler.update()


class Accumulating(Loop):
    def step(self, loss: Callable[[], Tensor]) -> None:
        if self.taken % 2 == 0:
            self.optimizers[0].zero_grad()
        loss().backward()
        self.taken += 1
        if self.taken % 2 == 0:
            self.optimizers[0].step()


class LineSearch(Loop):
    def renew(self) -> None:
        self.optimizers = [torch.optim.LBFGS(list(self.model.parameters()), lr=0.05, max_iter=3)]

    step = Closing.step


LOOPS: dict[str, type[Loop]] = {
    "one": Loop,
    "two": Two,
    "two in turn": InTurn,
    "a wrapper": Wrapping,
    "found": Unnamed,
    "replaced": Replacing,
    "a closure": Closing,
    "in the backward pass": InBackward,
    "a scaler": Scaling,
    "accumulating": Accumulating,
    "a line search": LineSearch,
}

# What happens between two mini-batches


class Same(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight


def fresh(model: nn.Module) -> dict[str, Tensor]:
    floating = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    return model.state_dict() | {n: torch.rand_like(t) - 0.3 for n, t in floating.items()}


def another_layer(model: nn.Module) -> None:
    former: Any = model.fc1
    model.fc1 = type(former)(
        **{key: getattr(former, key) for key in former.__constants__ if key in SIZES}, **more(former)
    )
    model.fc1.to(former.weight.dtype)
    tie(model)


SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "num_embeddings", "embedding_dim")


def more(layer: Any) -> dict[str, Any]:
    sizes = {key: getattr(layer, key) for key in SIZES if key not in layer.__constants__ and hasattr(layer, key)}
    extra = {"padding": layer.padding} if isinstance(layer, nn.Conv2d) else {}
    return {**sizes, **extra, **({"sparse": True} if isinstance(layer, nn.Embedding) else {})}


def assign(model: nn.Module) -> None:
    model.load_state_dict(fresh(model), assign=True)
    tie(model)


def tie(model: Any) -> None:
    if hasattr(model, "again"):
        model.again.weight = model.fc1._parameters["weight"]  # what it reads may be quantized


def parametrized(model: nn.Module) -> None:
    parametrize.register_parametrization(model.fc1, "weight", Same())


def unparametrized(model: nn.Module) -> None:
    if parametrize.is_parametrized(model.fc1, "weight"):
        parametrize.remove_parametrizations(model.fc1, "weight")


def write(model: nn.Module) -> None:
    Parameters.of(model).by_name["fc1.weight"].data.uniform_(-1, 1)


def swap_data(model: nn.Module) -> None:
    weight = Parameters.of(model).by_name["fc1.weight"]
    weight.data = torch.rand_like(weight) - 0.5


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "load_state_dict": lambda model: model.load_state_dict(fresh(model)),
    "load_state_dict(assign=True)": assign,
    "another layer": another_layer,
    "bfloat16": lambda model: model.bfloat16(),
    "a write through data": write,
    "other data": swap_data,
    "reset_parameters": lambda model: model.fc1.reset_parameters(),
    "a parametrization": parametrized,
    "a parametrization that goes again": lambda model: (parametrized(model), unparametrized(model)),
}
STRUCTURAL = ("another layer", "bfloat16", "a parametrization", "a parametrization that goes again")


@dataclass(frozen=True)
class Case:
    model: str
    loop: str
    change: str
    schedule: str
    moment: int
    """The number of the mini-batch before which it happens, 1 … 11."""
    cut: int
    """The number of the mini-batch before which the run is saved and begun anew."""

    @property
    def is_possible(self) -> bool:
        sparse = self.model == "sparse embedding"
        low = self.change == "bfloat16"
        observing = self.schedule in ("SNIP", "movement")
        return not (
            # torch's own: no LBFGS on sparse gradients, no unscaling of those of 16 bits, no parametrized LSTM or tie
            (sparse and self.loop in ("a line search", "a scaler", "a wrapper"))
            # Gradients that are being accumulated are in no checkpoint.
            or (self.loop == "accumulating" and self.cut % 2)
            or (low and self.loop in ("a scaler", "a line search"))
            # An observer is told that it can't observe.
            or (observing and self.loop == "in the backward pass")
        )


class World:
    """A case that runs."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(3)
        self.case, self.recorder, self.number = case, Recorder(), 0
        self.bare = BARE[case.model]()
        around = AROUND.get(case.model, lambda model: model)
        self.template, self.model = around(BARE[case.model]()), around(self.bare)
        self.loop = LOOPS[case.loop](self.bare, case.model != "sparse embedding")
        given = self.loop.offered if self.loop.given else None
        trace = Trace(logger=self.recorder)
        data = SCHEDULES[case.schedule]
        self.scheduler = CompressionScheduler.from_dict(data, self.model, given, trace=trace)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in Parameters.of(self.model).by_name.items()}

    def change(self) -> None:
        before = list(self.bare.parameters())
        torch.manual_seed(5)
        CHANGES[self.case.change](self.bare)
        self.loop.model = self.bare
        if self.case.change == "bfloat16" or any(map(is_not, self.bare.parameters(), before)):
            self.loop.renew()  # what Adam remembers does not fit any more

    # The laws

    def forward(self, x: Tensor) -> Tensor:
        """The forward pass is that of masked weights."""
        x = x.to(next(self.bare.parameters()).dtype)
        in_force = {name: mask for name, mask in self.scheduler.masks.items() if self.acts}
        logits: Tensor = self.model(x)
        if self.case.schedule != "level and DoReFa":
            masked = {n: w.masked_fill(~in_force[n], 0) if n in in_force else w for n, w in self.weights.items()}
            self.template.to(x.dtype).train(True)
            expected = functional_call(self.template, masked | dict(self.model.named_buffers()), (x,))
            # Batch normalization has counted this batch twice now; its output does not depend on that.
            assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6), "the forward pass sees masks"
        return logits

    @property
    def acts(self) -> bool:
        """Whether the mask is one for this forward pass: a forward-only one is while its policy acts."""
        return self.hidden is False or any(p.window.is_open(self.scheduler.progress) for p in self.scheduler.policies)

    @property
    def hidden(self) -> bool:
        entries = self.scheduler._execution.masks.entries.values()
        return any(entry.only_in_forward for entry in entries)

    def must_be_enforced(self) -> None:
        for name, entry in self.scheduler._execution.masks.entries.items():
            kept = entry.mask if not entry.only_in_forward else entry.kept
            if kept is not None:
                assert not bool(self.weights[name][~kept].any()), "zeros are there after the step"

    def must_be_told(self) -> None:
        lines = self.recorder.events("masks changed", "masks kept", "masks taken")
        last = {name: after for line in lines for name, (_, after) in line["sparsity"].items()}
        if self.case.schedule != "level and DoReFa":  # which makes other zeros of small weights
            assert last == {name: self.scheduler.sparsity(name) for name in last}
        for name in () if self.hidden else last:
            assert torch.equal(self.weights[name] != 0, self.scheduler.masks[name])

    # The run

    def run(self, until: int = EPOCHS * BATCHES) -> None:
        data, scheduler = batches(BATCHES), self.scheduler
        while self.number < until:
            epoch, minibatch = divmod(self.number, BATCHES)
            if self.number == self.case.moment:
                self.change()
            if minibatch == 0:
                scheduler.on_epoch_begin(epoch)
            scheduler.on_minibatch_begin(epoch, minibatch, BATCHES)
            x, y = data[minibatch]

            def loss(x: Tensor = x, y: Tensor = y, e: int = epoch, m: int = minibatch) -> Tensor:
                value = nn.functional.cross_entropy(self.forward(x), y)
                return scheduler.before_backward_pass(e, m, BATCHES, value)  # type: ignore[no-any-return]

            self.loop.step(loss)
            if not isinstance(self.loop, Accumulating) or self.loop.taken % 2 == 0:
                self.must_be_enforced()
            scheduler.on_minibatch_end(epoch, minibatch, BATCHES)
            self.must_be_enforced()
            if minibatch == BATCHES - 1:
                scheduler.on_epoch_end(epoch)
                self.must_be_told()
            self.number += 1

    def parts(self) -> Iterator[Any]:
        yield self.bare
        yield from self.loop.optimizers
        yield self.scheduler
        if isinstance(self.loop, Scaling):
            yield self.loop.scaler

    def saved(self) -> Any:
        return through_a_file([part.state_dict() for part in self.parts()])

    def resumed(self) -> World:
        """Another one that begins from the state of this one."""
        state = self.saved()
        other = World(self.case)
        other.number, other.loop.taken = self.number, self.loop.taken
        if self.number > self.case.moment and self.case.change in STRUCTURAL:
            other.change()
        for part, saved in zip(other.parts(), state, strict=True):
            part.load_state_dict(saved)
        return other


def same(one: World, other: World) -> bool:
    pairs = zip(one.weights.values(), other.weights.values(), strict=True)
    masks = one.scheduler.masks.items()
    return all(torch.equal(a, b) for a, b in pairs) and all(torch.equal(m, other.scheduler.masks[n]) for n, m in masks)


def must_be_free(run: World) -> None:
    """Weights are masked, and nothing of ours is left."""
    for name, mask in run.scheduler.masks.items():
        assert not bool(run.weights[name][~mask].any())
    reference = weakref.ref(run.scheduler)
    del run.scheduler
    gc.collect()
    assert reference() is None


def cases(number: int, seed: int) -> Iterator[Case]:
    """Each choice of each kind comes up equally often; which go together is random."""
    generator = random.Random(seed)
    while number:
        chosen = [generator.choice(list(each)) for each in (BARE, LOOPS, CHANGES, SCHEDULES)]
        case = Case(*chosen, generator.randint(1, 11), generator.randint(1, 11))
        if case.is_possible:
            number -= 1
            yield case


@pytest.mark.parametrize("case", list(cases(24, seed=0)), ids=str)
def test_any_loop(case: Case) -> None:
    world = World(case)
    world.run(case.cut)
    resumed = world.resumed()
    world.run()
    resumed.run()
    assert same(world, resumed), "a resumed run is the straight one"
    for run, end in ((world, "on_train_end"), (resumed, "close")):
        getattr(run.scheduler, end)()
        must_be_free(run)


def test_a_tied_parameter_has_one_sparsity_under_each_of_its_names() -> None:
    scheduler = CompressionScheduler.from_dict(pruning(when=window(0, 1)), Tied(), trace=Trace(level="error"))
    scheduler.on_epoch_begin(0)
    assert scheduler.sparsity("again.weight") == scheduler.sparsity("fc1.weight") == 0.5
    with pytest.raises(
        PrunekitError, match=r"^the model has no parameter 'again\.weigth'; did you mean 'again\.weight'"
    ):
        scheduler.sparsity("again.weigth")
