"""The `prunekit` command itself: how it starts, and what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import prunekit as package
from prunekit.cli.group import prunekit


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "prunekit", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"prunekit {package.__version__}\n"


@pytest.mark.parametrize("command", ["train", "validate", "plugins", "trace", "schema"])
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(prunekit, [command, "--help"])
    assert result.exit_code == 0
    assert f"prunekit {command} [OPTIONS]" in result.stdout


def test_help_needs_no_torch() -> None:
    script = """if True:
        import sys
        from prunekit.cli import main
        try:
            main()
        finally:
            print("torch" in sys.modules, "rich.progress" in sys.modules, file=sys.stderr)
    """
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        assert python(script, *arguments).stderr == "False False\n"


@pytest.mark.parametrize("missing", ["rich_click", "click", "rich"])
def test_without_its_extra_the_command_says_what_to_install(missing: str) -> None:
    script = f"import sys; sys.modules['{missing}'] = None; import prunekit.cli; prunekit.cli.main()"
    result = python(script)
    assert result.returncode == 1
    expected = f"prunekit's command line needs {missing}; install it with: pip install 'prunekit[cli]'\n"
    assert result.stderr == expected
