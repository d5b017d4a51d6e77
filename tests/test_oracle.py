"""Reference numbers: each case is replayed through the public API, from its YAML and event by event."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle_models import MODELS
from torch import Tensor, nn

from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    Context,
    LossTerm,
    PolicySpec,
    Schedule,
    ScheduleError,
    Trace,
    Window,
    hookimpl,
    prune_lowest,
)
from prunekit.plugins import Plugins, load_plugins
from prunekit.registry import Found, Registry

HERE = Path(__file__).parent / "oracle"
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in json.loads((HERE / "manifest.json").read_text())}
SILENT = Trace(level="error")


def named(*kinds: str, expect: str = "equal") -> list[str]:
    return [name for name, case in CASES.items() if case["kind"] in kinds and case["expect"] == expect]


@cache
def arrays(name: str) -> dict[str, Tensor]:
    with np.load(HERE / CASES[name]["file"]) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def parts(name: str, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays(name).items() if key.startswith(prefix)}


def model_of(name: str) -> nn.Module:
    model = MODELS[CASES[name]["model"]]()
    with torch.no_grad():
        for key, value in parts(name, "init/").items():
            model.get_parameter(key).copy_(value)
        if "bn1.running_var" in arrays(name):
            model.get_buffer("bn1.running_var").copy_(arrays(name)["bn1.running_var"])
    return model


class L1RankedFilters:
    """Filters ranked by their mean magnitude: enough of the ranked pruners to replay a case about policies."""

    def __init__(self, group_type: str, desired_sparsity: float, weights: list[str]) -> None:
        assert group_type == "Filters"
        self.desired_sparsity, self.targets = desired_sparsity, weights

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        scores = {name: weight.abs().mean(dim=(1, 2, 3)) for name, weight in parameters.items()}
        keep = {name: prune_lowest(score, self.desired_sparsity) for name, score in scores.items()}
        return {name: keep[name][:, None, None, None].expand_as(weight) for name, weight in parameters.items()}


def plugins() -> Plugins:
    plugins = load_plugins()
    installed = plugins.registry
    ranked = Found(L1RankedFilters, "tests", "0")
    find = lambda kind, name: [ranked] if name == "L1RankedStructureParameterPruner" else installed._find(kind, name)
    return replace(plugins, registry=Registry(installed.offers, find))


def schedule_of(name: str) -> Schedule:
    return Schedule.from_text(CASES[name]["yaml"], name)


class Replay:
    """Drives a case: no optimizer steps, the recorded deltas are added instead."""

    def __init__(self, name: str, lr: float = 0.1) -> None:
        self.name, self.model = name, model_of(name)
        self.deltas = parts(name, "delta/")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.scheduler = CompressionScheduler(
            schedule_of(name), self.model, self.optimizer, trace=SILENT, plugins=plugins()
        )
        self.epochs, self.minibatches = next(iter(self.deltas.values())).shape[:2]
        self.total = torch.zeros(())

    def run(self) -> Iterator[tuple[str, int, int]]:
        scheduler, total = self.scheduler, self.minibatches
        for e in range(self.epochs):
            scheduler.on_epoch_begin(e)
            yield "begin", e, -1
            for m in range(total):
                scheduler.on_minibatch_begin(e, m, total)
                yield "fwd", e, m
                self.model.zero_grad()
                self.total = scheduler.before_backward_pass(e, m, total, torch.zeros(()))
                if self.total.requires_grad:
                    self.total.backward()
                scheduler.before_parameter_optimization(e, m, total)
                yield "loss", e, m
                with torch.no_grad():
                    for key, delta in self.deltas.items():
                        self.model.get_parameter(key).add_(delta[e, m])
                scheduler.on_minibatch_end(e, m, total)
                yield "mbend", e, m
            scheduler.on_epoch_end(e)
            yield "end", e, -1

    def weight(self, key: str) -> Tensor:
        return self.model.get_parameter(key).detach()

    def mask(self, key: str) -> Tensor:
        return self.scheduler.masks.get(key, torch.ones_like(self.weight(key), dtype=torch.bool))


def same(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}")


def check(replay: Replay, ignore: tuple[str, ...] = ()) -> None:
    name, data = replay.name, arrays(replay.name)
    keys = [key for key in parts(name, "init/") if key not in ignore]
    compared, losses = 0, []
    for moment, e, m in replay.run():
        at = e if m < 0 else (e, m)
        for key in keys:
            recorded = {"begin": "", "end": "end/", "fwd": "fwd/", "mbend": "mbend/", "loss": ""}[moment] + key
            if "/" in recorded and recorded in data:
                same(replay.weight(key), data[recorded][at], f"{recorded} at {at}")
                compared += 1
            if f"mask_{moment}/{key}" in data:
                expected = data[f"mask_{moment}/{key}"][at] != 0
                assert torch.equal(replay.mask(key), expected), f"mask_{moment}/{key} at {at}"
                assert key not in replay.scheduler.masks or not data[f"none_{moment}/{key}"][at] or expected.all()
                compared += 1
            if moment == "loss" and f"grad/{key}" in data:
                gradient = replay.model.get_parameter(key).grad
                gradient = torch.zeros_like(replay.weight(key)) if gradient is None else gradient
                same(gradient, data[f"grad/{key}"][at], f"grad/{key} at {at}")
                compared += 1
        if moment == "loss":
            losses.append(replay.total.detach().double())
    for key in ("reg_loss", "overall_loss"):
        if key in data and not ignore:
            expected = data[key].reshape(-1)
            torch.testing.assert_close(torch.stack(losses)[: len(expected)], expected, rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared > replay.epochs


@pytest.mark.parametrize("name", named("pruner", "policy", "regularizer", "seed"))
def test_case_equals_the_reference(name: str) -> None:
    lr = arrays(name)["lr"].reshape(-1)[0].item() if "lr" in arrays(name) else 0.1
    replay = Replay(name, lr)
    check(replay)


@pytest.mark.parametrize("name", named("seed"))
def test_seed_case_has_the_learning_rate_of_the_reference(name: str) -> None:
    expected = arrays(name)["lr"].reshape(-1)
    replay, seen = Replay(name, expected[0].item()), []
    for moment, _, _ in replay.run():
        if moment == "begin":
            seen.append(replay.optimizer.param_groups[0]["lr"])
    torch.testing.assert_close(torch.tensor(seen, dtype=torch.float64), expected)


@pytest.mark.parametrize("name", [n for n in named("regularizer", expect="differs") if n.startswith("grouplasso")])
def test_rows_and_columns_are_divided_by_their_own_number_of_elements(name: str) -> None:
    check(Replay(name), ignore=("fc.weight",))
    replay, data = Replay(name), arrays(name)
    group = next(spec for spec in replay.scheduler.schedule.components).args["reg_regims"]["fc.weight"]
    strength, dim = group[0], {"Rows": 1, "Cols": 0}[group[1]]
    weight = data["init/fc.weight"].clone()
    for moment, e, m in replay.run():
        if moment == "mbend" and e < 2:
            weight = weight + data["delta/fc.weight"][e, m]
            weight = torch.where(weight.abs().mean(dim, keepdim=True) > strength, weight, 0)
            same(replay.weight("fc.weight"), weight, f"fc.weight at {e}, {m}")


def test_ties_prune_exactly_the_number_asked_for() -> None:
    replay, data = Replay("level_ties"), arrays("level_ties")
    replay.scheduler.on_epoch_begin(0)
    constant = torch.ones(32, dtype=torch.bool)
    constant[:8] = False
    assert torch.equal(replay.mask("fc2.weight").reshape(-1), constant)
    fc1, reference = replay.mask("fc1.weight"), data["mask_begin/fc1.weight"][0] != 0
    assert (~fc1).sum() == 48 < (~reference).sum()
    assert not reference[~fc1].any(), "what is pruned here is pruned there"


def test_keep_mask_holds_from_the_last_active_epoch_on() -> None:
    replay, data = Replay("policy_keep_mask"), arrays("policy_keep_mask")
    kept = None
    for moment, e, m in replay.run():
        weight, mask = replay.weight("fc1.weight"), replay.mask("fc1.weight")
        if e < 2 and moment in ("fwd", "end"):
            recorded = data[f"{moment}/fc1.weight"][e if m < 0 else (e, m)]
            same(weight, recorded, f"{moment} {e} {m}")
        if (e, moment) == (2, "begin"):
            assert torch.equal(mask, data["mask_begin/fc1.weight"][2] != 0)
            kept = mask.clone()
        if kept is not None and (e > 2 or (e, moment) == (2, "end")):
            assert torch.equal(mask, kept) and not weight[~kept].any()


def test_a_policys_arguments_govern_its_own_parameters_only() -> None:
    replay = Replay("policy_two_pruners_conflict")
    for moment, e, _ in replay.run():
        fc1, fc2 = replay.weight("fc1.weight"), replay.weight("fc2.weight")
        if moment == "fwd" and e < 4:
            assert not fc1[~replay.mask("fc1.weight")].any()
        if moment == "end" and e < 4:
            assert fc1[~replay.mask("fc1.weight")].all(), "forward only: between epochs fc1 is unmasked"
        if moment == "end" and e >= 1:
            assert not fc2[~replay.mask("fc2.weight")].any()


def test_two_pruners_of_one_parameter_in_one_epoch_are_refused() -> None:
    with pytest.raises(ScheduleError) as error:
        Replay("policy_same_param_two_pruners")
    assert str(error.value) == (
        "policy_same_param_two_pruners:14:13: policies[1].pruner: "
        "policies[0] ('a') prunes 'fc1.weight' in epoch 1 too; two policies may not"
    )


def test_a_thresholding_regularizer_leaves_the_pruners_mask_in_force() -> None:
    replay = Replay("pruner_plus_threshold_regularizer")
    masks = {}
    for moment, e, _ in replay.run():
        mask, weight = replay.mask("fc1.weight"), replay.weight("fc1.weight")
        if moment == "begin":
            masks[e] = mask.clone()
            assert (~mask).sum() == 48
        if moment == "mbend":
            assert torch.equal(mask, masks[e])
            assert not weight[~mask].any()
            assert e >= 4 or not weight[weight.abs() <= 0.05].any()


@pytest.mark.parametrize("name", named("lr_scheduler"))
def test_learning_rate_equals_the_reference(name: str) -> None:
    expected = arrays(name)["lr"]
    torch.testing.assert_close(rates(name, 0, len(expected)), expected)


@pytest.mark.parametrize("name", [n for n in CASES if "resume" in n and CASES[n]["kind"] == "lr_scheduler"])
def test_learning_rate_after_a_resume_equals_the_straight_run(name: str) -> None:
    expected, cut = arrays(name)["lr"], CASES[name]["resume_at"] + 1
    state: list[Any] = []
    rates(name, 0, cut, save=state)
    torch.testing.assert_close(rates(name, cut, len(expected), load=state), expected[cut:])


def rates(name: str, start: int, stop: int, save: list[Any] | None = None, load: list[Any] | None = None) -> Tensor:
    data = arrays(name)
    model = nn.Linear(2, 1)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), data["lr"][0].tolist(), strict=False)]
    optimizer = torch.optim.SGD(groups, lr=0.4)
    scheduler = CompressionScheduler(schedule_of(name), model, optimizer, trace=SILENT)
    if load is not None:
        optimizer.load_state_dict(load[0])
        scheduler.load_state_dict(through_a_file(load[1]))
    seen = []
    for epoch in range(start, stop):
        scheduler.on_epoch_begin(epoch)
        seen.append([group["lr"] for group in optimizer.param_groups])
        metrics = {"min": data["metric_min"][epoch].item()} if "metric_min" in data else None
        scheduler.on_epoch_end(epoch, metrics)
    if save is not None:
        save[:] = [optimizer.state_dict(), scheduler.state_dict()]
    return torch.tensor(seen, dtype=torch.float64)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] == "resume"])
def test_resumed_run_equals_the_straight_one(name: str) -> None:
    data, cut = arrays(name), CASES[name]["cut_after_epoch"]
    key = next(iter(parts(name, "delta/")))
    deltas, replay = data[f"delta/{key}"], model_of(name)
    scheduler = CompressionScheduler(schedule_of(name), replay, trace=SILENT)
    for e in range(len(deltas)):
        scheduler.on_epoch_begin(e)
        scheduler.on_minibatch_begin(e, 0, 1)
        with torch.no_grad():
            replay.get_parameter(key).add_(deltas[e])
        scheduler.on_minibatch_end(e, 0, 1)
        scheduler.on_epoch_end(e)
        assert torch.equal(scheduler.masks[key], data["straight_mask"][e] != 0), f"epoch {e}"
        same(replay.get_parameter(key).detach(), data["straight_w"][e], f"epoch {e}")
        if e == cut:
            model = model_of(name)
            model.load_state_dict(replay.state_dict())
            state = through_a_file(scheduler.state_dict())
            replay, scheduler = model, CompressionScheduler(schedule_of(name), model, trace=SILENT)
            scheduler.load_state_dict(state)


@pytest.mark.parametrize("name", named("whole_run"))
def test_whole_run_follows_the_reference(name: str) -> None:
    case, data, model = CASES[name], arrays(name), model_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0001)
    scheduler = CompressionScheduler(schedule_of(name), model, optimizer, trace=SILENT)
    x, y, size = data["x"], data["y"], case["batch"]
    for e in scheduler.epochs(case["epochs"]):
        model.train()
        torch.testing.assert_close(optimizer.param_groups[0]["lr"], data["lr"][e].item())
        for m, i in enumerate(scheduler.minibatches(range(0, len(x), size))):
            loss = nn.functional.cross_entropy(model(x[i : i + size]), y[i : i + size])
            total = scheduler.total_loss(loss)
            torch.testing.assert_close(loss.item(), data["loss"][e, m].item(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(total.item(), data["overall_loss"][e, m].item(), rtol=1e-4, atol=1e-5)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    for key, weights in parts(name, "end/").items():
        torch.testing.assert_close(model.get_parameter(key).detach(), weights[-1], rtol=1e-4, atol=1e-5)
        mask = scheduler.masks.get(key, torch.ones_like(weights[-1], dtype=torch.bool))
        assert torch.equal(mask, data[f"mask_end/{key}"][-1] != 0), key


class Distillation:
    """Hinton et al. 2015, arXiv 1503.02531, as an extension: what replaces the loss returns the difference."""

    def __init__(self, student: Tensor, teacher: Tensor, temperature: float, distill: float, own: float) -> None:
        self.student, self.teacher, self.t, self.distill, self.own = student, teacher, temperature, distill, own

    @hookimpl
    def before_backward_pass(self, loss: Tensor) -> list[LossTerm]:
        student, teacher = (self.student / self.t).log_softmax(1), (self.teacher / self.t).softmax(1)
        divergence = nn.functional.kl_div(student, teacher, reduction="batchmean")
        return [
            LossTerm("student", (self.own - 1) * loss),
            LossTerm("teacher", self.distill * self.t**2 * divergence),
        ]


@pytest.mark.parametrize("t", [1, 4])
@pytest.mark.parametrize(("distill", "own"), [(0.5, 0.5), (0.7, 1)])
def test_a_policy_that_replaces_the_loss_returns_the_difference(t: int, distill: float, own: float) -> None:
    data, key = arrays("knowledge_distillation"), f"T{t}_wd{distill}_ws{own}"
    student = data["student_logits"].clone().requires_grad_()
    args = {"student": student, "teacher": data["teacher_logits"], "temperature": t, "distill": distill, "own": own}
    spec = ComponentSpec("extension", "d", Distillation, args)
    schedule = Schedule([spec], [PolicySpec("extension", "d", Window(0, 1))])
    scheduler = CompressionScheduler(schedule, nn.Linear(2, 2), trace=SILENT)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = scheduler.before_backward_pass(0, 0, 1, nn.functional.cross_entropy(student, data["labels"]))
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), data[f"loss/{key}"], rtol=1e-6, atol=1e-6)
    same(student.grad, data[f"grad/{key}"], key)
