"""Reference numbers of pruners that look at activations, gradients or feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle_replay import CASES, Replay, arrays, assert_as_recorded, assert_same, named, parts
from prunekit_activation_ranked_pruner import APoZRanked, MeanRanked
from prunekit_fm_reconstruction_pruner import FMReconstructionChannelPruner
from torch import Tensor, nn

from prunekit import Progress, Window
from prunekit.components import Context
from prunekit.pruning import Units

LAYERS = {"layer.conv1.weight": "layer.relu1", "layer.conv2.weight": "layer.relu2"}


def cases(cls: str, expect: str) -> list[str]:
    return [name for name in named("pruner", expect=expect) if CASES[name]["cls"].startswith(cls)]


class Fed(Replay):
    """The case's inputs go through the model before each epoch begins."""

    def run(self) -> Iterator[tuple[str, int, int]]:
        self.feed()
        for moment, e, m in super().run():
            yield moment, e, m
            if moment == "end":
                self.feed()

    def feed(self) -> None:
        x = arrays(self.name)["x"]
        with torch.no_grad():
            for batch in (x[:3], x[3:]):
                self.model(batch)

    def means(self) -> dict[str, Tensor]:
        """The statistic that the pruner has of each channel now."""
        (component,) = self.scheduler.state_dict()["components"].values()
        return {name: sums[:-1] / sums[-1] for name, sums in component["own"].items()}


@pytest.mark.parametrize("name", cases("Activation", "equal"))
def test_masks_by_apoz_equal_the_reference(name: str) -> None:
    assert_as_recorded(Fed(name))


@pytest.mark.parametrize("name", cases("Activation", "equal"))
def test_the_statistic_is_the_average_percentage_of_zeros_before_each_epoch(name: str) -> None:
    compared = 0
    for statistic, e in statistics(name):
        for key, relu in LAYERS.items():
            assert_same(100 * (1 - statistic[key]), arrays(name)[f"stat/{relu}"][e], f"{relu} before epoch {e}")
            compared += 1
    assert compared == 2 * CASES[name]["epochs"]


def statistics(name: str) -> Iterator[tuple[dict[str, Tensor], int]]:
    """What is known when each epoch begins; the masks are the reference's, so that the weights stay the same."""
    data = arrays(name)
    for e in range(CASES[name]["epochs"]):
        replay = Fed(name)
        with torch.no_grad():
            for key in parts(name, "init/"):
                replay.model.get_parameter(key).copy_(data[f"end/{key}"][e - 1] if e else data[f"init/{key}"])
        replay.feed()
        yield replay.means(), e


@pytest.mark.parametrize("name", cases("Activation", "differs"))
def test_the_mean_activation_is_the_references_and_the_lowest_go(name: str) -> None:
    data = arrays(name)
    for statistic, e in statistics(name):
        for key, relu in LAYERS.items():
            assert_same(statistic[key], data[f"stat/{relu}"][e], f"{relu} before epoch {e}")
    replay = Fed(name)
    for moment, e, m in replay.run():
        for key in LAYERS:
            mask = replay.mask(key)
            if moment == "begin":
                kept = mask.flatten(1).any(1)
                reference = data[f"mask_begin/{key}"][e].flatten(1).any(1)
                assert kept.sum() == reference.sum(), "as many as in the reference"
                if e == 0 and not kept.all():
                    means = data[f"stat/{LAYERS[key]}"][0]
                    assert means[~kept].max() < means[kept].min(), "the lowest, where the reference takes the highest"
                    assert means[~reference].min() > means[reference].max()
            if moment == "end":
                assert not replay.weight(key)[~mask].any()
            if moment == "fwd" and e == m == 0:
                assert_same(replay.weight(key), data[f"init/{key}"] * mask, f"{key} in the first forward pass")


def test_statistics_of_a_tensor_equal_the_tables() -> None:
    data = arrays("tables")
    activation, keys = data["activation"], {"weights": "conv.weight", "group_type": "Filters"}
    count = activation.numel() / activation.shape[1]
    assert_same(100 * (1 - APoZRanked(**keys).amounts(activation, (0, 2, 3)) / count), data["apoz"], "apoz")
    assert_same(MeanRanked(**keys).amounts(activation, (0, 2, 3)) / count, data["mean"], "mean")
    assert_same(Units(1).groups(activation).l1(activation) / len(activation), data["l1"], "l1")


