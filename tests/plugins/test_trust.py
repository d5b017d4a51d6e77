"""Which plugins a run may load: those allowed, those of a lock, and nothing of the others is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from fake_sites import PRUNER, Install, fake_site, schedule
from helpers import MLP, SILENT

from prunekit import CompressionScheduler, Lock, PluginError, Schedule, ScheduleError, Trust, load_plugins


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return fake_site(tmp_path, monkeypatch)


def scheduler(trust: Trust | None = None) -> CompressionScheduler:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    text = Schedule.from_text(schedule("Halver"))
    return CompressionScheduler(text, model, optimizer, trace=SILENT, plugins=load_plugins(trust))


def refusal(trust: Trust) -> str:
    with pytest.raises(ScheduleError) as error:
        scheduler(trust)
    return "\n".join(problem.message for problem in error.value.problems)


def test_what_is_not_allowed_is_refused_and_not_imported(install: Install) -> None:
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    message = refusal(Trust(allow=["prunekit-*"]))
    assert message == "fake-a 1.0 is not among the plugins that are allowed: prunekit-*"
    assert "fake_a" not in sys.modules
    assert scheduler(Trust(allow=["fake_*"])).schedule


def test_of_two_that_offer_a_name_the_allowed_one_is_taken(install: Install) -> None:
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    install("fake-b", "1.0", {"prunekit.pruners": {"Halver": "fake_b:Halver"}}, fake_b=PRUNER)
    assert load_plugins(Trust(allow=["fake-b"])).registry.find("pruner", "Halver").distribution == "fake-b"


def test_a_lock_is_kept_and_what_differs_from_it_is_refused(install: Install, tmp_path: Path) -> None:
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    file = tmp_path / "plugins.lock.json"
    scheduler().lock().write(file)
    lock = Lock.read(file)
    assert {(e.kind, e.name) for e in lock.entries} >= {("pruner", "Halver"), ("core", "prunekit")}
    assert scheduler(Trust(lock=lock)).schedule
    data = json.loads(file.read_text())
    for entry in data["plugins"]:
        entry["sha256"] = "0" * 64 if entry["name"] == "Halver" else entry["sha256"]
    file.write_text(json.dumps(data))
    assert "its files have changed since it was locked: sha256 000000000000…, now " in refusal(
        Trust(lock=Lock.read(file))
    )
    data["plugins"] = [entry for entry in data["plugins"] if entry["name"] != "Halver"]
    file.write_text(json.dumps(data))
    assert refusal(Trust(lock=Lock.read(file))) == f"pruner 'Halver' of fake-a 1.0 is not in the lock {file}"


def test_a_file_that_is_no_lock_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(PluginError, match="holds no lock"):
        Lock.read(tmp_path / "x.json")


def test_an_entry_point_in_a_group_that_does_not_exist_is_found(install: Install) -> None:
    install("fake-a", "1.0", {"prunekit.pruner": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    with pytest.raises(PluginError, match=r"fake-a 1\.0 offers it in 'prunekit\.pruner', which is no group"):
        load_plugins().registry.find("pruner", "Halver")
