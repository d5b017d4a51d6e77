"""A new plugin of every kind where nothing but prunekit's wheel is installed: three commands from an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PLUGINS = {
    "MyPruner": ("pruner", "masks changed"),
    "MyRegularizer": ("regularizer", "window opens"),
    "MyQuantizer": ("quantizer", "window opens"),
    "MyLR": ("lr_scheduler", "learning rate changed"),
    "MyExtension": ("extension", "window opens"),
    "MyListener": ("listener", ""),
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a folder to work in."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def run(self, command: str, cwd: Path) -> str:
        """What a command prints that ends well."""
        path = os.pathsep.join([str(self.programs), os.environ.get("PATH", "")])
        variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
        for name in ("PYTHONPATH", "PYTHONHOME", "PRUNEKIT_DISABLE", "PYTEST_ADDOPTS"):
            variables.pop(name, None)
        program, *arguments = shlex.split(command)
        run = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    """Python with prunekit as users have it: from a wheel, with the command line, and pytest."""
    with tempfile.TemporaryDirectory(prefix="prunekit-") as name:
        environment = Environment(Path(name).resolve())
        _must_reach_an_index(environment.folder)
        _pip(sys.executable, "wheel", "--no-deps", "-w", f"{name}/wheels", str(ROOT))
        (wheel,) = Path(name, "wheels").glob("prunekit-*.whl")
        subprocess.run([sys.executable, "-m", "venv", f"{name}/venv"], check=True)
        python = str(environment.programs / "python")
        _pip(python, "install", "-c", str(ROOT / "constraints.txt"), f"{wheel}[cli]", "pytest")
        yield environment


def _must_reach_an_index(folder: Path) -> None:
    """Every wheel and every plugin is built with flit_core."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder / "index"), "flit_core>=3.11,<5"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"pip reaches no index: {run.stderr.strip().splitlines()[-1]}")


def _pip(python: str, *arguments: str) -> None:
    run = subprocess.run([python, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_three_commands_lead_from_an_empty_folder_to_a_run(environment: Environment) -> None:
    for name, (kind, event) in PLUGINS.items():
        empty = environment.folder / kind
        empty.mkdir()
        printed = environment.run(f"prunekit new-plugin {name} --kind {kind}", empty)
        (folder,) = empty.iterdir()
        plugin = folder.name
        epochs = " --epochs 2" if kind == "listener" else ""
        commands = [
            f"pip install ./{plugin}",
            f"prunekit train {plugin}/schedule.yaml --app prunekit.testing:application{epochs}",
        ]
        assert printed.partition("next:\n")[2].partition("\n\n")[0].split("\n  ") == [f"  {commands[0]}", commands[1]]
        for command in commands:
            environment.run(command, empty)

        (run,) = (empty / "runs").iterdir()
        lines = [json.loads(line) for line in environment.run(f"prunekit trace {run} --json", empty).splitlines()]
        told = [line for line in lines if line.get("plugin") == plugin]
        if kind == "listener":
            assert (run / "my-listener.csv").read_text() == "0,0\n1,0\n"
        else:
            assert event in {line["event"] for line in told}
            assert {line["component"].split()[0] for line in told} == {name}
            assert {line["version"] for line in told} == {"0.1.0"}

        tested = environment.run(f"python -m pytest -q {plugin}", empty)
        assert " passed" in tested
        assert "skipped" not in tested
        listed = json.loads(environment.run("prunekit plugins --check --json", empty))
        assert {(row["kind"], row["state"]) for row in listed if row["distribution"] == plugin} == {(kind, "ok")}
