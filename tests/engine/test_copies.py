"""Other copies of the model: what `apply_to` and `masked` put into them, and that copies are independent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, pruning
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, PrunekitError, Schedule, Window
from prunekit.components import Selectors


def pruned(net: nn.Module | None = None, **keys: Any) -> CompressionScheduler:
    """fc1.weight is half zero."""
    run = CompressionScheduler.from_dict(pruning(**keys), net or MLP(), trace=SILENT)
    run.on_epoch_begin(0)
    return run


def scaled(net: nn.Module, weights: str) -> CompressionScheduler:
    """Half of the weights are masked, and the forward pass sees the others at twice their size."""
    policy = PolicySpec("pruner", "p", Window(0, 1))
    schedule = Schedule([ComponentSpec("pruner", "p", Scaled, {"weights": weights})], [policy])
    run = CompressionScheduler(schedule, net, trace=SILENT)
    run.on_epoch_begin(0)
    return run


def dense(net: nn.Module) -> nn.Module:
    """The same with weights that are all 1."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)
    return net


def averaged(net: nn.Module) -> nn.Module:
    return AveragedModel(net)


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(copy.deepcopy(net))  # type: ignore[return-value]


def parallel(net: nn.Module) -> nn.Module:
    return nn.DataParallel(copy.deepcopy(net))


def halved(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).half()


def frozen(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(False)


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, averaged, compiled, parallel, halved, frozen]


def weight_of(net: nn.Module) -> Tensor:
    (weight,) = (p for name, p in net.named_parameters() if name.endswith("fc1.weight"))
    return weight.detach()


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_gets_the_zeros_by_name_whatever_wraps_it(copied):
    run = pruned()
    other = dense(copied(run.model))
    assert run.apply_to(other) == {"fc1.weight": (0.0, 0.5)}
    assert torch.equal(weight_of(other) != 0, run.masks["fc1.weight"])
    assert sum(int((p == 0).sum()) for p in other.parameters()) == 48


def test_a_wrapped_model_masks_a_bare_copy():
    run = pruned(nn.DataParallel(MLP()), levels={"*fc1.weight": 0.5})
    other = dense(MLP())
    assert run.apply_to(other) == {"module.fc1.weight": (0.0, 0.5)}
    assert torch.equal(weight_of(other) != 0, run.masks["module.fc1.weight"])


def test_a_state_dict_gets_the_zeros_in_place():
    run = pruned()
    best = {f"module.{name}": torch.ones_like(value) for name, value in run.model.state_dict().items()}
    best["n_averaged"] = torch.tensor(0)
    assert run.apply_to(best) == {"fc1.weight": (0.0, 0.5)}
    assert torch.equal(best["module.fc1.weight"] != 0, run.masks["fc1.weight"])
    assert best["n_averaged"].item() == 0


def test_doing_it_again_changes_nothing():
    run, other = pruned(), dense(MLP())
    run.apply_to(other)
    assert run.apply_to(other) == {"fc1.weight": (0.5, 0.5)}


def test_zeros_are_exact_whatever_was_there():
    run, other = pruned(), MLP()
    with torch.no_grad():
        other.fc1.weight.copy_(torch.tensor([-torch.inf, torch.nan, -1.0]).repeat(32).reshape(8, 12))
    run.apply_to(other)
    gone = other.fc1.weight[~run.masks["fc1.weight"]]
    assert gone.tolist() == [0.0] * 48
    assert not gone.signbit().any()


def test_all_that_does_not_fit_is_one_error_and_nothing_has_changed():
    run = pruned(levels={"fc1.weight": 0.5, "fc2.weight": 0.5, "fc2.bias": 0.5, "fc1.bias": 0.5})
    other = {
        "fc1.weight": torch.ones(8, 12),
        "fc2.weight": torch.ones(4, 9),
        "fc2.bais": torch.ones(4),
        "module.fc1.bias": torch.ones(8),
        "module.module.fc1.bias": torch.ones(8),
    }
    with pytest.raises(PrunekitError) as error:
        run.apply_to(other)
    assert str(error.value).splitlines() == [
        "the masks do not fit, and nothing was changed:",
        "'fc1.bias' may be 'module.fc1.bias' or 'module.module.fc1.bias'",
        "'fc2.weight' must have the shape (4, 8), got (4, 9)",
        "'fc2.bias' is not in it; did you mean 'fc2.bais'?",
    ]
    assert other["fc1.weight"].all()
    with pytest.raises(PrunekitError, match=r"fc2\.weight"), run.masked(other):
        pass


