"""`prunekit plugins`: what is installed, without importing it; what of it works, by importing it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit

WORKING = """
from prunekit.components import Selectors

class Thinner:
    def __init__(self, weights: Selectors) -> None:
        self.weights = weights
    def compute_masks(self, parameters, context):
        return {}

class AutomatedGradualPruner(Thinner):
    pass
"""
LISTENER = """
from prunekit import hookimpl

@hookimpl
def list_components(kind):
    return ["Tomorrow"] if kind == "extension" else []
"""


SHOWN = '''
from prunekit import hookimpl
from prunekit.components import Selectors

class Shown:
    """Prunes nothing,
    on purpose.

    Args:
        weights: the parameters, by name.
        sparsity: the fraction of zeros,
            0 to 1.
        names: unused.
    """
    def __init__(self, weights: Selectors, sparsity: float = 0.5, names: dict[str, int | None] | None = None) -> None:
        self.weights = weights
    def compute_masks(self, parameters, context):
        return {}
    @hookimpl
    def on_minibatch_end(self, progress): ...
    @hookimpl
    def on_epoch_end(self, progress): ...
'''
EAR = '''
"""Hears epochs."""
from prunekit import hookimpl

@hookimpl
def on_epoch_begin(progress): ...

@hookimpl
def on_epoch_end(metrics): ...
'''
README = """# pk-shown

