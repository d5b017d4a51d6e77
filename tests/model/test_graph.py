"""What torch.fx says of a model's data flow: which normalization and which activation is behind a layer."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.model import following_activations, following_batchnorms, unwrapped


class Residual(nn.Module):
    """As in a ResNet: one ReLU for both places, and an addition before the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def places(model: nn.Module) -> dict[str, tuple[str, int]]:
    found = following_activations(model).items()
    return {name: (activation.module, len(activation.functions)) for name, activation in found}


def test_a_shared_activation_is_applied_to_the_module_before_it_and_an_addition_hides_it() -> None:
    model = Residual()
    assert places(model) == {"conv1": ("bn1", 1)}
    activation, output = following_activations(model)["conv1"], torch.tensor([-1.0, 2.0])
    assert activation.of(output).tolist() == [0, 2]
    assert output.tolist() == [-1, 2], "although the ReLU works in place"


def test_an_activation_can_be_pickled_with_the_hook_that_holds_it() -> None:
    model = Residual()
    activation = pickle.loads(pickle.dumps(following_activations(model)["conv1"]))
    assert activation.of(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(1, 2, 1), nn.ReLU()], {"0": ("1", 0)}),
        ([nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Dropout(), nn.GELU()], {"0": ("3", 0)}),
        ([nn.Conv3d(1, 2, 1), nn.MaxPool3d(2), nn.PReLU()], {"0": ("2", 0)}),
        ([nn.Linear(1, 2), nn.Sequential(nn.Identity(), nn.Hardswish())], {"0": ("1.1", 0)}),
        ([nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.RReLU()], {"1": ("2", 0)}),
        ([nn.Conv2d(1, 2, 1), nn.Flatten(), nn.ReLU()], {}),
        ([nn.Conv2d(1, 2, 1), nn.Softmax(1)], {}),
        ([nn.ConvTranspose2d(1, 2, 1), nn.ReLU()], {}),
    ],
)
def test_an_activation_is_found_behind_what_leaves_channels_where_they_are(
    layers: list[nn.Module], expected: dict[str, tuple[str, int]]
) -> None:
    assert places(nn.Sequential(*layers)) == expected


class Twice(nn.Module):
    """One convolution that is called twice, one whose output is used twice, one norm that is called twice."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.called, self.used, self.first, self.second = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.bn, self.same = nn.BatchNorm2d(2), same

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.called(x))
        x = torch.relu(self.called(x)) if self.same else self.called(x)
        y = self.used(x)
        x = torch.relu(y) + y
        return torch.relu(self.bn(self.first(x))) + torch.relu(self.bn(self.second(x)))


def test_where_calls_and_uses_disagree_nothing_is_found() -> None:
    assert places(Twice(same=True)) == {"called": ("called", 1)}
    assert places(Twice(same=False)) == {}


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (nn.DataParallel, "module."),
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
        (lambda model: nn.DataParallel(torch.compile(model, backend="eager")), "module._orig_mod."),
        (lambda model: model, ""),
    ],
)
def test_a_wrapped_model_is_looked_into_and_its_names_are_those_of_the_wrapped_one(wrap: Any, prefix: str) -> None:
    inner = Residual()
    model = wrap(inner)
    assert unwrapped(model) == (prefix, inner)
    assert places(model) == {f"{prefix}conv1": (f"{prefix}bn1", 1)}
    assert following_batchnorms(model) == {f"{prefix}conv{i}": f"{prefix}bn{i}" for i in (1, 2)}
    modules = dict(model.named_modules())
    assert modules[f"{prefix}bn1"] is inner.bn1


def test_a_synchronized_batch_normalization_is_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.SyncBatchNorm(2))
    assert following_batchnorms(model) == {"0": "1"}


class Shared(nn.Module):
    """Two layers in front of one module and a ReLU."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.between(self.second(torch.relu(self.between(self.first(x))))))


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (nn.GroupNorm(1, 2), {"first": ("first", 2), "second": ("second", 2)}),
        (nn.Identity(), {"first": ("first", 2), "second": ("second", 2)}),
        (nn.Dropout(), {}),
        (nn.InstanceNorm2d(2), {}),
        (nn.LayerNorm(2), {}),
    ],
)
def test_what_is_run_twice_is_run_again_unless_it_draws_or_counts(
    between: nn.Module, expected: dict[str, tuple[str, int]]
) -> None:
    assert places(Shared(between)) == expected


class Remembers(nn.Module):
    """Counts its forward passes in an attribute and in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.conv = 0, nn.Conv2d(2, 2, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.seen += 1
        self.last = torch.relu(self.conv(x))
        return self.last


def test_looking_changes_nothing_in_the_model_and_in_what_is_inside() -> None:
    model = nn.Sequential(Remembers())
    buffer = model[0].seen
    assert places(model) == {"0.conv": ("0.conv", 1)}
    assert (model[0].runs, float(model[0].seen), hasattr(model[0], "last")) == (0, 0.0, False)
    assert model[0].seen is buffer and model.training


class CanNotBeTraced(Remembers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if random.random() < 2 and x.sum() > 0 else x


def test_looking_in_vain_changes_nothing_either() -> None:
    model, state = nn.Sequential(Remembers(), CanNotBeTraced()), random.getstate()
    with pytest.raises(torch.fx.proxy.TraceError):
        following_activations(model)
    assert [(inner.runs, float(inner.seen)) for inner in model] == [(0, 0.0), (0, 0.0)]
    assert random.getstate() == state


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(3)


def test_looking_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    assert places(Noisy()) == {}
    assert torch.equal(torch.get_rng_state(), state)