IN_MEMORY = "'fc1.weight' must be a dense tensor in memory, got"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "'fc1.weight' must be a tensor (8, 12), got None"),
        (torch.ones(8, 12, device="meta"), IN_MEMORY + " one on meta"),
        (torch.ones(8, 12).to_sparse(), IN_MEMORY + " one that is torch.sparse_coo"),
        (torch.ones(12).expand(8, 12), IN_MEMORY + " one of which several elements are one place in memory"),
        (torch.ones(8, 12).to(torch.float8_e4m3fn), IN_MEMORY + " one of torch.float8_e4m3fn"),
    ],
)
def test_what_is_no_tensor_in_memory_does_not_fit(value, message):
    with pytest.raises(PrunekitError) as error:
        pruned().apply_to({"fc1.weight": value})
    assert str(error.value).splitlines()[1:] == [message]


def test_what_is_no_copy_is_refused():
    with pytest.raises(PrunekitError, match="masks are put into a model or a state_dict, got 3"):
        pruned().apply_to(3)  # type: ignore[arg-type]


# What only the forward pass sees


def test_zeros_that_only_the_forward_pass_sees_are_put_into_a_copy_too():
    run = pruned(args={"mask_on_forward_only": True})
    other = dense(copy.deepcopy(run.model))
    assert run.apply_to(other) == {"fc1.weight": (0.0, 0.5)}


def test_the_memory_that_is_trained_does_not_get_zeros_that_only_the_forward_pass_sees():
    run = pruned(args={"mask_on_forward_only": True})
    with pytest.raises(PrunekitError, match=r"'fc1\.weight': the very memory that is being trained"):
        run.apply_to(run.model.state_dict())
    assert (weight_of(run.model) != 0).all()


def test_the_model_itself_may_be_masked_again():
    run = pruned()
    dense(run.model)
    assert run.apply_to(nn.DataParallel(run.model)) == {"fc1.weight": (0.0, 0.5)}


@pytest.mark.parametrize(("args", "after"), [({}, 0.5), ({"mask_on_forward_only": True}, 0.0)])
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_masked_for_evaluation(copied, args, after):
    run = pruned(args=args)
    other = dense(copied(run.model))
    with run.masked(other):
        assert torch.equal(weight_of(other) != 0, run.masks["fc1.weight"])
    assert float((weight_of(other) == 0).float().mean()) == after


def test_the_model_itself_in_a_wrapper_is_masked_as_without():
    run = pruned(args={"mask_on_forward_only": True})
    dense(run.model)
    with run.masked(nn.DataParallel(run.model)):
        assert torch.equal(weight_of(run.model) != 0, run.masks["fc1.weight"])
    assert (weight_of(run.model) == 1).all()


class Scaled:
    """Keeps the first half of each weight, at twice its size in the forward pass."""

    def __init__(self, weights: Selectors) -> None: ...

    def compute_masks(self, parameters: Any, context: Any) -> dict[str, Tensor]:
        return {name: torch.arange(p.numel()).reshape(p.shape) < p.numel() // 2 for name, p in parameters.items()}

    def forward_scales(self, masks: Any) -> dict[str, float]:
        return dict.fromkeys(masks, 2.0)


def test_a_scale_belongs_to_the_forward_pass_and_is_undone():
    run = scaled(MLP(), "fc1.weight")
    other = dense(copy.deepcopy(run.model))
    with run.masked(other):
        assert weight_of(other).unique().tolist() == [0.0, 2.0]
    assert (weight_of(other) == 1).all()
    run.apply_to(other)
    assert weight_of(other).unique().tolist() == [0.0, 1.0]


# Tied parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_what_is_no_longer_tied_in_a_copy_is_masked_in_all_places():
    run = pruned(Tied(), levels={"embed.weight": 0.5})
    untied = {name: torch.ones(6, 4) for name in ("embed.weight", "head.weight")}
    assert run.apply_to(untied) == {"embed.weight": (0.0, 0.5), "head.weight": (0.0, 0.5)}
    assert run.apply_to({"embed.weight": torch.ones(6, 4)}) == {"embed.weight": (0.0, 0.5)}
    assert run.apply_to(dense(copy.deepcopy(run.model))) == {"embed.weight": (0.0, 0.5)}


def test_what_is_tied_in_a_copy_too_is_scaled_once():
    run = scaled(Tied(), "embed.weight")
    tied = dense(copy.deepcopy(run.model))
    with run.masked(tied.state_dict()):
        assert tied.embed.weight.unique().tolist() == [0.0, 2.0]
