"""`--locked`, `--allow-plugins` and PRUNEKIT_DISABLE on the command line: what is refused, how that is said."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_sites import PRUNER, Install, fake_site, schedule

from prunekit.cli.group import prunekit
from prunekit.plugins.entry_points import this_version
from prunekit.plugins.lock import LOCK, hash_of
from prunekit.trace import read

LISTENER = """\
from prunekit import hookimpl

@hookimpl
def on_epoch_begin(progress): ...
"""
APP = ("--app", "prunekit.testing:application")
LOCKED = f"run/{LOCK}"
COMMANDS = ("validate", "train")
HALVER = "s.yaml:4:12: pruners.p.class: "


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return fake_site(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def folder(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a schedule for the pruner of one distribution, and a listener of another."""
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    install("fake-ear", "1.0", {"prunekit": {"ear": "fake_ear"}}, fake_ear=LISTENER)
    (tmp_path / "s.yaml").write_text(schedule("Halver"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PRUNEKIT_DISABLE", raising=False)
    yield tmp_path
    forget()


def forget() -> None:
    """What Python has imported of the fakes."""
    for module in imported():
        del sys.modules[module]


def imported() -> set[str]:
    return {module for module in sys.modules if module.startswith("fake_")}


def run(command: str, *arguments: str) -> Result:
    """In a process that has imported none of them yet."""
    forget()
    run_dir = ("--run-dir", "again") if command == "train" and "--resume" not in arguments else ()
    given = () if "--resume" in arguments else ("s.yaml", *APP)
    return CliRunner().invoke(prunekit, [command, *given, *run_dir, *arguments])


def problems(result: Result) -> list[str]:
    """What either command refuses: one says so on standard output, with a count, the other on standard error."""
    return [line for line in result.output.splitlines() if not line.endswith((" error", " errors"))]


def left_out() -> dict[str, str]:
    """The listeners that the trace of the last run says were left out, and why."""
    return {line["plugin"]: line["reason"] for line in read(Path("again")) if line["event"] == "plugin left out"}


def uninstall(folder: Path, name: str) -> None:
    """What a distribution offers is no longer known; its module stays."""
    [info] = (folder / "site").glob(f"{name}-*.dist-info")
    shutil.rmtree(info)


@pytest.fixture
def locked(folder: Path) -> list[dict[str, Any]]:
    """The lock that a short run leaves in its folder."""
    result = run("train", "--run-dir", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    return list(json.loads(Path(LOCKED).read_text())["plugins"])


# --locked


def test_a_run_records_its_plugins(locked: list[dict[str, Any]]) -> None:
    keys = ("kind", "name", "distribution", "version")
    fakes = [tuple(entry[key] for key in keys) for entry in locked if not entry["distribution"].startswith("prunekit-")]
    assert fakes == [
        ("core", "prunekit", "prunekit", this_version()),
        ("listener", "ear", "fake-ear", "1.0"),
        ("pruner", "Halver", "fake-a", "1.0"),
    ]
    assert {len(entry["sha256"]) for entry in locked} == {64}


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("file", [LOCKED, "run"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_has_not_changed_is_accepted_under_its_lock_or_its_run(command: str, file: str) -> None:
    result = run(command, "--locked", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert imported() == {"fake_a", "fake_ear"}


@pytest.mark.parametrize("command", COMMANDS)
def test_all_that_differs_is_told_at_once_and_nothing_of_it_is_imported(
    command: str, locked: list[dict[str, Any]], folder: Path, install: Install
) -> None:
    """A file of the pruner, another version of a listener, and a listener more."""
    (folder / "site" / "fake_a.py").write_text(PRUNER.replace("0.5", "0.9"))
    uninstall(folder, "fake_ear")
    install("fake-ear", "1.1", {"prunekit": {"ear": "fake_ear"}})
    install("fake-new", "0.1", {"prunekit": {"new": "fake_new"}}, fake_new=LISTENER)
    result = run(command, "--locked", LOCKED)
    [before] = [entry["sha256"][:12] for entry in locked if entry["name"] == "Halver"]
    assert problems(result) == [
        f"{LOCKED}: listener 'ear' of fake-ear 1.1 is not the one in the lock {LOCKED}: locked is fake-ear 1.0",
        f"{LOCKED}: listener 'new' of fake-new 0.1 is not in the lock {LOCKED}; PRUNEKIT_DISABLE=new leaves it out",
        f"{HALVER}pruner 'Halver' of fake-a 1.0 is not the one in the lock {LOCKED}: "
        f"its files have changed since it was locked: sha256 {before}…, now {hash_of('fake_a')[:12]}…",
    ]
    assert result.exit_code == 1
    assert imported() == set()
    assert not Path("again").exists()


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("command", COMMANDS)
def test_another_distribution_in_the_place_of_the_locked_one_is_refused(
    command: str, folder: Path, install: Install
) -> None:
    uninstall(folder, "fake_a")
    install("fake-b", "1.0", {"prunekit.pruners": {"Halver": "fake_b:Halver"}}, fake_b=PRUNER)
    result = run(command, "--locked", LOCKED)
    assert problems(result) == [
        f"{HALVER}pruner 'Halver' of fake-b 1.0 is not the one in the lock {LOCKED}: locked is fake-a 1.0"
    ]
    assert result.exit_code == 1
    assert "fake_b" not in imported()


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_component_that_the_locked_run_did_not_use_is_refused(command: str, folder: Path, install: Install) -> None:
    install("fake-b", "1.0", {"prunekit.pruners": {"Other": "fake_b:Halver"}}, fake_b=PRUNER)
    (folder / "s.yaml").write_text(schedule("Other"))
    result = run(command, "--locked", LOCKED)
    assert problems(result) == [f"{HALVER}pruner 'Other' of fake-b 1.0 is not in the lock {LOCKED}"]
    assert result.exit_code == 1
    assert "fake_b" not in imported()


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_locked_listener_that_is_gone_is_missed(command: str, folder: Path) -> None:
    uninstall(folder, "fake_ear")
    result = run(command, "--locked", LOCKED)
    assert problems(result) == [
        f"{LOCKED}: listener 'ear' of fake-ear 1.0 is in the lock {LOCKED}, and is not loaded now"
    ]
    assert result.exit_code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_listener_that_is_not_in_the_lock_may_be_left_out(
    command: str, locked: list[dict[str, Any]], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fake-new", "0.1", {"prunekit": {"new": "fake_new"}}, fake_new=LISTENER)
    monkeypatch.setenv("PRUNEKIT_DISABLE", "new")
    assert run(command, "--locked", LOCKED).exit_code == 0
    assert imported() == {"fake_a", "fake_ear"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "KeyError: 'prunekit-lock'"),
        ('{"prunekit-lock": 9}', "ValueError: format 9, this prunekit reads 1"),
        ("", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_lock_is_refused(command: str, text: str, what: str, folder: Path) -> None:
    (folder / "x.json").write_text(text)
    result = run(command, "--locked", "x.json")
    assert (result.exit_code, result.stderr) == (1, f"error: 'x.json' holds no lock: {what}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_lock_that_does_not_exist_is_a_misuse(command: str) -> None:
    result = run(command, "--locked", "nowhere.json")
    assert result.exit_code == 2
    assert "nowhere.json" in result.stderr


# --allow-plugins


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("allowed", ["fake-ear", "prunekit-*,fake_ear", "fake-e*"])
def test_a_component_that_is_not_allowed_is_refused_and_not_imported(command: str, allowed: str) -> None:
    result = run(command, "--allow-plugins", allowed)
    named = allowed.replace(",", ", ")
    assert problems(result) == [f"{HALVER}fake-a 1.0 is not among the plugins that are allowed: {named}"]
    assert result.exit_code == 1
    assert imported() == {"fake_ear"}
    assert not Path("again").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("allowed", ["fake-a", "Fake_A", "prunekit-*, fake-?"])
def test_a_listener_that_is_not_allowed_is_left_out_and_not_imported(command: str, allowed: str) -> None:
    result = run(command, "--allow-plugins", allowed)
    assert (result.exit_code, result.stderr) == (0, "")
    assert imported() == {"fake_a"}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_plugin_at_all_may_be_allowed(command: str) -> None:
    result = run(command, "--allow-plugins", "")
    assert problems(result) == [f"{HALVER}fake-a 1.0 is not among the plugins that are allowed: none"]
    assert imported() == set()


def test_the_trace_says_who_was_left_out() -> None:
    assert run("train", "--allow-plugins", "fake-a").exit_code == 0
    assert left_out()["fake-ear 1.0"] == "fake-ear 1.0 is not among the plugins that are allowed: fake-a"


def test_a_resumed_run_keeps_to_what_was_allowed() -> None:
    assert run("train", "--allow-plugins", "fake-a").exit_code == 0
    assert run("train", "--resume", "again", "--epochs", "2").exit_code == 0
    assert imported() == {"fake_a"}
    result = run("train", "--resume", "again", "--epochs", "3", "--allow-plugins", "fake-ear")
    assert result.exit_code == 1
    assert "fake-a 1.0 is not among the plugins that are allowed: fake-ear" in result.stderr
    assert imported() == {"fake_ear"}


@pytest.mark.usefixtures("locked")
def test_a_resumed_run_keeps_to_its_lock(folder: Path) -> None:
    assert run("train", "--locked", LOCKED).exit_code == 0
    assert run("train", "--resume", "again", "--epochs", "2").exit_code == 0
    (folder / "site" / "fake_a.py").write_text(PRUNER.replace("0.5", "0.9"))
    result = run("train", "--resume", "again", "--epochs", "3")
    assert result.exit_code == 1
    assert "pruner 'Halver' of fake-a 1.0 is not the one in the lock" in result.stderr
    assert "fake_a" not in imported()


# PRUNEKIT_DISABLE


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("names", ["ear", "fake-ear", " Fake_Ear ,torch-lr,"])
def test_a_listener_that_is_switched_off_is_not_imported(
    command: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEKIT_DISABLE", names)
    result = run(command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert imported() == {"fake_a"}
    if command == "train":
        assert left_out()["fake-ear 1.0"] == "by PRUNEKIT_DISABLE"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_switches_nothing_off_is_said(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_DISABLE", "fake-eer,Torch_RL,ear")
    result = run(command)
    assert result.stderr.splitlines() == [
        "warning: PRUNEKIT_DISABLE names 'Torch_RL', and no listener is called that; did you mean 'torch-lr'?",
        "warning: PRUNEKIT_DISABLE names 'fake-eer', and no listener is called that; did you mean 'fake-ear'?",
    ]
    assert result.exit_code == 0
    assert imported() == {"fake_a"}
