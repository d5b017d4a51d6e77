"""Distributions that are made up for the length of a test, and schedules that name what they offer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import MLP, SILENT

from prunekit import CompressionScheduler, ScheduleError

PRUNER = """\
from prunekit.components import Selectors
from prunekit.pruning import prune_lowest

class Halver:
    def __init__(self, weights: Selectors) -> None:
        self.weights = weights

    def compute_masks(self, parameters, context):
        return {name: prune_lowest(weight.abs(), 0.5) for name, weight in parameters.items()}
"""

Install = Callable[..., None]


def schedule(class_: str, section: str = "pruners") -> str:
    return f"""\
version: 1
{section}:
  p:
    class: {class_}
    weights: [fc1.weight]
policies:
  - {section[:-1]}: {{instance_name: p}}
    epochs: [0]
"""


def run(text: str, folder: Path, model: torch.nn.Module | None = None) -> CompressionScheduler:
    file = folder / "s.yaml"
    file.write_text(text)
    model = model or MLP()
    return CompressionScheduler.from_yaml(file, model, torch.optim.SGD(model.parameters(), lr=0.1), trace=SILENT)


def refusal(text: str, folder: Path) -> list[str]:
    with pytest.raises(ScheduleError) as caught:
        run(text, folder)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def fake_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs distributions, and modules beside them, for the length of a test."""
    site = folder / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str, version: str, groups: dict[str, dict[str, str]], **modules: str) -> None:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, body in modules.items():
            (site / f"{module}.py").write_text(body)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)  # the finders look again

    return install
