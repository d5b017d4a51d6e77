"""`prunekit new-plugin`: the names it makes, the files it writes, that they work, and what it refuses."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit
from prunekit.cli.new_plugin import KINDS
from prunekit.components import kinds
from prunekit.components.arguments import arguments_of
from prunekit.plugins.cards import documented_arguments
from prunekit.plugins.scaffold import create_plugin, files
from prunekit.plugins.scaffold.names import Names
from prunekit.testing import application
from prunekit.trace import read
from prunekit.training.train import train

NAMES = {
    "pruner": "MyPruner",
    "regularizer": "MyRegularizer",
    "quantizer": "MyQuantizer",
    "lr_scheduler": "MyLR",
    "extension": "MyExtension",
    "listener": "MyListener",
}
COMPONENTS = [kind for kind in NAMES if kind != "listener"]
EPOCHS = 3


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with nothing in it."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def installed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a new plugin of a kind, which Python finds as if pip had installed it."""
    plugin = create_plugin(NAMES[kind], kind, Path())
    site = tmp_path / "site"
    offer(site, (plugin.folder / "pyproject.toml").read_text())
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(plugin.folder.resolve() / "src")
    yield plugin.folder
    sys.modules.pop(plugin.names.module, None)


def offer(site: Path, pyproject: str) -> None:
    """What pip would leave of a distribution's metadata."""
    project = tomllib.loads(pyproject)["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project.get("entry-points", {})
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in offers.items()) for group, offers in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prunekit, ["new-plugin", *arguments])


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Names


@pytest.mark.parametrize(
    ("name", "distribution", "class_name"),
    [
        ("MyPruner", "prunekit-my-pruner", "MyPruner"),
        ("my-pruner", "prunekit-my-pruner", "MyPruner"),
        ("my_pruner", "prunekit-my-pruner", "MyPruner"),
        ("my.pruner", "prunekit-my-pruner", "MyPruner"),
        ("prunekit-my-pruner", "prunekit-my-pruner", "MyPruner"),
        ("prunekit_my_pruner", "prunekit-my-pruner", "MyPruner"),
        ("myPruner", "prunekit-my-pruner", "MyPruner"),
        ("MyLR", "prunekit-my-lr", "MyLR"),
        ("my-LR", "prunekit-my-lr", "MyLR"),
        ("AGPPruner", "prunekit-agp-pruner", "AGPPruner"),
        ("L1Norm", "prunekit-l1-norm", "L1Norm"),
        ("agp", "prunekit-agp", "Agp"),
        ("prunekitchen", "prunekit-prunekitchen", "Prunekitchen"),
    ],
)
def test_one_name_makes_all_others(name: str, distribution: str, class_name: str) -> None:
    names = Names.of(name)
    assert (names.distribution, names.class_name) == (distribution, class_name)
    assert names.module == distribution.replace("-", "_")
    assert names.listener == distribution.removeprefix("prunekit-")


def test_the_kinds_are_those_that_prunekit_looks_for() -> None:
    assert set(KINDS) == {*kinds.KINDS, "listener"}


# What is written


def test_it_says_what_it_wrote_and_what_comes_next(empty: Path) -> None:
    result = run("MyPruner", "--kind", "pruner")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "prunekit-my-pruner/pyproject.toml\n"
        "prunekit-my-pruner/src/prunekit_my_pruner.py\n"
        "prunekit-my-pruner/tests/test_my_pruner.py\n"
        "prunekit-my-pruner/README.md\n"
        "prunekit-my-pruner/schedule.yaml\n"
        "prunekit-my-pruner/.github/workflows/test.yml\n"
        "prunekit-my-pruner/.gitignore\n"
        "\n"
        "next:\n"
        "  pip install ./prunekit-my-pruner\n"
        "  prunekit train prunekit-my-pruner/schedule.yaml --app prunekit.testing:application\n"
        "\n"
        "test it:\n"
        "  pip install -e './prunekit-my-pruner[test]'\n"
        "  python -m pytest prunekit-my-pruner\n"
    )
    written = [path for path in everything(empty) if (empty / path).is_file()]
    assert written == sorted(result.stdout.split("\n\n")[0].splitlines())


def test_another_directory_may_be_named_and_the_commands_name_it(tmp_path: Path) -> None:
    there = tmp_path / "my plugins"
    there.mkdir()
    result = run("MyPruner", "--kind", "pruner", "--into", str(there))
    commands = [shlex.split(line) for line in result.stdout.split("next:\n")[1].splitlines()[:2]]
    assert commands[0] == ["pip", "install", str(there / "prunekit-my-pruner")]
    assert commands[1][:3] == ["prunekit", "train", str(there / "prunekit-my-pruner" / "schedule.yaml")]
    assert (there / "prunekit-my-pruner" / "schedule.yaml").exists()


