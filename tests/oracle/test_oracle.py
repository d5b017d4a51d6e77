"""Reference numbers: each case is replayed through the public API, from its YAML and event by event."""

from __future__ import annotations

import io
from typing import Any

import oracle_replay
import pytest
import torch
from oracle_replay import (
    CASES,
    SILENT,
    Replay,
    arrays,
    assert_as_recorded,
    assert_same,
    model_of,
    named,
    parts,
    schedule_of,
)
from torch import Tensor, nn

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Schedule, ScheduleError, Window, hookimpl
from prunekit.components import LossTerm

DRAWN = ("Random", "Bernoulli")
"""Classes whose masks are drawn: not the reference's draws, see test_oracle_ranked.py."""
OBSERVING = ("Activation", "FMReconstruction")
"""Classes that look at what flows through the model, see test_oracle_observing.py."""
EXACT = [
    n for n in named("pruner", "policy", "regularizer", "seed") if not CASES[n]["cls"].startswith(DRAWN + OBSERVING)
]


@pytest.mark.parametrize("name", EXACT)
def test_case_equals_the_reference(name: str) -> None:
    lr = arrays(name)["lr"].reshape(-1)[0].item() if "lr" in arrays(name) else 0.1
    replay = Replay(name, lr)
    assert_as_recorded(replay)


@pytest.mark.parametrize("key", ["mask_begin/fc1.weight", "fwd/fc1.weight", "end/fc1.weight"])
def test_what_differs_from_a_case_is_noticed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`assert_as_recorded` asserts: with one number of the reference changed it fails, and names it."""
    changed = dict(arrays("agp_freq1"))
    changed[key] = changed[key].clone()
    changed[key].reshape(-1)[0] = 1 - changed[key].reshape(-1)[0]
    monkeypatch.setattr(oracle_replay, "arrays", lambda name: changed)
    with pytest.raises(AssertionError, match=key):
        assert_as_recorded(Replay("agp_freq1"))


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
    assert_as_recorded(Replay(name), ignore=("fc.weight",))
    replay, data = Replay(name), arrays(name)
    group = next(spec for spec in replay.scheduler.schedule.components).args["reg_regims"]["fc.weight"]
    strength, dim = group[0], {"Rows": 1, "Cols": 0}[group[1]]
    weight = data["init/fc.weight"].clone()
    for moment, e, m in replay.run():
        if moment == "mbend" and e < 2:
            weight = weight + data["delta/fc.weight"][e, m]
            weight = torch.where(weight.abs().mean(dim, keepdim=True) > strength, weight, 0)
            assert_same(replay.weight("fc.weight"), weight, f"fc.weight at {e}, {m}")


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
            assert_same(weight, recorded, f"{moment} {e} {m}")
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
        scheduler.on_epoch_end(epoch, metrics=metrics)
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
        assert_same(replay.get_parameter(key).detach(), data["straight_w"][e], f"epoch {e}")
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
    ends: dict[
        str, Tensor
    ] = {}  # of the epoch: when training ends, weights get the masks that only the forward pass saw

    def keep(_: int) -> None:
        ends.update({key: parameter.detach().clone() for key, parameter in model.named_parameters()})

    for e in scheduler.epochs(case["epochs"], after_epoch=keep):
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
        torch.testing.assert_close(ends[key], weights[-1], rtol=1e-4, atol=1e-5)
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
    assert_same(student.grad, data[f"grad/{key}"], key)
