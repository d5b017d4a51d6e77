"""Feature-map reconstruction: the channels that go, the patches, the fit, every key; and what is refused."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from prunekit_fm_reconstruction_pruner import FMReconstructionChannelPruner, patches, reconstructed
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, ScheduleError, Trace, load_plugins
from prunekit.testing import ConvNet, RankedOrderTests, epochs_under_card, groups_gone

SILENT = Trace(level="error")
PLUGINS = load_plugins()  # once: it takes longer than all else in a test


def conv(*filters: list[float]) -> nn.Sequential:
    """A model with a 1x1 convolution: a list of input weights for each filter."""
    model = nn.Sequential(nn.Conv2d(len(filters[0]), len(filters), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(filters).reshape(len(filters), -1, 1, 1))
    return model


def pixels(*channels: list[float]) -> Tensor:
    """One image: a list of pixels for each channel."""
    return torch.tensor(channels).reshape(1, len(channels), 1, -1)


def scheduler(
    model: nn.Module, trace: Trace | None = SILENT, epochs: Any = (0, 1), **keys: Any
) -> CompressionScheduler:
    pruner = {"class": "FMReconstructionChannelPruner", "weights": "0.weight", "desired_sparsity": 0.5, **keys}
    policy = {"pruner": {"instance_name": "p"}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, model, trace=trace, plugins=PLUGINS)


def gone(run: CompressionScheduler, name: str = "0.weight") -> list[int]:
    return groups_gone(run.masks[name], 1) if name in run.masks else []


def weights(model: nn.Module) -> list[list[float]]:
    return [[round(value, 5) + 0.0 for value in row] for row in model[0].weight.flatten(1).tolist()]


# The fit, by its definition


def test_what_a_pruned_channel_did_a_kept_one_does_as_far_as_it_can() -> None:
    # Channel 1 is twice channel 0 and goes: 1 x0 + 0.4 x1 = 1.8 x0.
    model = conv([1.0, 0.4], [3.0, -0.1])
    run = scheduler(model)
    images = pixels([1.0, 2.0, -1.0], [2.0, 4.0, -2.0])
    before = model(images)
    run.on_epoch_begin(0)
    assert gone(run) == [1]
    assert weights(model) == [[1.8, 0], [2.8, 0]]
    torch.testing.assert_close(model(images), before)


def test_where_it_can_not_it_comes_as_close_as_least_squares_can() -> None:
    # y = 4 x0 + x1 = 5, 4, 9 and the slope through zero is (1 · 5 + 1 · 4 + 2 · 9) / (1 + 1 + 4) = 4.5.
    model = conv([4.0, 1.0])
    run = scheduler(model)
    model(pixels([1.0, 1.0, 2.0], [1.0, 0.0, 1.0]))
    run.on_epoch_begin(0)
    assert weights(model) == [[4.5, 0]]


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_solution_of_he_et_al_equation_1(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 5, 3, padding=1, bias=bias)
    model, images = nn.Sequential(layer), torch.randn(4, 6, 8, 8)
    images[:, 3] = images[:, 0] + images[:, 1] + 0.1 * torch.randn(4, 8, 8)  # channels that depend on each other
    run = scheduler(model, samples=256, desired_sparsity=0.34)
    y = model(images) - (layer.bias.reshape(1, -1, 1, 1) if layer.bias is not None else 0)
    x = nn.functional.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1)
    old_bias = None if layer.bias is None else layer.bias.clone()
    run.on_epoch_begin(0)
    kept = run.masks["0.weight"][0].flatten()
    assert int((~kept).sum()) == 2 * 9
    solution = torch.linalg.lstsq(x[:, kept], y.detach().permute(0, 2, 3, 1).flatten(0, 2)).solution.T
    torch.testing.assert_close(layer.weight.flatten(1)[:, kept], solution, rtol=1e-4, atol=1e-4)
    assert not layer.weight.flatten(1)[:, ~kept].any()
    assert layer.bias is None or torch.equal(layer.bias, old_bias)


def test_weights_about_which_the_patches_say_nothing_stay() -> None:
    # One pixel, and three channels are kept: of all solutions the one closest to the weights as they were.
    model = conv([1.0, 2.0, 3.0, 0.5])
    run = scheduler(model, desired_sparsity=0.25)
    model(pixels([1.0], [1.0], [0.0], [4.0]))
    run.on_epoch_begin(0)
    assert weights(model) == [[2, 3, 3, 0]], "what is missing, 2, is shared by the two that could see it"


def test_pruning_again_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 3))
    run, seen = scheduler(model), []
    for epoch in (0, 1):
        model(torch.randn(3, 4, 6, 6))
        run.on_epoch_begin(epoch)
        seen.append((gone(run), model[0].weight.tolist()))
        run.on_epoch_end(epoch)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_new_weights_have_the_type_of_the_old_ones(dtype: torch.dtype) -> None:
    model = conv([1.0, 0.5], [4.0, 0.0]).to(dtype)
    run = scheduler(model)
    model(pixels([1.0, 2.0, -1.0], [2.0, 4.0, -2.0]).to(dtype))
    run.on_epoch_begin(0)
    assert (weights(model), model[0].weight.dtype) == ([[2, 0], [4, 0]], dtype)


# The patches

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(3, 4, 3), (7, 8)),
    "uneven": (nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=(1, 2)), (7, 8)),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2, padding=1), (9, 8)),
    "same": (nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 2)), (7, 8)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (7, 8)),
    "circular": (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (7, 8)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (7, 8)),
    "1d": (nn.Conv1d(3, 4, 5, stride=2, padding=2), (11,)),
    "3d": (nn.Conv3d(3, 4, (1, 2, 3), padding=(0, 1, 1)), (3, 4, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_patches_are_what_each_output_position_sees(kind: str) -> None:
    torch.manual_seed(0)
    layer, size = LAYERS[kind]
    images = torch.randn(2, 3, *size)
    found = patches(layer, images, 10**6, torch.Generator())
    output = (found @ layer.weight.flatten(1).T + layer.bias).T
    torch.testing.assert_close(output, layer(images).transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
    one = patches(layer, images[0], 10**6, torch.Generator())
    assert torch.equal(one, found[: len(found) // 2]), "an image without the dimension of the batch"


def test_as_many_patches_are_drawn_as_is_said_by_the_seed() -> None:
    images = torch.arange(100.0).reshape(1, 1, 10, 10)
    draws = [
        patches(nn.Conv2d(1, 1, 1), images, 7, torch.Generator().manual_seed(seed)).flatten() for seed in (0, 0, 1)
    ]
    assert len(draws[0]) == 7
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()


def test_each_mini_batch_is_drawn_from_anew() -> None:
    images = torch.arange(1000.0).reshape(1, 1, 1, 1000)
    seen = []
    for seed in (0, 0, 1):
        model = conv([1.0])
        run = scheduler(model, samples=3, seed=seed)
        model(images)
        model(images)
        state = run.state_dict()["components"]["pruners.p"]
        assert state["draws"] == {"0.weight": 2}
        seen.append(float(state["sums"]["own"]["0.weight"]))
    assert seen[0] == seen[1] != seen[2]


# Which channels


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"desired_sparsity": 0.7, "rounding_fn": "ceil"}, [0, 1, 2]),
        ({"desired_sparsity": 0.75, "group_size": 2}, [0, 1]),
        ({"desired_sparsity": 1}, [0, 1, 2, 3]),
        ({"desired_sparsity": 0.2}, []),
        ({"group_type": "Channels"}, [0, 1]),
    ],
)
def test_the_channels_with_the_smallest_magnitude_go(keys: dict[str, Any], expected: list[int]) -> None:
    model = conv([1.0, 2.0, 3.0, 4.0])
    run = scheduler(model, **keys)
    model(torch.randn(2, 4, 3, 3))
    run.on_epoch_begin(0)
    assert gone(run) == expected
    assert model[0].weight.isfinite().all()


def test_the_magnitude_is_l1_or_l2() -> None:
    for magnitude_fn, expected in (("l1", [0]), ("l2", [1])):
        run = scheduler(conv([3.0, 2.0], [0.0, 2.0]), magnitude_fn=magnitude_fn)
        run.on_epoch_begin(0)
        assert gone(run) == expected, "|3| + |0| < |2| + |2|, and 3 > √8"


# When


@pytest.mark.parametrize(("phase", "expected"), [("training", 1.5), ("evaluation", 4), ("all", None)])
def test_the_phase_says_which_forward_passes_are_drawn_from(phase: str, expected: float | None) -> None:
    model = conv([1.0, 0.5])
    run = scheduler(model, phase=phase)
    model(pixels([1.0], [1.0]))
    model.eval()
    model(pixels([1.0], [6.0]))
    run.on_epoch_begin(0)
    slope = expected or (1.5 + 4) / 2
    assert weights(model) == [[slope, 0]]


def test_the_patches_since_the_last_pruning_count() -> None:
    model = conv([1.0, 0.5])
    run = scheduler(model, epochs=[2])
    for epoch, second in enumerate((9.0, 3.0)):
        run.on_epoch_begin(epoch)
        model(pixels([1.0], [second]))
        run.on_epoch_end(epoch)
    run.on_epoch_begin(2)
    assert weights(model) == [[2.5, 0]], "epoch 1, not 0"
    state = run.state_dict()["components"]["pruners.p"]
    assert (state["sums"]["own"], state["sums"]["agreed"]) == ({}, {})


def test_the_output_to_be_kept_is_that_of_the_weights_as_they_are_at_the_pruning() -> None:
    model = conv([1.0, 0.5])
    run = scheduler(model)
    model(pixels([1.0], [1.0]))
    with torch.no_grad():
        model[0].weight.mul_(2)
    run.on_epoch_begin(0)
    assert weights(model) == [[3, 0]]


def test_without_patches_channels_go_and_a_warning_says_that_nothing_was_fitted() -> None:
    model = conv([1.0, 0.5])
    with capture_logs() as lines:
        run = scheduler(model, trace=None)
        run.on_epoch_begin(0)
    assert weights(model) == [[1, 0]]
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert (warning["event"], warning["parameters"]) == ("no input seen, weights not reconstructed", ["0.weight"])


def test_patches_that_are_not_finite_fit_nothing() -> None:
    model = conv([1.0, 0.5])
    with capture_logs() as lines:
        run = scheduler(model, trace=None)
        model(pixels([1.0], [torch.nan]))
        run.on_epoch_begin(0)
    assert weights(model) == [[1, 0]]
    assert "input not finite, weights not reconstructed" in [line["event"] for line in lines]


def test_the_trace_says_which_weights_were_set() -> None:
    model = conv([1.0, 0.5])
    with capture_logs() as lines:
        run = scheduler(model, trace=None)
        model(pixels([1.0], [1.0]))
        run.on_epoch_begin(0)
    events = [line["event"] for line in lines]
    assert events.index("weights set") == events.index("masks changed") + 1


def test_a_resumed_run_goes_on_with_its_patches() -> None:
    outcomes = []
    for stop in (False, True):
        model = conv([1.0, 0.5])
        run = scheduler(model, samples=1)
        model(pixels([1.0, 2.0, 3.0], [1.0, 5.0, 2.0]))
        if stop:
            file = io.BytesIO()
            torch.save(run.state_dict(), file)
            file.seek(0)
            model = conv([1.0, 0.5])
            run = scheduler(model, samples=1)
            run.load_state_dict(torch.load(file, weights_only=True))
        model(pixels([1.0, 2.0, 3.0], [4.0, 7.0, 2.0]))
        run.on_epoch_begin(0)
        outcomes.append(weights(model))
    assert outcomes[0] == outcomes[1]


# What is refused


@pytest.mark.parametrize(
    ("model", "keys", "path", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
            {},
            "weights",
            "'0.weight' belongs to a convolution in 2 groups: an input channel reaches some outputs only",
        ),
        (nn.Sequential(nn.Linear(4, 4)), {}, "weights", "'0.weight' belongs to a Linear, which is no convolution"),
        (conv([1.0]), {"group_type": "Filters"}, "group_type", "must be 'Channels', got 'Filters'"),
        (conv([1.0]), {"magnitude_fn": "l3"}, "magnitude_fn", "no ranking is registered as 'l3'; "),
        (conv([1.0]), {"samples": 0}, "samples", "must be greater than or equal to 1, got 0"),
        (conv([1.0]), {"noise": 0.5}, "noise", "has no argument 'noise'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(
    model: nn.Module, keys: dict[str, Any], path: str, message: str
) -> None:
    with pytest.raises(ScheduleError) as error:
        scheduler(model, **keys)
    (problem,) = error.value.problems
    assert problem.path == f"pruners.p.{path}"
    assert message in problem.message


# For any weights


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 0.99))
def test_the_budget_is_kept_and_no_other_weights_come_closer(seed: int, channels: int, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, channels, 1, 1, generator=generator)
    x = torch.randn(20, channels, generator=generator).double()
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, : int(sparsity * channels)] = False
    kept = mask[0].flatten()
    new = reconstructed(weight, mask, x.T @ x).flatten(1).double()
    target = x @ weight.flatten(1).double().T
    error = (x[:, kept] @ new[:, kept].T - target).square().sum()
    assert error <= (x[:, kept] @ weight.flatten(1)[:, kept].double().T - target).square().sum() + 1e-6
    for _ in range(5):
        other = new + 0.01 * torch.randn(new.shape, generator=generator)
        assert error <= (x[:, kept] @ other[:, kept].T - target).square().sum() + 1e-6
    assert torch.equal(new[:, ~kept].float(), weight.flatten(1)[:, ~kept])


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)), st.integers(0, 1000))
def test_channels_in_another_order_are_fitted_in_that_order(order: list[int], seed: int) -> None:
    outcomes = []
    for places in (list(range(5)), order):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(2, 5, 1, 1, generator=generator)
        images = torch.randn(1, 5, 4, 4, generator=generator)
        model = conv(*values[:, places].flatten(1).tolist())
        run = scheduler(model, desired_sparsity=0.4)
        model(images[:, places])
        run.on_epoch_begin(0)
        outcomes.append(model[0].weight.detach()[:, [places.index(channel) for channel in range(5)]])
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


# What every ranked pruner keeps


class TestChannels(RankedOrderTests):
    pruner = FMReconstructionChannelPruner
    groups = {}  # noqa: RUF012
    dim = 1
    noise = "ranking_noise"
    lawful = {"weights": ["conv2.weight"]}  # noqa: RUF012

    def model(self, **scores: Sequence[float]) -> nn.Module:
        model = nn.Module()
        for name, values in scores.items():
            (layer,) = conv(list(map(float, values)))
            model.add_module(name, layer)
        return model


def test_the_first_schedule_of_the_card_prunes_what_the_card_says() -> None:
    torch.manual_seed(0)
    (*_, run) = epochs_under_card(Path(__file__).parents[1] / "README.md", ConvNet(), None, 3, minibatches=2)
    assert {name: run.sparsity(name) for name in run.masks} == {"conv2.weight": 0.5, "conv3.weight": 0.5}