def test_an_empty_folder_of_that_name_is_filled(empty: Path) -> None:
    (empty / "prunekit-my-pruner").mkdir()
    assert run("MyPruner", "--kind", "pruner").exit_code == 0
    assert (empty / "prunekit-my-pruner" / "README.md").exists()


def test_the_distribution_is_one_that_pip_can_install_and_prunekit_finds(kind: str) -> None:
    plugin = create_plugin(NAMES[kind], kind, Path())
    pyproject = tomllib.loads((plugin.folder / "pyproject.toml").read_text())
    module, class_name = plugin.names.module, plugin.names.class_name
    group, entry = ("prunekit", f"my-{kind}") if kind == "listener" else (f"prunekit.{kind}s", class_name)
    assert pyproject["build-system"] == {
        "requires": ["flit_core>=3.11,<5"],
        "build-backend": "flit_core.buildapi",
    }
    project = pyproject["project"]
    assert project["name"] == plugin.names.distribution == plugin.folder.name
    assert (project["version"], project["readme"], project["requires-python"]) == ("0.1.0", "README.md", ">=3.11")
    assert project["dependencies"] == ["prunekit>=0.1,<1"]
    assert "pytest" in project["optional-dependencies"]["test"]
    assert project["entry-points"] == {group: {entry: f"{module}:{class_name}"}}
    assert pyproject["tool"]["flit"]["module"] == {"name": module}


@pytest.mark.parametrize(
    ("version", "requirement"),
    [("0.1.0", "prunekit>=0.1,<1"), ("2.13.4", "prunekit>=2.13,<3"), ("1.2.0rc1", "prunekit>=1.2.0rc1,<2")],
)
def test_a_plugin_asks_for_the_prunekit_that_it_was_made_with(
    version: str, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "this_version", lambda: version)
    assert files.requirement() == requirement


