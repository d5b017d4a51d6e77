"""Plugins that are made wrong, really installed by pip: what is said of each, and that no other suffers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunekit.plugins.entry_points import this_version

pytestmark = pytest.mark.slow
PRUNER = """\
from prunekit.components import Selectors

class {name}:
    def __init__(self, weights: Selectors) -> None:
        self.weights = weights

    def compute_masks(self, parameters, context):
        return {{}}
"""
LISTENER = """\
from prunekit import hookimpl

@hookimpl
def {hook}(progress): ...
"""
REGULARIZER = """\
from prunekit.components import Selectors

class L0:
    def __init__(self, weights: Selectors) -> None:
        self.weights = weights

    def penalty(self, parameters, context): ...
"""
FAILING = """\
def licence():
    raise OSError("no licence")

licence()
"""
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
dependencies = ["{requirement}"]

{entry_points}

[tool.setuptools]
py-modules = ["{module}"]
"""


@dataclass(frozen=True)
class Distribution:
    """What stands in a distribution's pyproject.toml, and the one module that it has."""

    name: str
    version: str
    offers: dict[str, dict[str, str]]
    code: str
    requirement: str = "prunekit"

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    def write(self, folder: Path) -> Path:
        """Its sources."""
        source = folder / self.name
        source.mkdir(parents=True)
        lines = [
            f'[project.entry-points."{group}"]\n' + "\n".join(f'{name} = "{value}"' for name, value in entries.items())
            for group, entries in self.offers.items()
        ]
        (source / "pyproject.toml").write_text(
            PROJECT.format(**vars(self), module=self.module, entry_points="\n".join(lines))
        )
        (source / f"{self.module}.py").write_text(self.code)
        return source


DISTRIBUTIONS = [
    Distribution(
        "pk-well",
        "1.0",
        {"prunekit.pruners": {"Well": "pk_well:Well"}, "prunekit": {"well-ear": "pk_well"}},
        PRUNER.format(name="Well") + LISTENER.format(hook="on_epoch_begin"),
    ),
    Distribution("pk-first", "1.1", {"prunekit.pruners": {"Twice": "pk_first:First"}}, PRUNER.format(name="First")),
    Distribution("pk-second", "2.2", {"prunekit.pruners": {"Twice": "pk_second:Second"}}, PRUNER.format(name="Second")),
    Distribution("pk-failing", "0.3", {"prunekit.pruners": {"Failing": "pk_failing:Failing"}}, FAILING),
    Distribution("pk-wrong-kind", "0.4", {"prunekit.pruners": {"L0": "pk_wrong_kind:L0"}}, REGULARIZER),
    Distribution("pk-misspelt", "0.5", {"prunekit": {"ear": "pk_misspelt"}}, LISTENER.format(hook="on_epoch_beginn")),
    Distribution(
        "pk-no-attribute",
        "0.6",
        {"prunekit.pruners": {"Absent": "pk_no_attribute:Abesnt"}},
        PRUNER.format(name="Absent"),
    ),
    Distribution(
        "pk-no-module",
        "0.7",
        {"prunekit.pruners": {"Nowhere": "pk_no_modul:Nowhere"}},
        PRUNER.format(name="Nowhere"),
    ),
    Distribution(
        "pk-stray",
        "0.8",
        {"prunekit.pruner": {"Stray": "pk_stray:Stray"}, "prunekit.listeners": {"stray-ear": "pk_stray"}},
        PRUNER.format(name="Stray") + LISTENER.format(hook="on_epoch_begin"),
    ),
    Distribution(
        "pk-tomorrow",
        "0.9",
        {"prunekit.pruners": {"Later": "pk_tomorrow:Later"}, "prunekit": {"later-ear": "pk_tomorrow"}},
        "raise RuntimeError('made for another prunekit, and imported')",
        "prunekit>=2",
    ),
]


@dataclass(frozen=True)
class Site:
    """A folder into which pip has installed them all, on the path of Python."""

    folder: Path

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PRUNEKIT_DISABLE"}
        environment |= {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-m", "prunekit", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Built and installed as `pip install ./plugin` does, but from setuptools, which torch brings, and no index."""
    folder = tmp_path_factory.mktemp("diagnoses")
    sources = [str(distribution.write(folder / "sources")) for distribution in DISTRIBUTIONS]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), *sources]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return Site(folder / "site")


@pytest.fixture(scope="module")
def listed(site: Site) -> list[dict[str, Any]]:
    """`prunekit plugins --json`: from metadata alone."""
    return rows(site.run("plugins", "--json"), 0)


@pytest.fixture(scope="module")
def checked(site: Site) -> list[dict[str, Any]]:
    """`prunekit plugins --check --json`."""
    return rows(site.run("plugins", "--check", "--json"), 1)


def rows(run: subprocess.CompletedProcess[str], exit_code: int) -> list[dict[str, Any]]:
    assert (run.returncode, run.stderr) == (exit_code, "")
    return list(json.loads(run.stdout))


