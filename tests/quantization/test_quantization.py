"""Quantized forward passes within a run: windows, names and state, masks, several quantizers, resume, compiling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Recorder, through_a_file
from torch import Tensor, nn
from torch.nn import functional

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PluginError,
    PolicySpec,
    Schedule,
    ScheduleError,
    Trace,
    Window,
)
from prunekit.components import Context, Selectors

SILENT = Trace(level="error")
QUANTIZERS = ["DorefaQuantizer", "WRPNQuantizer", "PACTQuantizer", "QuantAwareTrainRangeLinearQuantizer"]
MINIBATCHES = 3


class Net(nn.Module):
    """conv1 with relu1 as a module, conv2 with a function, fc."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.norm, self.conv2, self.fc = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
                else:
                    parameter.fill_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu1(self.norm(self.conv1(images)))
        return self.fc(functional.relu(self.conv2(features)).mean((2, 3)))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 7, 7, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(MINIBATCHES)
    ]


def between(start: int, end: int, frequency: int = 1) -> dict[str, int]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}


def quantizing(class_: str = "DorefaQuantizer", when: Any = None, **keys: Any) -> dict[str, Any]:
    """A schedule with one quantizer."""
    section = {"class": class_, **(keys or {"bits_weights": 3, "bits_activations": 3})}
    return {
        "version": 1,
        "quantizers": {"q": section},
        "policies": [{"quantizer": {"instance_name": "q"}, **(when or between(1, 3))}],
    }


class Run:
    """A model in training under a schedule; `wrap` is what it is trained as."""

    def __init__(
        self,
        schedule: Any,
        wrap: Callable[[nn.Module], Any] = lambda model: model,
        model: nn.Module | None = None,
        make: Callable[[Any], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.schedule, self.wrap, self.make = schedule, wrap, make
        self.bare = model or Net()
        self.model = wrap(self.bare)
        parameters = self.model.parameters()
        self.optimizer = make(parameters) if make else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        self.recorder = Recorder()
        trace = Trace(logger=self.recorder)
        made = CompressionScheduler if isinstance(schedule, Schedule) else CompressionScheduler.from_dict
        self.scheduler = made(schedule, self.model, self.optimizer, trace=trace)

    def step(self, epoch: int, minibatch: int) -> None:
        images, classes = batches()[minibatch]
        self.scheduler.on_minibatch_begin(epoch, minibatch, MINIBATCHES)
        loss = nn.functional.cross_entropy(self.model(images), classes)
        self.optimizer.zero_grad()
        self.scheduler.total_loss(loss).backward()
        self.optimizer.step()
        self.scheduler.on_minibatch_end(epoch, minibatch, MINIBATCHES)

    def train(self, *epochs: int) -> Run:
        for epoch in epochs:
            self.model.train()
            self.scheduler.on_epoch_begin(epoch)
            for minibatch in range(MINIBATCHES):
                self.step(epoch, minibatch)
            self.scheduler.on_epoch_end(epoch, metrics={"min": 1.0, "max": 0.5})
        return self

    def evaluate(self) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.model(batches()[0][0]).clone()

    @property
    def floats(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.bare.named_parameters()}

    def resumed(self, wrap: Callable[[nn.Module], Any] | None = None) -> Run:
        """A new process with what this one has saved."""
        saved = through_a_file(
            {
                "model": self.bare.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
        )
        other = Run(self.schedule, wrap or self.wrap, Net(seed=9), self.make)
        other.bare.load_state_dict(saved["model"])
        other.optimizer.load_state_dict(saved["optimizer"])
        other.scheduler.load_state_dict(saved["scheduler"])
        return other


def same_floats(one: Run, other: Run) -> bool:
    first, second = one.bare.state_dict(), other.bare.state_dict()
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def refused(schedule: dict[str, Any], model: nn.Module | None = None) -> str:
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(schedule, model or Net(), trace=SILENT)
    return str(error.value)


def is_quantized(weight: Tensor, bits: int = 3) -> bool:
    return len(weight.detach().unique()) <= 2**bits


# Windows


@pytest.mark.parametrize("class_", QUANTIZERS)
def test_before_the_window_opens_a_run_is_the_float_run(class_: str) -> None:
    plain, late = Run({"version": 1, "policies": []}).train(0), Run(quantizing(class_)).train(0)
    assert same_floats(plain, late)
    assert torch.equal(plain.evaluate(), late.evaluate())


def test_a_window_opens_at_its_epoch_and_closes_again_and_float_weights_are_back() -> None:
    run, classes = Run(quantizing()), {type(module) for module in Net().modules()}
    seen = []
    for epoch in range(5):
        run.train(epoch)
        seen.append([is_quantized(run.bare.conv1.weight), is_quantized(run.bare.fc.weight)])
    assert seen == [[False] * 2, [True] * 2, [True] * 2, [False] * 2, [False] * 2]
    assert torch.equal(run.bare.conv1.weight, run.floats["conv1.weight"])
    assert {type(module) for module in run.bare.modules()} == classes
    reference = Net()
    reference.load_state_dict(run.bare.state_dict())
    assert torch.equal(run.evaluate(), reference.eval()(batches()[0][0]))


def test_between_the_active_epochs_of_a_window_it_goes_on() -> None:
    run = Run(quantizing(when=between(0, 5, 2)))
    seen = [is_quantized(run.train(epoch).bare.fc.weight) for epoch in range(6)]
    assert seen == [True] * 5 + [False]


def test_what_the_forward_pass_uses_is_current_after_each_step_and_when_an_epoch_ends() -> None:
    from prunekit_dorefa_quantizer import DorefaQuantizer

    run = Run(quantizing(when=between(0, 2)))
    run.scheduler.on_epoch_begin(0)
    (policy,) = run.scheduler.policies
    for minibatch in range(MINIBATCHES):
        run.step(0, minibatch)
        for name, weight in run.floats.items():
            if name in policy.settings:
                expected = DorefaQuantizer().quantize(name, weight, policy.quantized_weights[name].context)
                assert torch.equal(run.bare.get_submodule(name.rpartition(".")[0]).weight, expected)


def test_activations_are_quantized_in_training_and_in_evaluation() -> None:
    run, seen = Run(quantizing(bits_activations=1)), []
    run.bare.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(set(inputs[0].unique().tolist())))
    run.bare.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0] * 9))
    run.train(0, 1)
    run.evaluate()
    assert len(seen[0]) > 2
    assert all(values <= {0.0, 1.0} for values in seen[2 * MINIBATCHES :: 2]), "relu1, a module"
    assert all(torch.allclose(mean, mean.round(), atol=1e-5) for mean in seen[2 * MINIBATCHES + 1 :: 2]), "a function"


