"""Replays a case of reference numbers through the public API, from its YAML and event by event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle_models import MODELS
from torch import Tensor, nn

from prunekit import CompressionScheduler, Schedule, Trace

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


def schedule_of(name: str) -> Schedule:
    return Schedule.from_text(CASES[name]["yaml"], name)


class Replay:
    """Drives a case: no optimizer steps, the recorded deltas are added instead."""

    def __init__(self, name: str, lr: float = 0.1) -> None:
        self.name, self.model = name, model_of(name)
        self.deltas = parts(name, "delta/")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.scheduler = CompressionScheduler(schedule_of(name), self.model, self.optimizer, trace=SILENT)
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


def assert_same(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}")


def assert_as_recorded(replay: Replay, ignore: tuple[str, ...] = ()) -> None:
    name, data = replay.name, arrays(replay.name)
    keys = [key for key in parts(name, "init/") if key not in ignore]
    compared, losses = 0, []
    for moment, e, m in replay.run():
        at = e if m < 0 else (e, m)
        for key in keys:
            recorded = {"begin": "", "end": "end/", "fwd": "fwd/", "mbend": "mbend/", "loss": ""}[moment] + key
            if "/" in recorded and recorded in data:
                assert_same(replay.weight(key), data[recorded][at], f"{recorded} at {at}")
                compared += 1
            if f"mask_{moment}/{key}" in data:
                expected = data[f"mask_{moment}/{key}"][at] != 0
                assert torch.equal(replay.mask(key), expected), f"mask_{moment}/{key} at {at}"
                assert key not in replay.scheduler.masks or not data[f"none_{moment}/{key}"][at] or expected.all()
                compared += 1
            if moment == "loss" and f"grad/{key}" in data:
                gradient = replay.model.get_parameter(key).grad
                gradient = torch.zeros_like(replay.weight(key)) if gradient is None else gradient
                assert_same(gradient, data[f"grad/{key}"][at], f"grad/{key} at {at}")
                compared += 1
        if moment == "loss":
            losses.append(replay.total.detach().double())
    for key in ("reg_loss", "overall_loss"):
        if key in data and not ignore:
            expected = data[key].reshape(-1)
            torch.testing.assert_close(torch.stack(losses)[: len(expected)], expected, rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared > replay.epochs
