"""The pre-commit hook: a manifest that pre-commit takes, and a command that tells good schedules from bad ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from pre_commit.clientlib import load_manifest

ROOT = Path(__file__).parents[1]
GOOD = """\
version: 1
pruners:
  half: {class: SparsityLevelParameterPruner, levels: {fc1.weight: 0.5}}
policies:
  - pruner: {instance_name: half}
    epochs: [0]
"""


@pytest.fixture(scope="module")
def hook() -> dict[str, Any]:
    (hook,) = load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    return hook


def test_the_manifest_is_one_that_pre_commit_takes(hook: dict[str, Any]) -> None:
    assert (hook["id"], hook["types"], hook["pass_filenames"]) == ("prunekit-validate", ["yaml"], True)


@pytest.mark.parametrize(
    ("file", "is_one"),
    [
        ("schedules/lenet5.yaml", True),
        ("examples/schedules/lenet5.yaml", True),
        ("schedule/lenet5.yml", True),
        ("lenet5.schedule.yaml", True),
        ("alexnet.schedule_agp.yml", True),
        (".github/workflows/test.yml", False),
        ("reschedules/x.yaml", False),
    ],
)
def test_it_looks_at_schedules_and_at_no_other_file(file: str, is_one: bool, hook: dict[str, Any]) -> None:
    assert bool(re.search(hook["files"], file)) == is_one


def test_its_entry_says_0_of_a_good_schedule_and_where_of_a_bad_one(hook: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD.replace("epochs: [0]", "epoch: [0]"))
    program, *arguments = [*shlex.split(hook["entry"]), *hook["args"]]
    command = shutil.which(program, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    assert command is not None

    def run(*files: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *arguments, *files], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run("good.yaml").returncode == 0
    bad = run("good.yaml", "bad.yaml")
    assert bad.returncode != 0
    assert "bad.yaml:6:5: policies[0].epoch: unknown key 'epoch'; did you mean 'epochs'?" in bad.stdout.splitlines()