# Several quantizers


def two(first: dict[str, Any], second: dict[str, Any], one: Any = None, other: Any = None) -> dict[str, Any]:
    return {
        "version": 1,
        "quantizers": {"a": {"class": "DorefaQuantizer", **first}, "b": {"class": "WRPNQuantizer", **second}},
        "policies": [
            {"quantizer": {"instance_name": "a"}, **(one or between(0, 2))},
            {"quantizer": {"instance_name": "b"}, **(other or between(0, 2))},
        ],
    }


def test_several_quantizers_take_different_modules() -> None:
    run = Run(
        two(
            {"bits_overrides": {"conv*": {"wts": 2}, "relu1": {"acts": 2}}},
            {"bits_overrides": {"fc": {"wts": 2}, "relu": {"acts": 2}}},
        )
    ).train(0)
    assert set(run.bare.fc.weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
    thirds = run.bare.conv1.weight.detach() * 3
    torch.testing.assert_close(thirds, thirds.round())
    assert set(thirds.round().abs().unique().tolist()) == {1.0, 3.0}


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({"bits_weights": 4}, {"bits_overrides": {"fc": {"wts": 4}}}, "fc.weight"),
        ({"bits_activations": 4}, {"bits_overrides": {"relu": {"acts": 4}}}, "relu"),
    ],
)
def test_two_quantizers_of_one_module_in_one_epoch_are_refused(first: Any, second: Any, what: str) -> None:
    assert refused(two(first, second, between(0, 3), between(2, 4))) == (
        f"<dict>: policies[1].quantizer: policies[0] ('a') quantizes {what!r} in epoch 2 too; two policies may not"
    )
    Run(two(first, second, between(0, 2), between(2, 4)))


