"""What the listener writes, read back from TensorBoard's own file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prunekit_tensorboard import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from prunekit import CompressionScheduler, Trace, load_plugins
from prunekit.plugins import Listener
from prunekit.testing import check_component

SCHEDULE = {
    "version": 1,
    "pruners": {"half": {"class": "SparsityLevelParameterPruner", "levels": {"weight": 0.5}}},
    "regularizers": {"small": {"class": "L1Regularizer", "reg_regims": {"weight": 0.5}}},
    "lr_schedulers": {"decay": {"class": "ExponentialLR", "gamma": 0.5}},
    "policies": [
        {"pruner": {"instance_name": "half"}, "epochs": [1]},
        {"regularizer": {"instance_name": "small"}, "epochs": [0]},
        {"lr_scheduler": {"instance_name": "decay"}, "epochs": [0, 1]},
    ],
}


def train(folder, value=None):
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.param_groups[0]["lr"] = 0.0
    listener = Listener("tensorboard", "prunekit-tensorboard", "0.1.0", TensorBoard())
    plugins = replace(load_plugins(), listeners=(listener,))
    trace = Trace(folder, "error", logger=None)
    run = CompressionScheduler.from_dict(SCHEDULE, model, optimizer, trace=trace, plugins=plugins)
    for epoch in run.epochs(3):
        if epoch == 1 and value is not None:
            with torch.no_grad():
                model.weight.fill_(value)
        for _ in run.minibatches([0]):
            optimizer.zero_grad()
            run.total_loss(model.weight.sum() * 0).backward()
            optimizer.step()
        run.report(max=epoch / 2)


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def test_it_writes_what_happened(tmp_path):
    train(tmp_path)
    written, events = scalars(tmp_path)
    assert written == {
        "sparsity/weight": [(1, 0.5)],
        "mask_changes/weight": [(1, 2.0), (2, 0.0)],
        "loss/small": [(0, 5.0)],
        "learning_rate/0": [(0, 0.0), (1, 0.0), (2, 0.0)],
        "metric/max": [(0, 0.0), (1, 0.5), (2, 1.0)],
    }
    assert [(h.step, h.histogram_value.num) for h in events.Histograms("weights/weight")] == [(1, 2.0), (2, 2.0)]


def test_a_run_without_a_folder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_network_that_has_diverged_stops_no_training(tmp_path, value):
    train(tmp_path, value)
    assert "weights/weight" not in scalars(tmp_path)[1].Tags()["histograms"]


def test_it_only_listens():
    check_component(TensorBoard, kind="listener")
