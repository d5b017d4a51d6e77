"""Zero asked exactly: a policy whose target is 0 lets its parameters go; one that comes to no whole unit does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, batches, pruning, window, zeros
from torch import nn

from prunekit import CompressionScheduler, Trace

DIM = {"granularity": {"dim": 0}}


class Net(nn.Sequential):
    """A layer of each kind that pruners ask for, with weights that are not zero."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 1), nn.Flatten())
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.1, 1, generator=generator)


FREEING: dict[str, tuple[str, dict[str, Any]]] = {
    "levels": ("SparsityLevelParameterPruner", {"levels": {"0.weight": 0.0}}),
    "a group of weights": ("GlobalMagnitudePruner", {"desired_sparsity": 0, "weights": "0.weight"}),
    "slimming": ("NetworkSlimmingPruner", {"desired_sparsity": 0, "weights": "1.weight"}),
    "random levels": ("RandomLevelStructureParameterPruner", {"sparsity_range": [0, 0], "weights": "0.weight", **DIM}),
    "set": ("SETPruner", {"desired_sparsity": 0, "weights": "0.weight"}),
    "rigl": ("RigLPruner", {"desired_sparsity": 0, "weights": "0.weight"}),
    "snip": ("SNIPPruner", {"desired_sparsity": 0, "weights": "0.weight"}),
    "greedy": ("GreedyFilterPruner", {"desired_sparsity": 0, "weights": "0.weight"}),
    "structures": ("RankedStructurePruner", {"ranking": "l1", "desired_sparsity": 0, "weights": "0.weight", **DIM}),
    **{
        name: (name, {"desired_sparsity": 0, "weights": "0.weight", **DIM})
        for name in (
            *("L1RankedStructureParameterPruner", "L2RankedStructureParameterPruner"),
            *("ActivationAPoZRankedFilterPruner", "ActivationMeanRankedFilterPruner"),
            *("GradientRankedFilterPruner", "RandomRankedFilterPruner", "BernoulliFilterPruner"),
        )
    },
    "reconstruction": ("FMReconstructionChannelPruner", {"desired_sparsity": 0, "weights": "3.weight"}),
}
"""What can be asked for 0 by its own words."""


def after_half(class_: str, keys: dict[str, Any], when: dict[str, int] | None = None, **args: Any) -> Any:
    """Pruned by half in epoch 0, then by another from epoch 1 on."""
    policies = [
        {"pruner": {"instance_name": "half"}, "epochs": [0]},
        {"pruner": {"instance_name": "it", "args": args}, **(when or window(1, 3))},
    ]
    owned = [*keys.get("levels", [keys.get("weights")])]
    levels = dict.fromkeys([*owned, *(["1.bias"] if owned == ["1.weight"] else [])], 0.5)
    half = {"class": "SparsityLevelParameterPruner", "levels": levels}
    return {"version": 1, "pruners": {"half": half, "it": {"class": class_, **keys}}, "policies": policies}


def trained(data: Any, epochs: int = 3) -> tuple[nn.Module, CompressionScheduler, Recorder]:
    model, log = Net(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=Trace(logger=log))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in scheduler.epochs(epochs):
        for _ in scheduler.minibatches(range(2)):
            optimizer.zero_grad()
            scheduler.total_loss(model(images).square().mean()).backward()
            optimizer.step()
    return model, scheduler, log


@pytest.mark.parametrize(("class_", "keys"), FREEING.values(), ids=FREEING)
def test_a_target_of_0_drops_the_mask_and_the_weights_grow_again(class_: str, keys: dict[str, Any]) -> None:
    model, scheduler, log = trained(after_half(class_, keys))
    owned = list(scheduler.policies[1].parameters)
    assert owned and dict(scheduler.masks) == {}
    assert [zeros(model.get_parameter(name)) for name in owned] == [0 for _ in owned]
    (freed,) = log.events("masks freed")
    assert (freed["level"], freed["policy"], freed["epoch"], freed["parameters"]) == ("info", "policies[1]", 1, owned)


@pytest.mark.parametrize(("class_", "keys"), FREEING.values(), ids=FREEING)
def test_where_no_mask_was_there_is_nothing_to_free(class_: str, keys: dict[str, Any]) -> None:
    data = after_half(class_, keys)
    data["policies"] = data["policies"][1:]
    _, scheduler, log = trained(data)
    assert dict(scheduler.masks) == {}
    assert log.events("masks freed", "masks changed") == []
    nothing, *_ = log.events("nothing pruned")
    assert nothing["parameters"] == list(scheduler.policies[0].parameters)


@pytest.mark.parametrize("args", [{"mini_batch_pruning_frequency": 1}, {"mask_on_forward_only": True}], ids=str)
def test_policies_that_prune_otherwise_free_once_too(args: dict[str, Any]) -> None:
    model, scheduler, log = trained(after_half(*FREEING["levels"], **args))
    assert ("0.weight" in scheduler.masks, zeros(model[0].weight)) == (False, 0)
    assert len(log.events("masks freed")) == 1


TOO_FEW: dict[str, tuple[str, dict[str, Any]]] = {
    "less than one weight": ("SparsityLevelParameterPruner", {"levels": {"0.weight": 0.001}}),
    "less than one of all": ("GlobalMagnitudePruner", {"desired_sparsity": 0.001, "weights": "0.weight"}),
    "less than one channel": ("NetworkSlimmingPruner", {"desired_sparsity": 0.1, "weights": "1.weight"}),
    "less than one filter": (
        "L1RankedStructureParameterPruner",
        {"desired_sparsity": 0.1, "weights": "0.weight", **DIM},
    ),
    **{
        f"the beginning of {name}": (name, {"initial_sparsity": 0, "final_sparsity": 0.5, "weights": weights, **more})
        for name, weights, more in (
            ("AutomatedGradualPruner", "0.weight", {}),
            ("GlobalMagnitudePruner_AGP", "0.weight", {}),
            ("NetworkSlimmingPruner_AGP", "1.weight", {}),
            ("MovementPruner", "0.weight", {}),
            ("L1RankedStructureParameterPruner_AGP", "0.weight", DIM),
            ("BernoulliFilterPruner_AGP", "0.weight", DIM),
        )
    },
}
"""What is asked for more than 0 by its words and comes to nothing, or to nothing yet."""


@pytest.mark.parametrize(("class_", "keys"), TOO_FEW.values(), ids=TOO_FEW)
def test_a_target_that_comes_to_no_whole_unit_leaves_the_mask_as_it_is(class_: str, keys: dict[str, Any]) -> None:
    _, both, log = trained(after_half(class_, keys), 2)
    half = after_half(class_, keys)
    half["policies"] = half["policies"][:1]
    _, alone, _ = trained(half, 2)
    assert {name: mask.tolist() for name, mask in both.masks.items()} == {
        name: mask.tolist() for name, mask in alone.masks.items()
    }
    assert log.events("masks freed") == []


def test_dense_sparse_dense() -> None:
    data = pruning(when=window(1, 2))
    data["policies"].append({"pruner": {"instance_name": "p", "args": {"levels": {"fc1.weight": 0.0}}}, "epochs": [3]})
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler.from_dict(data, model, optimizer, trace=SILENT)
    seen = []
    for _ in scheduler.epochs(5):
        for x, y in scheduler.minibatches(batches()):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        seen.append(scheduler.sparsity("fc1.weight"))
    assert seen == [0, 0.5, 0.5, 0, 0]