def test_the_class_is_short_and_typed(kind: str) -> None:
    plugin = create_plugin(NAMES[kind], kind, Path())
    source = (plugin.folder / "src" / f"{plugin.names.module}.py").read_text()
    (cls,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert cls.name == NAMES[kind]
    assert cls.end_lineno is not None
    assert cls.end_lineno - cls.lineno <= 20
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
    assert all(method.returns for method in methods)
    assert all(argument.annotation for method in methods for argument in method.args.args if argument.arg != "self")


def test_the_files_have_neither_holes_nor_lines_that_are_too_long(kind: str) -> None:
    plugin = create_plugin(NAMES[kind], kind, Path())
    for file in plugin.files:
        text = (plugin.folder / file).read_text(encoding="utf-8")
        assert not re.search(r"\$(?!\{\{)", text), file
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert max(map(len, text.splitlines())) <= 120, file


def test_the_tests_that_it_writes_try_the_laws_and_one_thing_of_its_own(kind: str) -> None:
    plugin = create_plugin(NAMES[kind], kind, Path())
    (path,) = (plugin.folder / "tests").iterdir()
    tree = ast.parse(path.read_text())
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert len(tests) >= 2
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "check_component" in calls


def test_the_workflow_tests_every_python_and_the_schedule(kind: str) -> None:
    plugin = create_plugin(NAMES[kind], kind, Path())
    workflow = yaml.safe_load((plugin.folder / ".github" / "workflows" / "test.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-3:] == [
        'pip install ".[test]"',
        "pytest",
        "prunekit validate schedule.yaml --app prunekit.testing:application",
    ]


@pytest.mark.parametrize("name", ["On", "Null", "Yes"])
def test_a_name_that_yaml_takes_for_something_else_is_quoted(name: str) -> None:
    plugin = create_plugin(name, "pruner", Path())
    schedule = yaml.safe_load((plugin.folder / "schedule.yaml").read_text())
    assert schedule["pruners"]["half"]["class"] == name


# That it works


def test_the_card_has_the_schedule_and_every_parameter(installed: Path, kind: str) -> None:
    card = (installed / "README.md").read_text(encoding="utf-8")
    assert f"```yaml\n{(installed / 'schedule.yaml').read_text()}```\n" in card
    keys = re.findall(r"^\| `(\w+)` \|", card, re.MULTILINE)
    if kind == "listener":
        assert keys == []
        return
    cls = getattr(import_module(installed.name.replace("-", "_")), NAMES[kind])
    assert keys == [argument.name for argument in arguments_of(cls, kind)]  # type: ignore[arg-type]
    assert set(keys) <= set(documented_arguments(cls))


def test_its_schedule_is_valid(installed: Path) -> None:
    arguments = ["validate", str(installed / "schedule.yaml"), "--app", "prunekit.testing:application"]
    result = CliRunner().invoke(prunekit, arguments)
    assert (result.exit_code, "error" in result.output) == (0, False)


@pytest.mark.parametrize("kind", COMPONENTS, indirect=True)
def test_a_new_component_trains_and_the_trace_says_by_whose_hand(installed: Path, kind: str, tmp_path: Path) -> None:
    result = train(application(), installed / "schedule.yaml", EPOCHS, run_dir=tmp_path / "run", trace_level="debug")
    lines = [line for line in read(tmp_path / "run") if line.get("plugin") == installed.name]
    assert {line["component"].split()[0] for line in lines} == {NAMES[kind]}
    told = {line["event"] for line in lines}
    telling = {
        "pruner": "masks changed",
        "lr_scheduler": "learning rate changed",
        "extension": "hook ran",
    }
    assert telling.get(kind, "window opens") in told
    pruned = {p.name: p.dense - p.nonzero for p in result.parameters if p.dense != p.nonzero}
    if kind == "quantizer":  # what it rounds to zero is counted, as the forward pass sees it
        assert 0 < pruned["fc1.weight"] < 512 and set(pruned) == {"fc1.weight", "fc2.weight"}
    else:
        assert pruned == ({"fc1.weight": 256, "fc2.weight": 32} if kind == "pruner" else {})


@pytest.mark.parametrize("kind", ["listener"], indirect=True)
def test_a_new_listener_hears_every_run(installed: Path, tmp_path: Path) -> None:
    train(application(), installed / "schedule.yaml", 2, run_dir=tmp_path / "run", on_warning=lambda text: None)
    assert (tmp_path / "run" / "my-listener.csv").read_text() == "0,0\n1,0\n"


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3pruner"], "letters and digits in words joined by '-', '_' or '.', and begins with a letter, got '3pruner'"),
        (["größe"], "got 'größe'"),
        (["my pruner"], "got 'my pruner'"),
        (["my/pruner"], "got 'my/pruner'"),
        (["../my-pruner"], "got '../my-pruner'"),
        (["my-"], "got 'my-'"),
        ([""], "got ''"),
        (["prunekit"], "'prunekit' makes no name of a class"),
        (["prunekit-3d"], "'prunekit-3d' makes no name of a class: '3d' is no identifier"),
        (["class"], "'class' is a word of Python's own"),
        (["none"], "'none' is a word of Python's own"),
        (["Tensor"], "a pruner can't be called 'Tensor': its modules import something of that name"),
        (["Window"], "a pruner can't be called 'Window': its modules import something of that name"),
        (["MyPruner", "--into", "nowhere"], "'nowhere' is no directory to write into"),
        (["MyPruner", "--into", "file"], "'file' is no directory to write into"),
        (["TakenPruner"], "acme-pruners 1.0 already offers pruner 'TakenPruner'; choose another name"),
        (["taken-pruner"], "acme-pruners 1.0 already offers pruner 'TakenPruner'; choose another name"),
        (["prunekit_taken_words"], "prunekit-taken-words 1.0 is already installed; choose another name"),
        (["full"], "'prunekit-full' exists and is not empty"),
        (["a-file"], "'prunekit-a-file' exists and is no directory"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line_and_nothing_is_written(
    arguments: list[str], message: str, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = '[project.entry-points."prunekit.pruners"]\nTakenPruner = "acme:TakenPruner"'
    offer(tmp_path / "site", f'[project]\nname = "acme-pruners"\nversion = "1.0"\n{offers}')
    offer(tmp_path / "site", '[project]\nname = "prunekit-taken-words"\nversion = "1.0"')
    monkeypatch.syspath_prepend(tmp_path / "site")
    (empty / "prunekit-full").mkdir()
    for file in ("file", "prunekit-a-file", "prunekit-full/notes.txt"):
        (empty / file).write_text("mine\n")
    before = everything(tmp_path)
    result = run("--kind", "pruner", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert everything(tmp_path) == before


def test_a_listener_that_is_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = '[project.entry-points."prunekit"]\nwatch-dog = "acme"'
    offer(tmp_path, f'[project]\nname = "acme"\nversion = "1.0"\n{listener}')
    monkeypatch.syspath_prepend(tmp_path)
    result = run("WatchDog", "--kind", "listener")
    refusal = "error: acme 1.0 already offers listener 'watch-dog'; choose another name\n"
    assert (result.exit_code, result.stderr) == (2, refusal)
    assert run("WatchDog", "--kind", "extension").exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["MyPruner"], ["MyPruner", "--kind", "prune"]])
def test_name_and_kind_must_be_given(arguments: list[str], empty: Path) -> None:
    assert run(*arguments).exit_code == 2
    assert everything(empty) == []


def test_where_a_file_can_not_be_written_none_is_left(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def full_disk(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    result = run("MyPruner", "--kind", "pruner")
    refusal = "error: 'prunekit-my-pruner' can't be written: No space left on device\n"
    assert (result.exit_code, result.stderr, everything(empty)) == (2, refusal, [])


def test_its_help_needs_no_torch() -> None:
    script = """if True:
        import sys
        from prunekit.cli.group import prunekit
        prunekit(["new-plugin", "--help"], standalone_mode=False)
        print("torch" in sys.modules, file=sys.stderr)
    """
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "False\n"