def test_one_quantizer_after_the_other_hands_over() -> None:
    run = Run(two({"bits_weights": 2}, {"bits_weights": 2}, between(0, 1), between(1, 2)))
    assert set(run.train(0).bare.fc.weight.abs().mul(3).round().unique().tolist()) <= {1.0, 3.0}
    assert set(run.train(1).bare.fc.weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert not is_quantized(run.train(2).bare.fc.weight)


# Names and state


@pytest.mark.parametrize("class_", QUANTIZERS)
def test_parameters_keep_their_names_and_the_optimizer_its_parameters_and_their_state(class_: str) -> None:
    run = Run(quantizing(class_)).train(0)
    names, groups = list(run.floats), [id(p) for p in run.optimizer.param_groups[0]["params"]]
    momenta = {name: run.optimizer.state[p]["momentum_buffer"].clone() for name, p in run.bare.named_parameters()}
    run.scheduler.on_epoch_begin(1)
    parameters = dict(run.bare.named_parameters())
    assert (list(parameters), list(run.bare.state_dict())) == (names, list(Net().state_dict()))
    assert [id(p) for p in run.optimizer.param_groups[0]["params"]] == groups == [id(p) for p in parameters.values()]
    assert all(torch.equal(run.optimizer.state[p]["momentum_buffer"], momenta[n]) for n, p in parameters.items())
    before = run.floats
    run.step(1, 0)
    still = [name for name, weight in run.floats.items() if torch.equal(before[name], weight)]
    assert set(still) <= {"conv1.bias"}, "all train but a bias that the normalization behind it takes away"


def test_a_prepared_model_loads_its_own_state_strictly_and_a_float_model_too() -> None:
    run = Run(quantizing()).train(0, 1)
    state = copy.deepcopy(run.bare.state_dict())
    run.train(2)
    run.bare.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in run.floats.items())
    assert is_quantized(run.bare.conv1.weight)
    Net().load_state_dict(state)


def test_a_copy_of_a_prepared_model_computes_the_same_and_is_a_model_of_its_own() -> None:
    run = Run(quantizing()).train(0, 1)
    twin = copy.deepcopy(run.bare).eval()
    assert torch.equal(twin(batches()[0][0]), run.evaluate())
    run.train(2)
    assert not torch.equal(dict(twin.named_parameters())["fc.weight"], run.floats["fc.weight"])


def test_a_replica_of_data_parallelism_reads_the_weights_that_it_is_given() -> None:
    run = Run(quantizing(when=between(0, 1))).train(0)
    replica = run.bare.fc._replicate_for_data_parallel()
    replica.weight = run.floats["fc.weight"] * 1
    assert torch.equal(replica.weight, run.bare.fc.weight)


def test_a_schedule_fits_a_wrapped_model_and_its_state_a_bare_one() -> None:
    keys = {"bits_weights": 3, "bits_activations": 3, "bits_overrides": {"conv1": {"wts": None}}}
    wrapped = Run(quantizing("PACTQuantizer", between(0, 4), act_clip_init_val=1.0, **keys), nn.DataParallel)
    bare = Run(wrapped.schedule)
    assert same_floats(wrapped.train(0, 1), bare.train(0, 1))
    assert set(wrapped.scheduler.policies[0].bits) == {f"module.{name}" for name in bare.scheduler.policies[0].bits}
    moved = wrapped.resumed(wrap=lambda model: model)
    assert torch.equal(moved.evaluate(), bare.evaluate())
    assert same_floats(moved.train(2, 3), bare.train(2, 3))


def test_tied_weights_are_quantized_once_and_wherever_they_are_read() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
            self.decoder.weight = self.encoder.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

    model = Tied()
    scheduler = CompressionScheduler.from_dict(quantizing(when=between(0, 1), bits_weights=2), model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    assert torch.equal(model.encoder.weight, model.decoder.weight)
    assert is_quantized(model.encoder.weight, 2)
    model(torch.ones(1, 4)).sum().backward()
    assert dict(model.named_parameters())["encoder.weight"].grad.isfinite().all()


# Masks


def pruned(class_: str, bits: int, start: int = 2, **keys: Any) -> dict[str, Any]:
    """Four fifths of all weights go in epoch 0; quantized from `start` on."""
    return {
        "version": 1,
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"*.weight": 0.8, "norm.weight": 0}}},
        "quantizers": {"q": {"class": class_, "bits_weights": bits, "bits_activations": bits, **keys}},
        "policies": [
            {"pruner": {"instance_name": "p"}, "epochs": [0]},
            {"quantizer": {"instance_name": "q"}, **between(start, 5)},
        ],
    }


WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("class_", QUANTIZERS)
def test_pruned_then_quantized_both_hold_to_the_end_and_across_a_resume(class_: str, bits: int) -> None:
    straight = Run(pruned(class_, bits)).train(*range(5))
    resumed = Run(pruned(class_, bits)).train(0, 1, 2).resumed().train(3, 4)
    assert same_floats(straight, resumed)
    assert torch.equal(straight.evaluate(), resumed.evaluate())
    for name in WEIGHTS:
        read = resumed.bare.get_submodule(name.removesuffix(".weight")).weight.detach()
        mask = resumed.scheduler.masks[name]
        assert not read[~mask].any()
        assert int((~mask).sum()) == int(0.8 * mask.numel())
        assert len(read.unique()) <= 2**bits + 1, "the levels, and zero"
        assert resumed.scheduler.sparsity(name) == pytest.approx(int((read == 0).sum()) / read.numel())


def test_sparsity_is_counted_on_what_the_forward_pass_uses() -> None:
    run = Run(quantizing("WRPNQuantizer", between(1, 2), bits_weights=2))
    run.train(0)
    assert run.scheduler.sparsity("conv2.weight") == 0
    run.train(1)
    zeros = int((run.floats["conv2.weight"].abs() < 0.5).sum()) / run.floats["conv2.weight"].numel()
    assert run.scheduler.sparsity("conv2.weight") == pytest.approx(zeros)
    assert zeros > 0.5


def test_quantizing_before_pruning_is_as_good() -> None:
    schedule = pruned("DorefaQuantizer", 4, start=0)
    schedule["policies"][0]["epochs"] = [2]
    run = Run(schedule).train(*range(4))
    for name in WEIGHTS:
        assert run.scheduler.sparsity(name) == pytest.approx(
            int(0.8 * run.floats[name].numel()) / run.floats[name].numel()
        )


# Resume


@pytest.mark.parametrize("class_", QUANTIZERS)
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_resumed_run_is_the_straight_one_bit_for_bit(class_: str, cut: int) -> None:
    schedule = quantizing(class_, between(1, 4), bits_weights=4, bits_activations=4)
    schedule["lr_schedulers"] = {"lr": {"class": "ExponentialLR", "gamma": 0.8}}
    schedule["policies"].append({"lr_scheduler": {"instance_name": "lr"}, **between(0, 6)})
    straight = Run(schedule).train(*range(6))
    resumed = Run(schedule).train(*range(cut + 1)).resumed()
    resumed.train(*range(cut + 1, 6))
    assert same_floats(straight, resumed)
    states = [run.scheduler.state_dict()["components"] for run in (straight, resumed)]
    assert str(states[0]) == str(states[1])


def test_what_is_evaluated_after_a_resume_is_what_was_evaluated_before() -> None:
    run = Run(quantizing("PACTQuantizer", between(0, 5))).train(0, 1)
    assert torch.equal(run.resumed().evaluate(), run.evaluate())


# Parameters of quantizers


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p)])
def test_an_optimizer_trains_the_quantizers_parameters_too_and_restores_their_state(make: Any) -> None:
    schedule = quantizing("PACTQuantizer", between(1, 4), bits_activations=4, act_clip_init_val=0.05)
    straight = Run(schedule, make=make).train(*range(5))
    (clips,) = straight.scheduler.state_dict()["components"].values()
    assert set(clips["clips"]) == {"relu1", "relu"}
    assert all(value.item() != pytest.approx(0.05) for value in clips["clips"].values())
    resumed = Run(schedule, make=make).train(0, 1, 2).resumed()
    moments = [run.optimizer.state_dict()["state"] for run in (Run(schedule, make=make).train(0, 1, 2), resumed)]
    assert str(moments[0]) == str(moments[1])
    assert same_floats(straight, resumed.train(3, 4))


def test_a_learning_rate_schedule_reaches_the_group_of_the_quantizer() -> None:
    schedule = quantizing("PACTQuantizer", between(1, 4), bits_activations=4, act_clip_decay=0.5)
    schedule["lr_schedulers"] = {"lr": {"class": "StepLR", "step_size": 1, "gamma": 0.5}}
    schedule["policies"].append({"lr_scheduler": {"instance_name": "lr"}, **between(0, 6)})
    run, rates = Run(schedule), []
    for epoch in range(3):
        run.train(epoch)
        rates.append([group["lr"] for group in run.optimizer.param_groups])
    assert rates == [[0.05] * 2, [0.025] * 2, [0.0125] * 2]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0, 0.5]


