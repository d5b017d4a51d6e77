"""Post-training quantization: numbers small enough to check by eye, ranges, where it acts, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_post_train_quantizer import PostTrainLinearQuantizer
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, Progress, ScheduleError, Trace, Window, train
from prunekit.components import Context
from prunekit.quantization import INPUT
from prunekit.testing import TinyNet, application, check_component
from prunekit.training.post_training import quantize

SILENT = Trace(level="error", logger=None)


def context(bits: int = 8, *, training: bool = False) -> Context:
    """A context in which everything has these bits."""
    model = nn.Identity().train(training)
    return Context(model, {}, Progress(0), Window(0, 1), {"w": bits}, {}, activations={"a": bits})


def weights(values: Any, bits: int, **keys: Any) -> list[Any]:
    tensor = torch.tensor(values)
    return PostTrainLinearQuantizer(**keys).quantize("w", tensor, context(bits)).tolist()


def activation(seen: list[Any], values: Any, bits: int, **keys: Any) -> list[float]:
    """What becomes of values after some batches have been seen."""
    quantizer = PostTrainLinearQuantizer(**keys)
    with quantizer.calibration():
        for batch in seen:
            quantizer.quantize_activation("a", torch.tensor(batch), context(bits))
    output: Tensor = quantizer.quantize_activation("a", torch.tensor(values), context(bits))
    return [round(value, 5) for value in output.flatten().tolist()]


def schedule(**keys: Any) -> dict[str, Any]:
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [1, 2]}
    return {"version": 1, "quantizers": {"q": {"class": "PostTrainLinearQuantizer", **keys}}, "policies": [policy]}


def scheduler(**keys: Any) -> CompressionScheduler:
    return CompressionScheduler.from_dict(schedule(**keys), TinyNet(), trace=SILENT)


# Weights


def test_symmetric_spans_the_largest_magnitude_and_clamps_to_the_integers_of_its_bits() -> None:
    # 2 bits: integers -2 … 1, scale 1.5 / 3 = 0.5; 3 would be 1.5 = 2 (to even), which is clamped to 1.
    assert weights([-3.0, -1.5, 0.0, 0.5, 3.0], 2, mode="SYMMETRIC") == [-4, -2, 0, 0, 2]


def test_restricted_has_as_many_integers_below_0_as_above() -> None:
    assert weights([-3.0, -1.0, 0.0, 1.0, 3.0], 2, mode="SYMMETRIC_RESTRICTED") == [-3, 0, 0, 0, 3]
    assert weights([-3.0, -1.0, 0.0, 1.0, 3.0], 3, mode="SYMMETRIC_RESTRICTED") == [-3, -1, 0, 1, 3]


@pytest.mark.parametrize("mode", ["ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"])
def test_asymmetric_spans_from_the_least_to_the_largest_value_and_0(mode: str) -> None:
    assert weights([-1.0, 0.25, 0.75, 2.0], 2, mode=mode) == [-1, 0, 1, 2]
    assert weights([1.0, 3.0], 2, mode=mode) == [1, 3]  # 0, 1, 2, 3


def test_per_channel_each_output_channel_has_its_own_range() -> None:
    values = [[-1.0, 1.0], [-100.0, 30.0]]
    keys = {"mode": "SYMMETRIC_RESTRICTED"}
    assert weights(values, 2, **keys) == [[0, 0], [-100, 0]]
    assert weights(values, 2, per_channel_wts=True, **keys) == [[-1, 1], [-100, 0]]


def test_zero_stays_zero_in_every_mode() -> None:
    for mode in ("SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"):
        assert weights([0.0, 0.3, 1.7], 3, mode=mode)[0] == 0
        assert weights([0.0, 0.0], 3, mode=mode) == [0, 0]


# Activations


def test_none_takes_the_least_and_the_largest_value_of_all_batches() -> None:
    seen = [[[0.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [-0.0, 0.0]]]
    assert activation(seen, [-1.0, 0.4, 0.6, 5.0], 2, mode="ASYMMETRIC_UNSIGNED") == [0, 0, 1, 3]


def test_avg_takes_the_average_of_the_samples() -> None:
    seen = [[[0.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 6.0]]]  # largest on average: 3
    keys = {"mode": "ASYMMETRIC_UNSIGNED", "clip_acts": "AVG"}
    assert activation(seen, [0.6, 2.4, 6.0], 2, **keys) == [1, 2, 3]


def test_n_std_takes_standard_deviations_around_the_mean_and_no_more_than_was_seen() -> None:
    seen = [[[0.0, 0.0, 0.0, 0.0, 10.0]]]  # mean 2, standard deviation 20 ** 0.5
    keys: dict[str, Any] = {"mode": "ASYMMETRIC_UNSIGNED", "clip_acts": "N_STD"}
    assert activation(seen, [100.0, -9.0], 8, clip_n_stds=1, **keys) == [round(2 + 20**0.5, 5), 0]
    assert activation(seen, [100.0, -9.0], 8, clip_n_stds=9, **keys) == [10, 0]


def test_what_was_never_seen_is_quantized_over_its_own_range() -> None:
    assert activation([], [0.0, 0.4, 3.0], 2, mode="ASYMMETRIC_UNSIGNED") == [0, 0, 3]


def test_while_it_looks_and_while_the_model_trains_nothing_is_quantized() -> None:
    quantizer, values = PostTrainLinearQuantizer(bits_weights=2), torch.randn(3, 5)
    with quantizer.calibration():
        assert quantizer.quantize("w", values, context(2)) is values
        assert quantizer.quantize_activation("a", values, context(2)) is values
    assert quantizer.quantize("w", values, context(2, training=True)) is values
    assert quantizer.quantize_activation("a", values, context(2, training=True)) is values


def test_gradients_go_straight_through() -> None:
    quantizer, values = PostTrainLinearQuantizer(), torch.randn(3, 5, requires_grad=True)
    quantizer.quantize("w", values, context(2)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1] * 5] * 3


# As whole numbers


@pytest.mark.parametrize("mode", ["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"])
@pytest.mark.parametrize("per_channel", [False, True])
@settings(deadline=None, max_examples=15)
@given(bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_its_integers_are_those_of_its_values_and_fit_the_bits(
    mode: Any, per_channel: bool, bits: int, seed: int
) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    quantizer = PostTrainLinearQuantizer(mode=mode, per_channel_wts=per_channel)
    whole = quantizer.integers("w", weight, context(bits))
    assert whole is not None
    again = (whole.values - whole.zero_point) * whole.scale
    torch.testing.assert_close(again, quantizer.quantize("w", weight, context(bits)), rtol=1e-5, atol=1e-6)
    least, most = (0, 2**bits - 1) if mode == "ASYMMETRIC_UNSIGNED" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert least <= whole.values.min() and whole.values.max() <= most
    assert whole.scale.numel() == (4 if per_channel else 1)


def test_its_levels_are_what_its_activations_give() -> None:
    quantizer = PostTrainLinearQuantizer(mode="ASYMMETRIC_UNSIGNED")
    assert quantizer.levels("a", context(2)) is None
    with quantizer.calibration():
        quantizer.quantize_activation("a", torch.tensor([[-1.0, 2.0]]), context(2))
    levels = quantizer.levels("a", context(2))
    assert levels is not None
    assert (levels.scale, levels.zero_point, levels.least, levels.most) == (1, 1, 0, 3)  # -1, 0, 1, 2


# Which modules


def test_layers_activations_and_inputs_get_their_bits() -> None:
    told = scheduler(bits_weights=4, overrides={"fc2": {"wts": None, "acts": 6}}).policies[0].bits  # type: ignore
    bits = {name: (entry.get("weights"), entry.get("activations")) for name, entry in told.items()}
    layers = {"conv1": (4, 8), "conv2": (4, None), "fc1": (4, None), "fc2": (None, 6)}  # a ReLU follows conv2 and fc1
    assert bits == {INPUT: (None, 8), **dict.fromkeys(("relu", "relu_1", "relu_2"), (None, 8)), **layers}


class Residual(nn.Module):
    """conv → relu, plus what came in; the last block has a ReLU behind the sum."""

    def __init__(self, then: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.relu, self.then = nn.Conv2d(1, 1, 1), nn.ReLU(), then or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.relu(self.conv(x)) + x)


def activation_bits(**keys: Any) -> dict[str, int | None]:
    """Of two residual blocks, by name."""
    net = nn.Sequential(Residual(), Residual(nn.ReLU()))
    policy: Any = CompressionScheduler.from_dict(schedule(**keys), net, trace=SILENT).policies[0]
    return dict(policy.activations)


def test_sums_are_quantized_and_what_goes_to_a_relu_alone_is_rounded_behind_it() -> None:
    relus = {"0.relu": 8, "1.relu": 8, "1.then": 8}
    assert activation_bits() == {INPUT: 8, **relus, "0.add": 8}
    assert activation_bits(bits_activations=None, overrides={"*.add": {"acts": 6}}) == {"0.add": 6, "1.add": 6}


def test_overrides_reach_sums_and_what_goes_to_a_relu_by_name() -> None:
    relus = {INPUT: 8, "0.relu": 8, "1.relu": 8, "1.then": 8}
    assert activation_bits(overrides={"0.add": {"acts": None}}) == relus
    assert activation_bits(overrides={"0.add": {"bits_activations": 5}}) == {**relus, "0.add": 5}
    assert activation_bits(overrides={"1.conv": {"acts": 4}}) == {**relus, "0.add": 8, "1.conv": 4}
    assert activation_bits(overrides={"1.conv": {"wts": 4}}) == {**relus, "0.add": 8}
    del relus["1.relu"]  # neither it nor what goes to it
    assert activation_bits(overrides={"1.relu": {"acts": None}}) == {**relus, "0.add": 8}


def test_clip_acts_is_of_the_output_behind_the_relu() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    net[0].weight.data.fill_(1.0)
    keys = {"mode": "ASYMMETRIC_UNSIGNED", "bits_activations": 2, "bits_weights": None, "clip_acts": "AVG"}
    run = CompressionScheduler.from_dict(schedule(**keys, overrides={INPUT: {"acts": None}}), net, trace=SILENT)
    run.on_epoch_begin(1)
    net(torch.tensor([[-9.0], [2.0], [4.0]]))  # behind the ReLU 0, 2, 4: from 2 to 2 on average, and 0
    with torch.no_grad():
        values = net.eval()(torch.tensor([[-9.0], [0.3], [0.9], [9.0]])).flatten().tolist()
    assert values == pytest.approx([0, 0, 2 / 3, 2])  # integers 0 … 3 of 2 / 3


def test_a_sum_without_bounds_such_as_that_of_a_mask_stays_as_it_is() -> None:
    infinite = [[[0.5, float("-inf")]]]
    for keys in ({"mode": "SYMMETRIC"}, {"mode": "ASYMMETRIC_SIGNED"}, {"clip_acts": "N_STD", "clip_n_stds": 1}):
        assert activation(infinite, [0.3, float("-inf")], 2, **keys) == [0.3, float("-inf")]
    quantizer = PostTrainLinearQuantizer()
    with quantizer.calibration():
        quantizer.quantize_activation("a", torch.tensor(infinite), context(2))
    assert quantizer.levels("a", context(2)) is None


def test_bits_parameters_means_bits_weights() -> None:
    told = scheduler(bits_parameters=5, bits_activations=None).policies[0].bits  # type: ignore
    assert {entry["weights"] for entry in told.values()} == {5}


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"bits_accum": 16}, "bits_accum", "must be 32, got 16"),
        ({"clip_acts": "N_STD"}, "clip_n_stds", "goes with clip_acts: N_STD, and that needs it"),
        ({"clip_n_stds": 2.0}, "clip_n_stds", "goes with clip_acts: N_STD, and that needs it"),
        ({"clip_acts": "N_STD", "clip_n_stds": 0}, "clip_n_stds", "greater than 0"),
        ({"mode": "SYMETRIC"}, "mode", "SYMMETRIC"),
        ({"bits_weights": 0}, "bits_weights", "greater than or equal to 1"),
        ({"overrides": {"fc9": {"acts": 4}}}, "overrides.fc9", "'fc9' matches no module that can be quantized"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(keys: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        scheduler(**keys)
    (problem,) = error.value.problems
    assert (problem.path, message in problem.message) == (f"quantizers.q.{path}", True), problem


# In a schedule, and without one


def test_in_a_schedule_training_goes_on_in_floats_and_evaluation_is_quantized() -> None:
    torch.manual_seed(0)
    plain = train(application(), {"version": 1, "policies": []}, 3, on_warning=lambda text: None)
    torch.manual_seed(0)
    app = application()
    quantized = train(app, schedule(bits_weights=3, bits_activations=4), 3)
    assert [epoch.train_loss for epoch in quantized.epochs] == [epoch.train_loss for epoch in plain.epochs]
    same = [one.loss == other.loss for one, other in zip(plain.epochs, quantized.epochs, strict=True)]
    assert same == [True, False, False]
    assert quantized.accuracy is not None and quantized.accuracy > 0.8
    assert len(app.model.conv2.weight[0].unique()) <= 8  # what its forward pass reads: 3 bits


def test_without_training_8_bits_cost_next_to_nothing_and_2_bits_much() -> None:
    app = application()
    train(app, {"version": 1, "policies": []}, 4, on_warning=lambda text: None)
    state = {name: value.clone() for name, value in app.model.state_dict().items()}
    losses = {}
    for bits in (8, 2):
        keys = {"class": "PostTrainLinearQuantizer", "bits_weights": bits, "mode": "ASYMMETRIC_UNSIGNED"}
        again = application()
        again.model.load_state_dict(state)
        result = quantize(again, {"version": 1, "quantizers": {"q": keys}}, batches=4)
        assert result.dense is not None
        losses[bits] = result.loss - result.dense.loss
        assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert abs(losses[8]) < 0.02 < 0.2 < losses[2]


# The laws of every component


@pytest.mark.parametrize(
    "keys",
    [
        {"mode": "ASYMMETRIC_UNSIGNED", "bits_weights": 2, "bits_activations": 2},
        {"per_channel_wts": True, "clip_acts": "AVG"},
        {"bits_activations": None},
    ],
)
def test_it_keeps_the_laws(keys: dict[str, Any]) -> None:
    check_component(PostTrainLinearQuantizer, **keys)


class Untraceable(nn.Module):
    """A sum behind a branch that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.one(x) + self.two(x)


@pytest.mark.parametrize(("cls", "told"), [("PostTrainLinearQuantizer", ["Untraceable"]), ("WRPNQuantizer", [])])
def test_a_sum_that_can_not_be_traced_is_told_by_who_would_quantize_it(cls: str, told: list[str]) -> None:
    quantizer = {"class": cls, "bits_weights": 8, "bits_activations": 8}
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    data = {"version": 1, "quantizers": {"q": quantizer}, "policies": [policy]}
    with capture_logs() as lines:
        CompressionScheduler.from_dict(data, Untraceable()).on_epoch_begin(0)
    assert [line["module"] for line in lines if line["event"] == "activations left alone"] == told