A method card.
"""


def offer(folder: Path, name: str, groups: dict[str, dict[str, str]], **modules: str) -> None:
    """Lay a distribution where Python finds it: its metadata, with a `readme`, and the modules that it has."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    readme = modules.pop("readme", "")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n{readme}")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in offers.items()) for group, offers in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions: one that works, one without its module, one whose import fails, a listener."""
    working = {"Thinner": "pk_working:Thinner", "AutomatedGradualPruner": "pk_working:AutomatedGradualPruner"}
    offer(tmp_path, "pk-working", {"prunekit.pruners": working}, pk_working=WORKING)
    offer(tmp_path, "pk-gone", {"prunekit.regularizers": {"Gone": "pk_gone.inner:Gone"}})
    offer(
        tmp_path,
        "pk-failing",
        {"prunekit.pruners": {"Failing": "pk_failing:F"}},
        pk_failing="raise OSError('no licence')",
    )
    offer(tmp_path, "pk-listener", {"prunekit": {"watcher": "pk_listener"}}, pk_listener=LISTENER)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prunekit, ["plugins", *arguments])


def rows(*arguments: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = json.loads(run("--json", *arguments).stdout)
    return {(row["kind"], row["name"], row["distribution"]): row for row in found}


def test_the_table_has_what_is_installed_in_the_order_of_kinds() -> None:
    result = run()
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version", "state"]
    assert ["pruner", "AutomatedGradualPruner", "prunekit-agp-pruner", "0.1.0", "ok"] in lines
    kinds = [line[0] for line in lines[1:]]
    order = ["pruner", "regularizer", "quantizer", "lr_scheduler", "extension", "listener"]
    assert kinds == sorted(kinds, key=order.index)


@pytest.mark.usefixtures("site")
def test_metadata_alone_shows_what_is_broken_or_shadowed() -> None:
    found = rows()
    assert found["pruner", "Thinner", "pk-working"]["state"] == "ok"
    gone = found["regularizer", "Gone", "pk-gone"]
    assert (gone["state"], gone["reason"]) == ("broken", "there is no module 'pk_gone'")
    assert found["pruner", "Failing", "pk-failing"]["state"] == "ok"
    mine = found["pruner", "AutomatedGradualPruner", "pk-working"]
    hint = "so does prunekit-agp-pruner 0.1.0; say class: pk-working:AutomatedGradualPruner"
    assert (mine["state"], mine["reason"]) == ("shadowed", hint)
    assert found["pruner", "AutomatedGradualPruner", "prunekit-agp-pruner"]["state"] == "shadowed"
    assert run().exit_code == 0


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["watcher", "pk-listener"])
def test_a_listener_that_is_switched_off_is_disabled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows()["listener", "watcher", "pk-listener"]["state"] == "ok"
    monkeypatch.setenv("PRUNEKIT_DISABLE", f"other,{name}")
    assert rows()["listener", "watcher", "pk-listener"]["state"] == "disabled"
    assert ("extension", "Tomorrow", "pk-listener") not in rows("--check")


@pytest.mark.usefixtures("site")
def test_a_check_imports_and_shows_why_something_is_broken() -> None:
    result = run("--check")
    assert result.exit_code == 1
    assert "pruner 'Failing' of pk-failing:" in result.stderr
    assert "raise OSError('no licence')" in result.stderr
    found = rows("--check")
    failing = found["pruner", "Failing", "pk-failing"]
    assert failing["state"] == "broken"
    assert "OSError: no licence" in failing["reason"]
    assert found["regularizer", "Gone", "pk-gone"]["state"] == "broken"
    assert found["pruner", "AutomatedGradualPruner", "pk-working"]["state"] == "shadowed"


@pytest.mark.usefixtures("site")
def test_a_check_lists_what_listeners_offer_at_run_time() -> None:
    assert ("extension", "Tomorrow", "pk-listener") not in rows()
    assert rows("--check")["extension", "Tomorrow", "pk-listener"]["state"] == "ok"


def test_a_check_of_what_works_ends_well() -> None:
    result = run("--check")
    assert (result.exit_code, result.stderr) == (0, "")


def test_without_a_check_no_plugin_is_imported(site: Path) -> None:
    script = """if True:
        import json, sys
        from importlib.metadata import entry_points
        from prunekit.cli import main
        sys.argv = ["prunekit", "plugins"]
        try:
            main()
        except SystemExit as end:
            assert not end.code
        groups = [group for group in entry_points().groups if group.split(".")[0] == "prunekit"]
        modules = {entry.module.partition(".")[0] for group in groups for entry in entry_points(group=group)}
        print(json.dumps([sorted(modules), sorted(modules & set(sys.modules))]))
    """
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    offered, imported = json.loads(output.splitlines()[-1])
    assert {"prunekit_agp_pruner", "pk_working", "pk_listener"} <= set(offered)
    assert imported == []


@pytest.mark.usefixtures("site")
def test_a_name_that_switches_nothing_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_DISABLE", "wacther,pk_listener")
    result = run()
    assert (result.exit_code, result.stderr) == (
        0,
        "warning: PRUNEKIT_DISABLE names 'wacther', and no listener is called that; did you mean 'watcher'?\n",
    )
    assert rows()["listener", "watcher", "pk-listener"]["state"] == "disabled"


# prunekit plugins show


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a pruner that has hooks of its own, a listener, and a second pruner of the same name."""
    offers = {"prunekit.pruners": {"Shown": "pk_shown:Shown"}}
    offer(tmp_path, "pk-shown", offers, pk_shown=SHOWN, readme=README)
    offer(tmp_path, "pk-ear", {"prunekit": {"ear": "pk_ear"}}, pk_ear=EAR)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("pk_shown", "pk_ear", "pk_twin"):
        sys.modules.pop(module, None)


def test_all_about_a_component_is_shown(shown: Path) -> None:
    result = run("show", "Shown")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "pruner Shown: Prunes nothing, on purpose.",
        "distribution: pk-shown 1.0",
        f"location: {shown / 'pk_shown.py'}",
        "hooks: on_epoch_end, on_minibatch_end",
        "",
        "parameter  type                          default   meaning",
        "weights    str | list[str]               required  the parameters, by name.",
        "sparsity   float                         0.5       the fraction of zeros, 0 to 1.",
        "names      dict[str, int | None] | None  None      unused.",
        "",
        "# pk-shown",
        "",
        "A method card.",
    ]


