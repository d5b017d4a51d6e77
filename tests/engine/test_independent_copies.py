"""Deep copies and pickles of a pruned model, and of the scheduler: independent of what they were made from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, equal, pruning, train_attached, train_explicit, window
from torch import Tensor, nn

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    MaskChange,
    PolicySpec,
    PrunekitError,
    Schedule,
    Trace,
    Window,
    hookimpl,
)
from prunekit.components import Context, Selectors
from prunekit.trace import read


class Hears:
    """Counts the batches that flow through fc1, and prunes nothing before it has heard one."""

    def __init__(self, weights: Selectors) -> None:
        self.heard = 0

    def listen(self, parameters: Any, context: Context) -> Any:
        # A closure can't be pickled, and would go into a deep copy as it is: the copy would be heard too.
        yield context.model.fc1.register_forward_hook(lambda *_: self.hear(), with_kwargs=True)
        yield context.model.fc2.register_forward_pre_hook(lambda *_: self.hear())

    def hear(self) -> None:
        self.heard += 1

    def compute_masks(self, parameters: Any, context: Context) -> Mapping[str, Tensor]:
        return {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in parameters.items()}


def listening() -> Schedule:
    policy = PolicySpec("pruner", "p", Window(0, 4))
    return Schedule([ComponentSpec("pruner", "p", Hears, {"weights": "fc1.weight"})], [policy])


def four(schedule: dict[str, Any]) -> Schedule:
    """The schedule with a window of four epochs."""
    (policy,) = schedule["policies"]
    return Schedule.from_dict({**schedule, "policies": [{**policy, **window(0, 4)}]})


SCHEDULES: dict[str, Schedule] = {
    "enforced": four(pruning()),
    "forward only": four(pruning(args={"mask_on_forward_only": True, "use_double_copies": True})),
    "gradients": four(pruning(args={"mask_on_forward_only": True, "mask_gradients": True})),
    "listening": listening(),
    "gradual": four(
        pruning("AutomatedGradualPruner", initial_sparsity=0.25, final_sparsity=0.75, weights=["fc1.weight"])
    ),
    "activations": four(
        pruning(
            "ActivationAPoZRankedFilterPruner", granularity={"dim": 0}, desired_sparsity=0.5, weights=["fc1.weight"]
        )
    ),
}


def begun(
    schedule: Schedule = SCHEDULES["enforced"], **options: Any
) -> tuple[CompressionScheduler, torch.optim.Optimizer]:
    """A run that stands in its second epoch."""
    net = MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = CompressionScheduler(schedule, net, optimizer, **{"trace": SILENT, **options})
    train_explicit(run, optimizer, range(1))
    run.on_epoch_begin(1)
    return run, optimizer


def saved(net: nn.Module) -> nn.Module:
    file = BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n)), saved]


def gradient(net: Any) -> Tensor:
    x, y = batches()[0]
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    return net.fc1.weight.grad


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "torch.save"])
def test_a_copy_of_the_model_knows_nothing_of_the_scheduler(copied, schedule):
    run, _ = begun(schedule)
    twin = copied(run.model)
    plain = MLP()
    plain.load_state_dict(run.model.state_dict())
    heard = getattr(run.policies[0].component, "heard", None)
    assert torch.equal(gradient(twin), gradient(plain))
    assert getattr(run.policies[0].component, "heard", None) == heard
    with torch.no_grad():
        twin.fc1.weight.fill_(1)
    assert torch.equal(run.model.fc1.weight, plain.fc1.weight)


def test_what_a_pruner_hears_goes_on_in_the_model_alone():
    run, _ = begun(SCHEDULES["listening"])
    twin, pruner = copy.deepcopy(run.model), run.policies[0].component
    before = pruner.heard
    assert before > 0
    twin(torch.ones(1, 12))
    assert pruner.heard == before
    run.model(torch.ones(1, 12))
    assert pruner.heard == before + 2


@pytest.mark.slow
def test_a_pruned_model_goes_to_a_process_that_is_spawned():
    run, _ = begun(SCHEDULES["listening"])
    run.model.requires_grad_(False)  # a result with a gradient can't be sent back
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(run.model, (torch.ones(1, 12),)), run.model(torch.ones(1, 12)))


# The scheduler


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_copy_of_model_optimizer_and_scheduler_trains_as_the_original_would(schedule):
    run, optimizer = begun(schedule)
    run.on_epoch_end(1)
    net, twin_optimizer, twin = copy.deepcopy((run.model, optimizer, run))
    assert (twin.model, twin.optimizer) == (net, twin_optimizer)
    before = weights(run.model)
    train_attached(twin, twin_optimizer, 4)
    assert equal(weights(run.model), before)
    train_attached(run, optimizer, 4)
    assert equal(weights(run.model), weights(net))
    assert equal(run.masks, twin.masks)


def test_a_scheduler_alone_is_copied_with_its_model_and_optimizer():
    run, _ = begun()
    run.on_epoch_end(1)
    twin = copy.deepcopy(run)
    assert twin.model is not run.model
    assert twin.optimizer.param_groups[0]["params"][0] is twin.model.fc1.weight
    assert twin.masks["fc1.weight"].data_ptr() != run.masks["fc1.weight"].data_ptr()
    assert list(twin.epochs(4)) == [2, 3]
    assert list(run.epochs(4)) == [2, 3]


def test_a_copy_within_an_epoch_goes_on_within_it():
    net = MLP()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = CompressionScheduler.from_dict(pruning(), net, optimizer, trace=SILENT)
    run.on_epoch_begin(0)
    run.on_minibatch_begin(0, 0, 2)
    gradient(net)
    optimizer.step()
    twin = copy.deepcopy(run)
    twin.on_minibatch_end(0, 0, 2)
    gradient(twin.model)
    twin.on_minibatch_begin(0, 1, 2)
    twin.optimizer.step()
    assert (twin.progress.step, twin.progress.stepped, twin.sparsity("fc1.weight")) == (1, True, 0.5)


def test_a_copy_writes_into_no_folder(tmp_path):
    run, _ = begun(trace=Trace(tmp_path, logger=None))
    run.on_epoch_end(1)
    lines = list(read(tmp_path))
    twin = copy.deepcopy(run)
    list(twin.epochs(3))
    assert list(read(tmp_path)) == lines


class Counts:
    """A listener with a memory."""

    def __init__(self) -> None:
        self.changes: list[MaskChange] = []

    @hookimpl
    def on_masks_changed(self, changes: Any) -> None:
        self.changes += changes


def test_listeners_that_were_given_are_copied_too():
    counts = Counts()
    run, _ = begun(listeners=[counts])
    run.on_epoch_end(1)
    _, twin_counts = copy.deepcopy((run, counts))
    assert twin_counts.changes == counts.changes
    twin, twin_counts = copy.deepcopy((run, counts))
    list(twin.epochs(3))
    assert (len(counts.changes), len(twin_counts.changes)) == (2, 3)


def test_modules_and_classes_that_listen_go_on_in_the_copy():
    module = ModuleType("hears")
    module.heard = []

    @hookimpl
    def on_masks_changed(changes: Any) -> None:
        module.heard.append(changes[0].parameter)

    module.on_masks_changed = on_masks_changed
    run, _ = begun(listeners=[module, Counts])
    run.on_epoch_end(1)
    list(copy.deepcopy(run).epochs(3))
    assert module.heard == ["fc1.weight"] * 3


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MLP()
        self.run = CompressionScheduler.from_dict(pruning(), self.net, trace=SILENT)


def test_a_module_that_holds_the_model_and_its_scheduler_is_copied():
    twin = copy.deepcopy(Holds())
    assert twin.run.model is twin.net
    twin.run.on_epoch_begin(0)
    assert twin.run.sparsity("fc1.weight") == 0.5


def test_what_cannot_be_copied_says_so_and_what_to_do():
    run, _ = begun()
    for refused in (pickle.dumps, copy.copy):
        with pytest.raises(PrunekitError, match=r"save its state_dict\(\)"):
            refused(run)
    run.on_minibatch_begin(1, 0, 2)
    with pytest.raises(PrunekitError, match="copy it between two mini-batches"):
        copy.deepcopy(run)


def test_a_model_that_holds_its_scheduler_cannot_be_copied_with_it():
    net = MLP()
    net.run = CompressionScheduler.from_dict(pruning(), net, trace=SILENT)
    for refused in (net, net.run):
        with pytest.raises(PrunekitError, match="MLP holds the scheduler that it is trained by"):
            copy.deepcopy(refused)


def test_a_scheduler_with_a_quantizer_cannot_be_copied():
    policy = {"quantizer": {"instance_name": "q"}, **window(0, 3)}
    schedule = {
        "version": 1,
        "quantizers": {"q": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": None}},
        "policies": [policy],
    }
    run, _ = begun(Schedule.from_dict(schedule))
    with pytest.raises(PrunekitError, match="a scheduler with a quantizer can't be copied"):
        copy.deepcopy(run)