def said(rows: list[dict[str, Any]], distribution: str) -> list[tuple[str, ...]]:
    """Of each thing that a distribution offers: kind, name, version, state, reason."""
    keys = ("kind", "name", "version", "state", "reason")
    return [tuple(row.get(key, "") for key in keys) for row in rows if row["distribution"] == distribution]


def only(rows: list[dict[str, Any]], distribution: str) -> dict[str, Any]:
    [row] = [row for row in rows if row["distribution"] == distribution]
    return row


def schedule(folder: Path, *classes: str) -> str:
    """A file with a pruner of each class, and a policy for it."""
    pruners = "".join(f"  p{i}: {{class: '{name}', weights: [fc{i + 1}.weight]}}\n" for i, name in enumerate(classes))
    policies = "".join(f"  - pruner: {{instance_name: p{i}}}\n    epochs: [0]\n" for i, _ in enumerate(classes))
    file = folder / "s.yaml"
    file.write_text(f"version: 1\npruners:\n{pruners}policies:\n{policies}")
    return str(file)


TWICE = "pk-first 1.1 and pk-second 2.2 both offer pruner 'Twice'; say which: class: pk-first:Twice"
FAILED = "pruner 'Failing' of pk-failing 0.3 can't be imported from 'pk_failing:Failing': OSError: no licence"
WRONG_KIND = (
    "'L0' of pk-wrong-kind is no pruner: it has no compute_masks(); "
    "it looks like a regularizer: the group for those is 'prunekit.regularizers'"
)
MISSPELT = "pk-misspelt 0.5 implements 'on_epoch_beginn', and there is no such hook; did you mean 'on_epoch_begin'?"
NO_ATTRIBUTE = (
    "pruner 'Absent' of pk-no-attribute 0.6 can't be imported from 'pk_no_attribute:Abesnt': "
    "AttributeError: module 'pk_no_attribute' has no attribute 'Abesnt'; did you mean 'Absent'?"
)
NO_MODULE = (
    "pruner 'Nowhere' of pk-no-module 0.7 can't be imported from 'pk_no_modul:Nowhere': "
    "ModuleNotFoundError: No module named 'pk_no_modul'; did you mean 'pk_no_module'?"
)
LATER = (
    f"pk-tomorrow 0.9 was made for prunekit>=2, and this is prunekit {this_version()}; "
    "install prunekit>=2 or another version of pk-tomorrow"
)


def test_pip_has_installed_them_all(listed: list[dict[str, Any]]) -> None:
    names = {row["distribution"]: row["version"] for row in listed if row["distribution"].startswith("pk-")}
    assert names == {distribution.name: distribution.version for distribution in DISTRIBUTIONS}


def test_two_distributions_that_offer_one_name_are_both_listed_with_what_to_say(
    listed: list[dict[str, Any]], checked: list[dict[str, Any]]
) -> None:
    for rows in (listed, checked):
        assert said(rows, "pk-first") + said(rows, "pk-second") == [
            ("pruner", "Twice", "1.1", "shadowed", "so does pk-second 2.2; say class: pk-first:Twice"),
            ("pruner", "Twice", "2.2", "shadowed", "so does pk-first 1.1; say class: pk-second:Twice"),
        ]


def test_the_qualified_name_chooses_between_them(site: Site, tmp_path: Path) -> None:
    run = site.run("validate", schedule(tmp_path, "pk-first:Twice", "pk-second:Twice"))
    assert (run.returncode, run.stdout.splitlines()[0]) == (0, "no problems in 2 components and 2 policies")
    [card] = json.loads(site.run("plugins", "show", "pk-second:Twice", "--json").stdout)
    assert (card["distribution"], card["version"]) == ("pk-second", "2.2")
    assert card["location"] == str(site.folder / "pk_second.py")


def test_a_broken_import_is_listed_with_its_reason_and_traceback(
    listed: list[dict[str, Any]], checked: list[dict[str, Any]]
) -> None:
    assert said(listed, "pk-failing") == [("pruner", "Failing", "0.3", "ok", "")]
    assert said(checked, "pk-failing") == [("pruner", "Failing", "0.3", "broken", FAILED)]
    traceback = only(checked, "pk-failing")["traceback"]
    assert 'pk_failing.py", line 2, in licence\n    raise OSError("no licence")\nOSError: no licence\n' in traceback


def test_the_table_has_a_line_for_each_and_the_tracebacks_below(site: Site) -> None:
    run = site.run("plugins", "--check")
    lines = [" ".join(line.split()) for line in run.stdout.splitlines()]
    assert run.returncode == 1
    assert f"pruner Failing pk-failing 0.3 broken: {FAILED}" in lines
    assert f"listener ear pk-misspelt 0.5 broken: {MISSPELT}" in lines
    assert "pruner Well pk-well 1.0 ok" in lines
    told = [line for line in run.stderr.splitlines() if line.endswith(":") and " of pk-" in line]
    assert told == [
        "pruner 'Absent' of pk-no-attribute:",
        "pruner 'Failing' of pk-failing:",
        "pruner 'L0' of pk-wrong-kind:",
        "pruner 'Nowhere' of pk-no-module:",
        "listener 'ear' of pk-misspelt:",
    ]
    assert '    raise OSError("no licence")\n' in run.stderr