def test_all_about_a_component_is_data_too(shown: Path) -> None:
    parameters = [
        {"name": "weights", "type": "str | list[str]", "default": "required", "meaning": "the parameters, by name."},
        {"name": "sparsity", "type": "float", "default": "0.5", "meaning": "the fraction of zeros, 0 to 1."},
        {"name": "names", "type": "dict[str, int | None] | None", "default": "None", "meaning": "unused."},
    ]
    assert json.loads(run("show", "Shown", "--json").stdout) == [
        {
            "kind": "pruner",
            "name": "Shown",
            "distribution": "pk-shown",
            "version": "1.0",
            "summary": "Prunes nothing, on purpose.",
            "location": str(shown / "pk_shown.py"),
            "parameters": parameters,
            "hooks": ["on_epoch_end", "on_minibatch_end"],
            "text": README.strip(),
        }
    ]


def test_a_listener_is_shown_with_the_hooks_that_it_implements(shown: Path) -> None:
    for name in ("ear", "pk-ear:ear"):
        result = run("show", name)
        assert (result.exit_code, result.stderr) == (0, "pk-ear has no method card\n")
        assert result.stdout.splitlines() == [
            "listener ear: Hears epochs.",
            "distribution: pk-ear 1.0",
            f"location: {shown / 'pk_ear.py'}",
            "hooks: on_epoch_begin, on_epoch_end",
        ]


def test_a_component_that_a_listener_offers_is_shown_with_the_listener_s_distribution() -> None:
    [card] = json.loads(run("show", "StepLR", "--json").stdout)
    assert (card["kind"], card["name"], card["distribution"]) == ("lr_scheduler", "StepLR", "prunekit-torch-lr")
    assert [(p["name"], p["type"], p["default"]) for p in card["parameters"]] == [
        ("step_size", "int", "required"),
        ("gamma", "float", "0.1"),
    ]


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Shwon", "no plugin is called 'Shwon'; did you mean 'Shown'?"),
        ("eer", "no plugin is called 'eer'; did you mean 'ear'?"),
        ("pk-ear:Shown", "'Shown' is offered by pk-shown 1.0, not by 'pk-ear'"),
    ],
)
def test_of_a_name_that_nobody_has_the_nearest_is_said(name: str, error: str) -> None:
    result = run("show", name)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: {error}\n")


def test_of_a_name_that_two_have_the_qualified_one_chooses(shown: Path) -> None:
    offers = {"prunekit.pruners": {"Shown": "pk_twin:Shown"}}
    offer(shown, "pk-twin", offers, pk_twin=SHOWN.replace("nothing", "everything"))
    assert run("show", "Shown").stderr == (
        "error: pk-shown 1.0 and pk-twin 1.0 both offer pruner 'Shown'; say which: class: pk-shown:Shown\n"
    )
    for name in ("pk-twin:Shown", "PK_Twin:Shown"):
        result = run("show", name)
        assert (result.exit_code, result.stderr) == (0, "pk-twin has no method card\n")
        assert result.stdout.splitlines()[:2] == [
            "pruner Shown: Prunes everything, on purpose.",
            "distribution: pk-twin 1.0",
        ]


@pytest.mark.usefixtures("site")
def test_a_plugin_that_cannot_be_shown_says_why() -> None:
    result = run("show", "Failing")
    reason = "pruner 'Failing' of pk-failing 1.0 can't be imported from 'pk_failing:F': OSError: no licence"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: {reason}\n")


def test_a_listener_that_is_switched_off_says_so_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_DISABLE", "prunekit-torch-lr")
    for name in ("torch-lr", "prunekit-torch-lr:torch-lr"):
        result = run("show", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "prunekit-torch-lr 0.1.0 is left out: by PRUNEKIT_DISABLE" in result.stderr


def test_all_that_a_distribution_offers_is_shown_by_its_name() -> None:
    result = run("show", "prunekit-l1-ranked-pruner")
    first = [line.partition(":")[0] for line in result.stdout.splitlines() if line.startswith("pruner L1Ranked")]
    assert first == ["pruner L1RankedStructureParameterPruner", "pruner L1RankedStructureParameterPruner_AGP"]
    listener = run("show", "prunekit-torch-lr")
    assert listener.exit_code == 0
    assert listener.stdout.startswith("listener torch-lr: ")
