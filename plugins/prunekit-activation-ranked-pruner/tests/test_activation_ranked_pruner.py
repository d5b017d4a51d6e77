"""Activation ranking: what is counted, where it is found, which filters go, by every key; and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from prunekit_activation_ranked_pruner import (
    ActivationAPoZRankedFilterPruner,
    ActivationAPoZRankedFilterPruner_AGP,
    ActivationMeanRankedFilterPruner,
    ActivationMeanRankedFilterPruner_AGP,
)
from structlog.testing import capture_logs
from torch import Tensor, nn

from prunekit import CompressionScheduler, PluginError, ScheduleError, Trace, load_plugins
from prunekit.testing import ConvNet, RankedOrderTests, epochs_under_card, groups_gone

SILENT = Trace(level="error")
PLUGINS = load_plugins()  # once: it takes longer than all else in a test


def conv(*weights: float, bias: list[float] | None = None) -> nn.Conv2d:
    """A 1x1 convolution of one channel, with a filter for each number."""
    layer = nn.Conv2d(1, len(weights), 1, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def network(*layers: nn.Module) -> nn.Sequential:
    """The layers `conv`, `relu` and so on."""
    model = nn.Sequential()
    for layer in layers:
        name = type(layer).__name__.lower().removesuffix("2d")
        model.add_module(name if not hasattr(model, name) else f"{name}2", layer)
    return model


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels).reshape(1, 1, 1, -1)


def scheduler(
    model: nn.Module, cls: str = "APoZ", trace: Trace | None = SILENT, epochs: Any = (0, 1), **keys: Any
) -> CompressionScheduler:
    keys = {"weights": "conv.weight", "group_type": "Filters", "desired_sparsity": 0.5, **keys}
    if "final_sparsity" in keys:
        del keys["desired_sparsity"]
    keys = {key: value for key, value in keys.items() if value is not None}
    suffix = "_AGP" if "final_sparsity" in keys else ""
    pruner = {"class": f"Activation{cls}RankedFilterPruner{suffix}", **keys}
    policy = {"pruner": {"instance_name": "p"}, "epochs": list(epochs)}
    schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [policy]}
    return CompressionScheduler.from_dict(schedule, model, trace=trace, plugins=PLUGINS)


def gone(run: CompressionScheduler, name: str = "conv.weight") -> list[int]:
    """The filters that are pruned."""
    return groups_gone(run.masks[name]) if name in run.masks else []


def pruned(model: nn.Module, *batches: Tensor, name: str = "conv.weight", **keys: Any) -> list[int]:
    """The filters that go in epoch 0, after these batches."""
    run = scheduler(model, **keys)
    for batch in batches:
        model(batch)
    run.on_epoch_begin(0)
    return gone(run, name)


def sums(run: CompressionScheduler) -> dict[str, Any]:
    state = run.state_dict()["components"]["pruners.p"]
    return {place: {name: tensor.tolist() for name, tensor in state[place].items()} for place in ("own", "agreed")}


# The statistics, by their definitions


def test_apoz_prunes_the_filters_whose_activations_are_zero_most_often() -> None:
    # relu(w x) of the pixels 3, 5, -1 and 4 is zero in 1, 3, 1 and 4 of 4 places.
    model = network(conv(1.0, -9.0, 2.0, 0.0), nn.ReLU())
    run = scheduler(model)
    model(image(3.0, 5.0, -1.0, 4.0))
    assert sums(run)["own"] == {"conv.weight": [3, 1, 3, 0, 4]}
    run.on_epoch_begin(0)
    assert gone(run) == [1, 3]
    assert model.conv.weight.flatten().tolist() == [1, 0, 2, 0]


def test_mean_prunes_the_filters_with_the_lowest_mean_activation() -> None:
    # The means of relu(w x) are 3, 2.25, 6 and 0: here filter 1 has a larger mean than 0.5 · 3, though it fires once.
    model = network(conv(1.0, -9.0, 2.0, 0.0), nn.ReLU())
    run = scheduler(model, "Mean")
    model(image(3.0, 5.0, -1.0, 4.0))
    assert sums(run)["own"] == {"conv.weight": [12, 9, 24, 0, 4]}
    run.on_epoch_begin(0)
    assert gone(run) == [1, 3]


def test_the_two_rank_differently() -> None:
    weights, pixels = (1.0, -9.0), image(3.0, 5.0, -4.0, 4.0)  # means 3 and 9, APoZ 25 % and 75 %
    assert pruned(network(conv(*weights), nn.ReLU()), pixels, cls="APoZ") == [1]
    assert pruned(network(conv(*weights), nn.ReLU()), pixels, cls="Mean") == [0]


def test_batches_count_by_their_elements() -> None:
    # Filter 0 is active in 1 of 1 and in 0 of 3 pixels: in 1/4 of all, where the mean of both fractions is 1/2.
    model = network(conv(1.0, -1.0), nn.ReLU())
    assert pruned(model, image(5.0), image(-1.0, -1.0, -1.0)) == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_counts_are_exact_and_means_wide_in_every_type(dtype: torch.dtype) -> None:
    model = network(conv(1.0, 1.0), nn.ReLU()).to(dtype)
    run = scheduler(model, "Mean")
    model(torch.ones(1, 1, 60, 50, dtype=dtype))
    assert sums(run)["own"] == {"conv.weight": [3000, 3000, 3000]}  # bfloat16 can't tell 3000 from 3008
    run.on_epoch_begin(0)
    assert gone(run) == [0], "of equal ones the first"
    assert model.conv.weight.dtype == dtype


# Since when


def test_the_statistics_begin_anew_after_each_pruning() -> None:
    model = network(conv(1.0, -1.0, 2.0, -2.0), nn.ReLU())
    run = scheduler(model, desired_sparsity=0.25)
    model(image(-1.0, -1.0, -1.0))
    run.on_epoch_begin(0)
    assert (gone(run), sums(run)) == ([0], {"own": {}, "agreed": {}})
    model(image(1.0))  # filter 0 is zero, 1 and 3 are negative: of equal ones the first
    run.on_epoch_begin(1)
    assert gone(run) == [0]


def test_the_epochs_since_the_last_pruning_count_together() -> None:
    model = network(conv(1.0, -1.0), nn.ReLU())
    run = scheduler(model, epochs=[3])
    seen = {}
    for epoch, pixels in enumerate([image(1.0), image(2.0), image(-3.0, -3.0), image(4.0)]):
        run.on_epoch_begin(epoch)
        seen[epoch] = gone(run)
        model(pixels)
        run.on_epoch_end(epoch)
    assert seen == {0: [], 1: [], 2: [], 3: [0]}, "epoch 2, the one before, is heard; not 0 and 1"


def test_without_statistics_nothing_is_pruned_and_a_warning_says_so() -> None:
    with capture_logs() as lines:
        run = scheduler(network(conv(1.0, -1.0), nn.ReLU()), trace=None)
        run.on_epoch_begin(0)
    assert dict(run.masks) == {}
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert (warning["event"], warning["parameters"], warning["phase"], warning["epoch"]) == (
        "no activations seen, nothing pruned",
        ["conv.weight"],
        "training",
        0,
    )


def test_an_empty_batch_is_no_statistic() -> None:
    model = network(conv(1.0, -1.0), nn.ReLU())
    assert pruned(model, torch.ones(0, 1, 1, 1)) == []


# Where the activation is


class Functional(nn.Module):
    """Two layers with batch normalization, a relu that is shared, functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.conv2, self.conv3 = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 4, 1),
        )
        self.conv4, self.fc, self.out = nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        self.seen = {"conv.weight": x.clone()}
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        self.seen["conv2.weight"] = x.clone()
        x = self.relu(self.conv3(x))
        self.seen["conv3.weight"] = x.clone()
        x = self.conv4(x).relu_()
        self.seen["conv4.weight"] = x.clone()
        x = torch.sigmoid(self.fc(x.mean((2, 3))))
        self.seen["fc.weight"] = x.clone()
        return self.out(x)