def test_a_wrong_kind_is_said_with_the_group_that_is_right(checked: list[dict[str, Any]]) -> None:
    assert said(checked, "pk-wrong-kind") == [("pruner", "L0", "0.4", "broken", WRONG_KIND)]


def test_a_misspelt_hook_is_said_with_the_one_that_is_meant(checked: list[dict[str, Any]]) -> None:
    assert said(checked, "pk-misspelt") == [("listener", "ear", "0.5", "broken", MISSPELT)]


def test_an_entry_point_to_no_attribute_is_said_with_the_one_that_is_there(checked: list[dict[str, Any]]) -> None:
    assert said(checked, "pk-no-attribute") == [("pruner", "Absent", "0.6", "broken", NO_ATTRIBUTE)]


def test_an_entry_point_to_no_module_is_said_without_importing_anything(
    listed: list[dict[str, Any]], checked: list[dict[str, Any]]
) -> None:
    reason = "there is no module 'pk_no_modul'; did you mean 'pk_no_module'?"
    assert said(listed, "pk-no-module") == [("pruner", "Nowhere", "0.7", "broken", reason)]
    assert said(checked, "pk-no-module") == [("pruner", "Nowhere", "0.7", "broken", NO_MODULE)]


def test_an_entry_point_in_an_unknown_group_is_listed_with_the_one_that_is_meant(
    listed: list[dict[str, Any]], checked: list[dict[str, Any]]
) -> None:
    assert said(listed, "pk-stray") == said(checked, "pk-stray")
    assert said(checked, "pk-stray") == [
        (
            "?",
            "stray-ear",
            "0.8",
            "broken",
            "prunekit has no group 'prunekit.listeners'; listeners belong in 'prunekit'",
        ),
        ("?", "Stray", "0.8", "broken", "prunekit has no group 'prunekit.pruner'; did you mean 'prunekit.pruners'?"),
    ]


def test_a_plugin_made_for_another_major_version_is_never_imported(
    listed: list[dict[str, Any]], checked: list[dict[str, Any]]
) -> None:
    assert said(listed, "pk-tomorrow") == said(checked, "pk-tomorrow")
    assert said(checked, "pk-tomorrow") == [
        ("pruner", "Later", "0.9", "incompatible", LATER),
        ("listener", "later-ear", "0.9", "incompatible", LATER),
    ]


def test_no_other_plugin_is_harmed(checked: list[dict[str, Any]]) -> None:
    others = [row for row in checked if row["distribution"].startswith("prunekit")]
    assert others
    assert {row["state"] for row in others} == {"ok"}
    assert said(checked, "pk-well") == [("pruner", "Well", "1.0", "ok", ""), ("listener", "well-ear", "1.0", "ok", "")]


def test_a_schedule_that_names_them_is_told_of_all_at_once(site: Site, tmp_path: Path) -> None:
    names = ["Well", "Twice", "Failing", "L0", "Absent", "Nowhere", "Stray", "Later"]
    run = site.run("validate", schedule(tmp_path, *names))
    assert run.stdout.replace(f"{tmp_path}/", "").splitlines() == [
        f"s.yaml:4:15: pruners.p1.class: {TWICE}",
        f"s.yaml:5:15: pruners.p2.class: {FAILED}",
        f"s.yaml:6:15: pruners.p3.class: {WRONG_KIND}",
        f"s.yaml:7:15: pruners.p4.class: {NO_ATTRIBUTE}",
        f"s.yaml:8:15: pruners.p5.class: {NO_MODULE}",
        "s.yaml:9:15: pruners.p6.class: no pruner is registered as 'Stray'; "
        "pk-stray 0.8 offers it in 'prunekit.pruner', which is no group: a pruner belongs in 'prunekit.pruners'; "
        "not asked, since left out: pk-misspelt 0.5, pk-tomorrow 0.9",
        f"s.yaml:10:15: pruners.p7.class: {LATER}",
        "7 errors",
        "without --app nothing that depends on the model was checked",
    ]
    assert (run.returncode, run.stderr) == (1, f"warning: {MISSPELT}\nwarning: {LATER}\n")


def test_a_schedule_that_names_none_of_them_is_trained_under(site: Site, tmp_path: Path) -> None:
    app = ("--app", "prunekit.testing:application", "--run-dir", str(tmp_path / "run"))
    run = site.run("train", schedule(tmp_path, "Well"), *app)
    assert run.stderr.splitlines() == [
        f"warning: plugin broken: plugin 'pk-misspelt 0.5', error {MISSPELT!r}",
        f"warning: plugin broken: plugin 'pk-tomorrow 0.9', error {LATER!r}",
    ]
    lock = json.loads((tmp_path / "run" / "plugins.lock.json").read_text())
    assert [(entry["kind"], entry["name"]) for entry in lock["plugins"] if entry["distribution"][:3] == "pk-"] == [
        ("listener", "well-ear"),
        ("pruner", "Well"),
    ]
    assert run.returncode == 0