# The trace


def test_the_trace_says_which_modules_are_quantized_when_the_window_opens() -> None:
    run = Run(quantizing(bits_weights=4, bits_activations=8, bits_overrides={"fc": {"wts": 2}})).train(0, 1, 2, 3)
    (line,) = run.recorder.events("modules quantized")
    assert (line["epoch"], line["component"]) == (1, "DorefaQuantizer 'q'")
    assert {name: (bits["weights"], bits["activations"]) for name, bits in line["bits"].items()} == {
        "conv1": (4, None),
        "conv2": (4, None),
        "relu1": (None, 8),
        "fc": (2, None),
        "relu": (None, 8),
    }
    assert [line["epoch"] for line in run.recorder.events("window opens")] == [1]
    assert [line["epoch"] for line in run.recorder.events("window closes")] == [2]


def test_a_forward_pass_that_can_not_be_traced_is_left_alone_with_a_warning() -> None:
    class Asks(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if images.sum() > 1e9 else functional.relu(self.conv1(images)).mean((2, 3))

    recorder = Recorder()
    scheduler = CompressionScheduler.from_dict(quantizing(), Asks(), trace=Trace(logger=recorder))
    scheduler.on_epoch_begin(0)
    assert recorder.events("activations left alone") == []
    scheduler.on_epoch_begin(1)
    (line,) = recorder.events("activations left alone")
    assert (line["module"], line["level"], line["epoch"]) == ("Asks", "warning", 1)
    assert line["reason"].startswith("TraceError: symbolically traced variables cannot be used as inputs")


# Quantizers that fail


class Fails:
    """A quantizer that does what it is told to.

    Args:
        how: what it does.
        weights: the parameters.
    """

    def __init__(self, how: str = "raises", weights: Selectors = "fc.weight") -> None:
        self.how = how

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        if self.how == "raises":
            raise ValueError("no")
        return weight[0] if self.how == "shape" else weight.double()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "no"),
        ("shape", r"quantize must return torch.float32 \(3, 8\) for 'fc.weight', got torch.float32 \(8,\)"),
        ("type", r"quantize must return torch.float32 \(3, 8\) for 'fc.weight', got torch.float64 \(3, 8\)"),
    ],
)
def test_a_quantizer_that_fails_is_named(how: str, message: str) -> None:
    components = [ComponentSpec("quantizer", "f", Fails, {"how": how})]
    run = Run(Schedule(components, [PolicySpec("quantizer", "f", Window(0, 2))]))
    run.scheduler.on_epoch_begin(0)
    with pytest.raises((ValueError, PluginError), match=message) as error:
        run.step(0, 0)
    assert any("Fails 'f'" in note for note in error.value.__notes__)


def test_a_recurrent_layers_weights_are_no_module_that_can_be_quantized() -> None:
    assert "quantizes nothing" in refused(quantizing(bits_weights=4), nn.LSTM(2, 2))


# Compiled models


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
@pytest.mark.parametrize("class_", QUANTIZERS)
def test_a_compiled_network_sees_each_window_open_and_close(class_: str, how: str) -> None:
    def in_place(model: nn.Module) -> nn.Module:
        model.compile(backend="eager")
        return model

    torch._dynamo.reset()
    wrap = in_place if how == "model.compile()" else lambda model: torch.compile(model, backend="eager")
    schedule = pruned(class_, 3, start=1)
    schedule["policies"][1]["ending_epoch"] = 3
    eager, compiled = Run(schedule), Run(schedule, wrap)
    for epoch in range(5):
        eager.train(epoch), compiled.train(epoch)
        assert torch.equal(eager.evaluate(), compiled.evaluate()), f"epoch {epoch}"
    assert same_floats(eager, compiled)


def test_a_group_for_an_optimizer_that_knows_names_has_names() -> None:
    run = Run(quantizing("PACTQuantizer", bits_activations=4))
    (policy,) = run.scheduler.policies
    named = policy.parameter_group(run.model, named=True)["params"]
    assert [name for name, _ in named] == ["q.0", "q.1"]
    optimizer = torch.optim.SGD(run.bare.named_parameters(), lr=0.1)
    optimizer.add_param_group({"params": named})
    assert [p for _, p in named] == run.optimizer.param_groups[1]["params"]