@pytest.mark.parametrize("cls", ["APoZ", "Mean"])
def test_activations_are_found_behind_norms_and_pools_as_modules_functions_and_methods(cls: str) -> None:
    torch.manual_seed(0)
    model, names = Functional(), ["conv.weight", "conv2.weight", "conv3.weight", "conv4.weight", "fc.weight"]
    run = scheduler(model, cls, weights=names, group_type=None, granularity={"dim": 0})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(8, 1, 8, 8))
    once = model.bn.num_batches_tracked - before["bn.num_batches_tracked"]
    assert once == 1, "nothing ran twice"
    state = run.state_dict()["components"]["pruners.p"]["own"]
    for name in names:
        seen, dims = model.seen[name].double(), (0, *range(2, model.seen[name].dim()))
        amounts = (seen != 0).sum(dims) if cls == "APoZ" else seen.sum(dims)
        torch.testing.assert_close(state[name][:-1], amounts.double(), rtol=1e-5, atol=1e-6)
        assert state[name][-1] == seen.numel() / 4, name


def test_listening_changes_neither_output_nor_gradient() -> None:
    gradients = []
    for listen in (False, True):
        torch.manual_seed(0)
        model = Functional()
        if listen:
            scheduler(model, weights="conv*.weight")
        output = model(torch.randn(8, 1, 8, 8))
        output.sum().backward()
        gradients.append([output, *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


class Branching(nn.Module):
    """Control flow that depends on the data: torch.fx can't trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(1.0, -1.0), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) if x.sum() > -100 else x


def test_a_module_that_is_named_is_listened_to_whatever_the_model_does() -> None:
    assert pruned(Branching(), image(1.0, 1.0, -1.0), activations_of={"conv.weight": "act"}) == [1]


def test_the_module_that_is_named_decides() -> None:
    model = network(conv(3.0, -3.0), nn.ReLU(), nn.Hardtanh(-9.0, 1.0))
    pixels = image(1.0, 1.0, -1.0)  # of the convolution itself no output is zero
    assert pruned(model, pixels) == [1]
    model = network(conv(3.0, -3.0), nn.ReLU(), nn.Hardtanh(-9.0, 1.0))
    assert pruned(model, pixels, activations_of={"conv.weight": "conv"}) == [0]


def test_a_module_of_another_width_is_refused_as_soon_as_it_runs() -> None:
    model = network(conv(3.0, -3.0), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten())
    scheduler(model, activations_of={"conv.weight": "flatten"})
    with pytest.raises(PluginError) as error:
        model(image(1.0, 2.0, 3.0))
    assert str(error.value) == (
        "activations_of: 'flatten' gives a tensor of shape [1, 6], and 'conv.weight' has 2 outputs"
    )


def test_a_wrapped_model_is_heard_and_its_names_may_be_written_with_and_without_the_wrapper() -> None:
    for key in ("conv.weight", "module.conv.weight"):
        inner = network(conv(1.0, -1.0), nn.ReLU())
        model = nn.DataParallel(inner)  # without a GPU it calls the module
        assert pruned(model, image(1.0), weights=key, name="module.conv.weight") == [1]
        named = {key: "relu"}
        assert pruned(model, image(1.0), weights=key, name="module.conv.weight", activations_of=named) == [1]


def test_a_model_that_is_compiled_is_heard_although_hooks_come_later() -> None:
    torch._dynamo.reset()
    model: Any = torch.compile(network(conv(1.0, -1.0), nn.ReLU()), backend="eager")
    run = scheduler(model, epochs=[2])
    for epoch in range(3):
        run.on_epoch_begin(epoch)
        model(image(1.0))
        run.on_epoch_end(epoch)
    assert gone(run) == [1]


# Keys


def test_linear_layers_and_larger_units_are_pruned_by_granularity() -> None:
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [5.0], [-9.0]]))
    keys = {"weights": "0.weight", "group_type": None, "cls": "Mean", "name": "0.weight"}
    assert pruned(model, torch.ones(3, 1), granularity={"dim": 0}, **keys) == [0, 3]
    assert pruned(model, torch.ones(3, 1), granularity={"dim": 0, "size": 2}, **keys) == [0, 1], "3 / 2 < 5 / 2"


@pytest.mark.parametrize(("phase", "expected"), [("training", [0]), ("evaluation", [1]), ("all", [0]), (None, [0])])
def test_the_phase_says_which_forward_passes_count(phase: str | None, expected: list[int]) -> None:
    model = network(conv(1.0, -1.0), nn.ReLU())
    run = scheduler(model, **({"phase": phase} if phase else {}))
    model(image(-1.0, -1.0))
    model.eval()
    model(image(1.0))
    run.on_epoch_begin(0)
    assert gone(run) == expected


def test_a_batch_norm_that_is_frozen_does_not_turn_training_into_evaluation() -> None:
    torch.manual_seed(0)
    model = Functional()
    run = scheduler(model)
    model.bn.eval()
    model(torch.randn(2, 1, 8, 8))
    assert list(sums(run)["own"]) == ["conv.weight"]


@pytest.mark.parametrize(("revive", "expected"), [(True, [1]), (False, [0])])
def test_a_pruned_filter_whose_bias_keeps_it_active_may_come_back_or_not(revive: bool, expected: list[int]) -> None:
    model = network(conv(-4.0, 1.0, bias=[3.0, 0.0]), nn.ReLU())
    run = scheduler(model, "Mean", revive=revive)
    model(image(1.0))  # activations 0 and 1
    run.on_epoch_begin(0)
    assert gone(run) == [0]
    model(image(1.0))  # the pruned filter gives its bias, 3
    run.on_epoch_begin(1)
    assert gone(run) == expected


@pytest.mark.parametrize(("curve", "counts"), [("cubic", [2, 7, 8]), ("linear", [2, 5, 8])])
def test_agp_reaches_its_final_sparsity_along_the_curve(curve: str, counts: list[int]) -> None:
    model = network(conv(*[float(value) for value in range(1, 17)]), nn.ReLU())
    keys: dict[str, Any] = {"initial_sparsity": 0.125, "final_sparsity": 0.5, "curve": curve}
    run, seen = scheduler(model, "Mean", epochs=[1, 2, 3], **keys), []
    for epoch in range(4):
        run.on_epoch_begin(epoch)
        seen.append(gone(run))
        model(image(1.0))
        run.on_epoch_end(epoch)
    assert seen == [[], *(list(range(count)) for count in counts)]


# Memory


def test_a_resumed_run_goes_on_with_what_was_seen() -> None:
    def start() -> tuple[nn.Module, CompressionScheduler]:
        model = network(conv(1.0, -1.0), nn.ReLU())
        return model, scheduler(model, epochs=[2])

    model, run = start()
    for epoch in range(2):
        run.on_epoch_begin(epoch)
        model(image(-1.0, -1.0))
        run.on_epoch_end(epoch)
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    _, other = start()
    other.load_state_dict(torch.load(file, weights_only=True))
    other.on_epoch_begin(2)
    assert gone(other) == [0]
    assert sums(run)["own"] == {"conv.weight": [0, 2, 2]}, "the saved one is as it was"


SCRIPT = """
import sys
import torch
from torch import distributed, nn
from prunekit import CompressionScheduler, Trace

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU())
with torch.no_grad():
    model[0].weight.copy_(torch.tensor([1.0, 2.0, -1.0]).reshape(3, 1, 1, 1))
pruner = {"class": "ActivationMeanRankedFilterPruner", "desired_sparsity": 0.34, "group_type": "Filters"}
pruner["weights"] = "0.weight"
schedule = {"version": 1, "pruners": {"p": pruner}, "policies": [{"pruner": {"instance_name": "p"}, "epochs": [1]}]}
run = CompressionScheduler.from_dict(schedule, model, trace=Trace(level="error"))
run.on_epoch_begin(0)
for pixel in [[1.0], [-6.0, -6.0]][rank]:
    model(torch.tensor(pixel).reshape(1, 1, 1, 1))
run.on_epoch_end(0)
run.on_epoch_begin(1)
print(run.masks["0.weight"].flatten().tolist())
distributed.destroy_process_group()
"""


def test_ranks_that_see_different_data_add_it_up_and_decide_the_same(tmp_path: Path) -> None:
    # Sums 1, 2, 0 on one rank and 0, 0, 12 on the other: each for itself would drop filter 2, or 0 as the first of two.
    # Together they are 1, 2 and 12, of 3 pixels.
    commands = [[sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store")] for rank in range(2)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == ["[False, True, True]\n"] * 2


# What is refused


@pytest.mark.parametrize(
    ("model", "keys", "path", "message"),
    [
        (
            network(conv(1.0, 2.0)),
            {},
            "weights",
            "the activation behind 'conv.weight' is not found: no activation alone takes what the layer puts out; "
            "name the module that gives it: activations_of: {conv.weight: …}",
        ),
        (
            Branching(),
            {},
            "weights",
            "the activation behind 'conv.weight' is not found: torch.fx can't trace the model (TraceError: "
            "symbolically traced variables cannot be used as inputs to control flow); "
            "name the module that gives it: activations_of: {conv.weight: …}",
        ),
        (
            network(conv(1.0), nn.ReLU()),
            {"activations_of": {"conv.weight": "rellu"}},
            "activations_of.conv.weight",
            "the model has no module 'rellu'; did you mean 'relu'?",
        ),
        (
            network(conv(1.0), nn.ReLU()),
            {"activations_of": {"conv9.weight": "relu"}},
            "activations_of.conv9.weight",
            "'conv9.weight' is none of the weights of this pruner",
        ),
        (
            nn.Sequential(nn.Embedding(3, 2), nn.ReLU()),
            {"weights": "0.weight", "group_type": None, "granularity": {"dim": 0}},
            "weights",
            "'0.weight' belongs to a Embedding, which is no convolution and no linear layer",
        ),
        (
            nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
            {"weights": "0.weight"},
            "weights",
            "'0.weight' has shape [2, 3] and no groups 'Filters'; granularity: {dim: 0} means the rows of a matrix",
        ),
        (
            network(conv(1.0), nn.ReLU()),
            {"group_type": None, "granularity": {"dim": 1}},
            "granularity.dim",
            "must be 0, where outputs lie: an input has no activation, got 1",
        ),
        (network(conv(1.0), nn.ReLU()), {"group_type": "Channels"}, "group_type", "'3D' or 'Filters', got 'Channels'"),
        (network(conv(1.0), nn.ReLU()), {"phase": "test"}, "phase", "got 'test'"),
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


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5),
    st.floats(0, 0.99),
)
def test_the_budget_is_kept_again_and_again_and_order_does_not_matter(
    weights: list[float], pixels: list[float], sparsity: float
) -> None:
    model = network(conv(*weights), nn.ReLU())
    run = scheduler(model, desired_sparsity=sparsity)
    model(image(*pixels))
    active = [sum(weight * pixel > 0 for pixel in pixels) for weight in weights]
    run.on_epoch_begin(0)
    first, count = gone(run), int(sparsity * len(weights))
    assert first == sorted(sorted(range(len(weights)), key=lambda index: (active[index], index))[:count])
    model(image(*pixels))
    run.on_epoch_begin(1)
    again = gone(run)
    assert len(again) == count
    assert [active[index] for index in again] == [0] * count or again == first, "without a bias what is pruned stays"


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.sampled_from(["APoZ", "Mean"]))
def test_filters_in_another_order_go_in_that_order(order: list[int], cls: str) -> None:
    weights = [0.5, -1.0, 2.0, -3.0, 4.0, 5.0]
    pixels = image(1.0, 2.0, 3.0, -0.25)
    straight = pruned(network(conv(*weights), nn.ReLU()), pixels, cls=cls, desired_sparsity=2 / 6)
    moved = pruned(network(conv(*[weights[i] for i in order]), nn.ReLU()), pixels, cls=cls, desired_sparsity=2 / 6)
    assert sorted(order[i] for i in moved) == straight


# What every ranked pruner keeps


class Parallel(nn.Module):
    """Layers beside each other that see the same, each with an activation of its own."""

    def __init__(self, **filters: Sequence[float]) -> None:
        super().__init__()
        for name, values in filters.items():
            self.add_module(name, conv(*values))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.relu(layer(x)) for layer in self.children()]


class TestActivationMeanRanking(RankedOrderTests):
    """A filter with one weight gives of a white pixel just that weight."""

    pruner = ActivationMeanRankedFilterPruner
    gradual = ActivationMeanRankedFilterPruner_AGP
    lawful = {"weights": ["fc1.weight"], "granularity": {"dim": 0}}  # noqa: RUF012
    lawful_gradually = RankedOrderTests.lawful

    def model(self, **scores: Sequence[float]) -> nn.Module:
        return Parallel(**scores)

    def prepare(self, scheduler: CompressionScheduler) -> None:
        scheduler.model(image(1.0))


class TestActivationAPoZRanking(TestActivationMeanRanking):
    """A filter with weights w and -1 lets those of all pixels from 0 to 49 through that lie below w."""

    pruner = ActivationAPoZRankedFilterPruner
    gradual = ActivationAPoZRankedFilterPruner_AGP
    lawful = lawful_gradually = RankedOrderTests.lawful

    def model(self, **scores: Sequence[float]) -> nn.Module:
        model = Parallel()
        for name, values in scores.items():
            layer = nn.Conv2d(2, len(values), 1, bias=False)
            layer.weight.data = torch.tensor([[value, -1.0] for value in values]).reshape(-1, 2, 1, 1)
            model.add_module(name, layer)
        return model

    def prepare(self, scheduler: CompressionScheduler) -> None:
        pixels = torch.arange(50.0)
        scheduler.model(torch.stack([torch.ones(50), pixels]).reshape(1, 2, 1, 50))


def test_the_first_schedule_of_the_card_prunes_what_the_card_says() -> None:
    torch.manual_seed(0)
    card, net = Path(__file__).parents[1] / "README.md", ConvNet()
    (*_, run) = epochs_under_card(card, net, None, 12, minibatches=2)
    assert {name: run.sparsity(name) for name in run.masks} == {"conv1.weight": 0.5, "conv2.weight": 0.5}