class WithGradients(Replay):
    """The case's gradients are in the parameters before each epoch begins."""

    def run(self) -> Iterator[tuple[str, int, int]]:
        self.give(0)
        for moment, e, m in super().run():
            yield moment, e, m
            if moment == "end" and e + 1 < self.epochs:
                self.give(e + 1)

    def give(self, e: int) -> None:
        for key, gradients in parts(self.name, "grad/").items():
            known = not gradients[e].isnan().any()
            self.model.get_parameter(key).grad = gradients[e].clone() if known else None


@pytest.mark.parametrize("name", cases("Gradient", "differs"))
def test_filters_go_by_the_magnitude_of_the_sum_of_weights_times_gradients(name: str) -> None:
    data, replay = arrays(name), WithGradients(name)
    keys = list(parts(name, "grad/"))
    signed = 0
    before = {key: data[f"init/{key}"] for key in keys}
    for moment, e, _ in replay.run():
        for key in keys:
            kept = replay.mask(key).flatten(1).any(1)
            if moment == "begin":
                reference = data[f"mask_begin/{key}"][e].flatten(1).any(1)
                assert kept.sum() == reference.sum(), f"{key} in epoch {e}: as many as in the reference"
                if e == 0:
                    assert key not in replay.scheduler.masks and data[f"none_begin/{key}"][0], "no gradient yet"
                else:
                    changes = (before[key] * data[f"grad/{key}"][e]).flatten(1).sum(1)
                    assert (~kept).tolist() == lowest(changes.abs(), int((~kept).sum()))
                    signed += not torch.equal(kept, reference)
            if moment == "end":
                before[key] = replay.weight(key).clone()
                assert not before[key][~replay.mask(key)].any()
    assert signed, "somewhere the sign matters"


def lowest(scores: Tensor, count: int) -> list[bool]:
    first = scores.argsort(stable=True)[:count].tolist()
    return [index in first for index in range(len(scores))]


FM = cases("FMReconstruction", "equal")


def layer(name: str) -> nn.Conv2d:
    weight = arrays(name)["init/l.weight"]
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    with torch.no_grad():
        convolution.weight.copy_(weight)
    return convolution


@pytest.mark.parametrize("name", FM)
def test_kept_channels_are_fitted_to_the_feature_maps_like_the_reference(name: str) -> None:
    data, model = arrays(name), nn.Sequential()
    model.add_module("l", layer(name))
    pruner = FMReconstructionChannelPruner(weights="l.weight", group_type="Channels", desired_sparsity=0.4)
    parameters = dict(model.named_parameters())
    context = Context(model, {}, Progress(0), Window(0, 1), {"l.weight": None}, {})
    masks = pruner.compute_masks(parameters, context)
    assert torch.equal(masks["l.weight"], data["mask/l.weight"] != 0)
    x = data["X"].transpose(1, 2).flatten(0, 1).double()  # patches: [160, channels * kernel]
    assert_same(x.float() @ data["init/l.weight"].flatten(1).T, data["Y"], "the feature maps are the layer's")
    pruner.load_state_dict({"sums": {"own": {"l.weight": x.T @ x}, "agreed": {}}, "draws": {}})
    new = pruner.reconstruct(parameters, masks, context)["l.weight"]
    torch.testing.assert_close(new, data["new/l.weight"], rtol=1e-5, atol=1e-5)
    assert torch.equal(new[~masks["l.weight"]], data["new/l.weight"][~masks["l.weight"]])


def test_no_case_is_left_out() -> None:
    mine = ("Activation", "Gradient", "FMReconstruction")
    listed: list[Any] = [cases(cls, expect) for cls in mine for expect in ("equal", "differs")]
    assert sum(map(len, listed)) == len([c for c in CASES.values() if c["cls"].startswith(mine)]) == 8
