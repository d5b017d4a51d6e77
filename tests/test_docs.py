"""The documentation is executed: every Python, YAML and console block of README.md, docs/ and the plugins' READMEs.

The blocks of a page run in order, in one folder and one namespace:

    ```python             is run; a ```text block right behind it holds what it prints
    ```python file        is written only, not run
    ```python signature   is compared with prunekit: names, order, defaults and annotations of each `def` in it
    ```toml generated     has in its first line (`# my_app.py`) a file that a command wrote, and then all of its text
    ```yaml               is loaded against `Network` below, or the application in `# model: examples.mnist:lenet5`
    ```yaml error         is refused, with exactly the message in the ```text block right behind it
    ```yaml fragment      is no whole schedule: YAML that prunekit can read
    ```console            `$ prunekit …` or `$ pytest …` is run, and its output follows; `$ pip install ./folder` too

A first line such as `# schedule.yaml` or `# my_app.py` writes the block to that file. In expected output `…` stands for
anything; clock times, losses and accuracies may be other numbers. Commands that end with `# long` run only where
PRUNEKIT_LONG is set.
"""

from __future__ import annotations

import ast
import glob
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog
import torch
from click.testing import CliRunner
from helpers import Network
from torch import nn

import prunekit
from prunekit import (
    ComponentSpec,
    CompressionScheduler,
    PolicySpec,
    Progress,
    Schedule,
    ScheduleError,
    Trace,
    Window,
    hookimpl,
    hookspecs,
)
from prunekit.components.effects import effect_names
from prunekit.plugins.hooks import HOOKS
from prunekit.schedule.yaml_source import Source
from prunekit.trace import LEVELS, read
from tests.trace_page import LINES_OF_THE_PAGE, table

ROOT = Path(__file__).parents[1]
SLOW = {"write-a-plugin.md": pytest.mark.slow}
"""A page that runs the tests of plugins, as whoever follows it does."""
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
LONG = bool(os.environ.get("PRUNEKIT_LONG"))

FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml|toml))\n")
MODEL = re.compile(r"\A(?:#.*\n)*?# model: (\S+)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
ANY = "…"
VARIES = [
    (re.compile(r"\d\d:\d\d:\d\d\.\d+"), "TIME"),
    (re.compile(r"\b\d+\.\d+ (s|ms)\b"), r"N \1"),
    (re.compile(r"\b(loss|accuracy:?) \d+\.\d+%?"), r"\1 N"),
]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `after` is the block that follows with nothing in between."""

    page: Path
    line: int
    info: str
    text: str
    after: Block | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info else ""

    @property
    def mode(self) -> str:
        return self.info.removeprefix(self.language).strip()

    @property
    def expected(self) -> str | None:
        """The text block right behind it."""
        return self.after.text if self.after is not None and self.after.info == "text" else None


def blocks_of(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    matches = list(FENCE.finditer(text))
    for match in reversed(matches):
        later = found[-1] if found else None
        following = matches[matches.index(match) + 1 :][:1]
        adjacent = bool(following) and not text[match.end() : following[0].start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["info"].strip(), match["text"], later if adjacent else None))
    return found[::-1]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Blocks run


@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW.get(page.name, ())) for page in PAGES], ids=page_id)
def test_every_block_of_a_page_does_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    module = ModuleType("page_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known = set(sys.modules)
    try:
        for block in blocks_of(page):
            with subtests.test(block.place):
                assert_does_as_it_says(block, module, monkeypatch)
    finally:
        structlog.reset_defaults()
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]


def assert_does_as_it_says(block: Block, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    name = FILE_NAME.match(block.text)
    if block.mode == "generated":
        assert name is not None, f"{block.place}: its first line names no file"
        assert block.text.removeprefix(name[0]) == Path(name[1]).read_text(encoding="utf-8"), block.place
        return
    if name is not None:
        Path(name[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(name[1]).write_text(block.text, encoding="utf-8")
    if block.language == "yaml":
        read_yaml(block, name[1] if name is not None else "schedule.yaml")
    elif block.language == "python" and block.mode == "signature":
        compare_signatures(block)
    elif block.language == "python" and (block.mode != "file" or name is None):
        run_python(block, module)
    elif block.language == "console":
        for command, output in commands_of(block):
            run_command(block, command, output, monkeypatch)


def run_python(block: Block, module: ModuleType) -> None:
    assert not block.mode, f"{block.place}: there is no ```{block.info}"
    code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(code, vars(module))
    if block.expected is not None:
        must_match(block, printed.getvalue(), block.expected)


def read_yaml(block: Block, name: str) -> None:
    Path(name).write_text(block.text, encoding="utf-8")
    if block.mode == "fragment":
        assert Source.from_text(block.text).problems == []
        return
    assert block.mode in ("", "error"), f"{block.place}: there is no ```{block.info}"
    model, optimizer = subject(block.text)
    if block.mode == "error":
        with pytest.raises(ScheduleError) as error:
            CompressionScheduler.from_yaml(name, model, optimizer, trace=Trace(level="error"))
        assert block.expected is not None, f"{block.place}: no ```text block with the message follows"
        assert str(error.value) == block.expected.rstrip("\n")
    else:
        CompressionScheduler.from_yaml(name, model, optimizer, trace=Trace(level="error"))


def subject(schedule: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model that a schedule is written for, and its optimizer."""
    named = MODEL.match(schedule)
    if named is not None:
        module, _, function = named[1].partition(":")
        application = getattr(importlib.import_module(module), function)()
        return application.model, application.optimizer
    model = Network()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with the output that the page shows."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        yield command, output


def run_command(block: Block, command: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[:2] == ["pip", "install"] and words[2].startswith("./"):
        monkeypatch.syspath_prepend(str(installed(Path(words[2]))))
    elif words[0] == "pytest":
        path = os.pathsep.join([str(Path("site-packages").resolve()), os.environ.get("PYTHONPATH", "")])
        pytest_run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]]
        environment = {**os.environ, **variables, "PYTHONPATH": path}
        done = subprocess.run(pytest_run, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        must_match(block, done.stdout, output)
    elif words[0] == "prunekit" and (LONG or "# long" not in f"{command} {block.mode}"):
        from prunekit.cli.group import prunekit as group

        arguments = [match for word in words[1:] for match in (sorted(glob.glob(word)) or [word])]
        result = CliRunner().invoke(group, arguments, env=variables, prog_name="prunekit")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if output.strip():
            must_match(block, result.output, output)
        else:
            assert result.exit_code == 0, result.output


def installed(folder: Path) -> Path:
    """What pip would leave of a project in a folder: its module, and the metadata that Python finds plugins by."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site, module = Path.cwd() / "site-packages", project["name"].replace("-", "_")
    info = site / f"{module}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (source,) = [*folder.glob(f"{module}.py"), *folder.glob(f"src/{module}.py")]
    shutil.copy(source, site)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def must_match(block: Block, output: str, expected: str) -> None:
    """Lines must be equal but for what varies, and for the dots."""
    got, wanted = tidy(output), tidy(expected)
    pattern = ".*".join(re.escape(part) for part in wanted.split(ANY))
    if re.fullmatch(pattern, got, re.DOTALL) is None:
        raise AssertionError(f"{block.place} shows\n{wanted}\n\nand the output is\n{got}")


def tidy(output: str) -> str:
    for pattern, replacement in VARIES:
        output = pattern.sub(replacement, output)
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in output.strip().splitlines())


# Signatures


def compare_signatures(block: Block) -> None:
    for function, owner in functions_of(ast.parse(block.text)):
        if owner:
            real = inspect.getattr_static(getattr(prunekit, owner), function.name)
        else:
            real = getattr(hookspecs if function.name in HOOKS else prunekit, function.name)
        real = inspect.unwrap(getattr(real, "__func__", getattr(real, "fget", real)))
        (source,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(real))).body
        assert isinstance(source, ast.FunctionDef)
        assert signature(function) == signature(source), block.place


def functions_of(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    for node in tree.body:
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            yield node, ""
        else:
            yield from ((function, node.name) for function in node.body if isinstance(function, ast.FunctionDef))


def signature(function: ast.FunctionDef) -> str:
    returns = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    return f"{function.name}({ast.unparse(function.args)}){returns}"


def headings(page: str) -> list[str]:
    text = FENCE.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return [line.lstrip("# ").strip("`") for line in text.splitlines() if line.startswith("#")]


def test_every_hook_has_a_heading_and_its_exact_signature() -> None:
    hooks = [heading for heading in headings("hooks.md") if re.fullmatch(r"[a-z]+_[a-z_]+", heading)]
    assert hooks == list(HOOKS)
    blocks = [block for block in blocks_of(ROOT / "docs" / "hooks.md") if block.info == "python signature"]
    documented = [function.name for block in blocks for function, _ in functions_of(ast.parse(block.text))]
    assert documented == list(HOOKS)
    for block in blocks:
        for function, _ in functions_of(ast.parse(block.text)):
            names = [argument.arg for argument in function.args.args]
            assert names == list(inspect.signature(getattr(hookspecs, function.name)).parameters)


RETURNED = {
    "Effect | list[Effect] | None": "effects",
    "LossTerm | list[LossTerm] | None": "loss terms",
    "str | None": "a reason, as text",
    "None": "nothing",
    "type | None": "a class",
    "Iterable[str] | None": "names",
}


def test_the_table_of_hooks_says_what_their_marks_say() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table(ROOT / "docs" / "hooks.md", "hook")}
    expected = {}
    for hook, role in HOOKS.items():
        returned = RETURNED[inspect.signature(getattr(hookspecs, hook)).return_annotation]
        order, wrap = ("yes" if option in role.options else "no" for option in ("tryfirst", "wrapper"))
        veto = {"effects": "its masks may be vetoed", "a reason, as text": "this is the veto"}.get(returned, "no")
        expected[hook] = [role.name, returned, order, wrap, veto]
    assert rows == expected


def test_the_effects_that_may_be_returned_are_those_on_the_page() -> None:
    rows = table(ROOT / "docs" / "hooks.md", "effect")
    assert [row[0].strip("`").partition("(")[0] for row in rows] == effect_names()


def test_every_public_name_and_method_is_on_the_python_page() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    members = [name for name, _ in inspect.getmembers_static(CompressionScheduler) if name[0] != "_"]
    words = set(re.findall(r"\w+", text))
    assert [name for name in [*prunekit.__all__, *members] if name not in words] == []


@pytest.mark.parametrize("package", ["components", "model", "pruning", "quantization", "testing"])
def test_every_name_that_authors_are_offered_is_on_the_page_of_its_package(package: str) -> None:
    offered = import_module(f"prunekit.{package}").__all__
    words = set(re.findall(r"\w+", (ROOT / "docs" / f"{package}.md").read_text(encoding="utf-8")))
    assert [name for name in offered if name not in words] == []


# The trace


def test_every_line_that_the_code_can_write_is_on_the_page_of_the_trace() -> None:
    written = {
        event for path in sorted(ROOT.glob("prunekit/**/*.py")) for event in events_of(ast.parse(path.read_text()))
    }
    assert sorted(LINES_OF_THE_PAGE) == sorted(written)


def test_every_warning_of_a_plugin_is_on_the_page_of_the_trace_and_on_its_card() -> None:
    described = {
        row[0].strip("`"): re.findall(r"`([\w-]+)`", row[2]) for row in table(ROOT / "docs" / "trace.md", "warning")
    }
    written: dict[str, list[str]] = {}
    for path in sorted(ROOT.glob("plugins/*/src/*.py")):
        plugin, card = path.parents[1], (path.parents[1] / "README.md").read_text(encoding="utf-8")
        for warning in re.findall(r'\.warn\(\s*"([^"]+)"', path.read_text(encoding="utf-8")):
            written.setdefault(warning, []).append(plugin.name)
            assert f"`{warning}`" in " ".join(card.split()), plugin.name
    assert described == written


def events_of(tree: ast.Module) -> Iterator[str]:
    """The constants that stand where an event is expected: in calls of the trace, and of what has an `event`."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    places = {f.name: [argument.arg for argument in f.args.args if argument.arg != "self"] for f in functions}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    places |= {
        c.name: [ast.unparse(field.target) for field in c.body if isinstance(field, ast.AnnAssign)] for c in classes
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function, _, name = ast.unparse(call.func).rpartition(".")
        of_trace = (function.endswith("trace") and name in LEVELS) or f"{function}.{name}" in WARNINGS
        place = 0 if of_trace else places.get(name, []).index("event") if "event" in places.get(name, []) else None
        argument = call.args[place] if place is not None and place < len(call.args) else None
        if isinstance(argument, ast.Constant):
            yield argument.value


WARNINGS = ("context.warn", "self._warn")
"""How the core warns where a component could, too."""

EVENTFUL = """
version: 1
pruners:
  gradual: {class: AutomatedGradualPruner, initial_sparsity: 0, final_sparsity: 0.5, weights: fc1.weight}
  fleeting: {class: SparsityLevelParameterPruner, levels: {fc.weight: 0.5}}
regularizers:
  sparse: {class: L1Regularizer, reg_regims: {fc2.weight: 0.1}, threshold_criteria: Max}
lr_schedulers:
  decay: {class: ExponentialLR, gamma: 0.5}
policies:
  - {pruner: {instance_name: gradual}, epochs: [0, 1]}
  - {pruner: {instance_name: fleeting, args: {discard_masks_at_minibatch_end: true}}, epochs: [0]}
  - {regularizer: {instance_name: sparse, args: {keep_mask: true}}, epochs: [0, 1]}
  - {lr_scheduler: {instance_name: decay}, epochs: [0, 1, 2]}
"""


class Stumbles:
    """An extension that fails as epoch 2 ends."""

    @hookimpl
    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epoch == 2:
            raise RuntimeError("over")


def eventful_run(folder: Path) -> None:
    schedule = Schedule.from_text(EVENTFUL)
    failing = ComponentSpec("extension", "failing", Stumbles), PolicySpec("extension", "failing", Window(0, 3))
    schedule = Schedule([*schedule.components, failing[0]], [*schedule.policies, failing[1]])
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler(schedule, model, optimizer, trace=Trace(folder, "debug", logger=None))
    for zeros in (model.conv2.weight, model.conv3.weight[0]):
        nn.init.zeros_(zeros)
    scheduler.take_masks()
    with suppress(RuntimeError):
        for _ in scheduler.epochs(3):
            for images in scheduler.minibatches([torch.ones(2, 3, 8, 8)]):
                scheduler.total_loss(model(images).sum()).backward()
                optimizer.step()
    scheduler.load_state_dict(scheduler.state_dict())
    scheduler.on_train_end()


def test_the_lines_of_a_run_have_the_level_and_the_keys_that_the_page_says(tmp_path: Path) -> None:
    eventful_run(tmp_path)
    described, seen = LINES_OF_THE_PAGE, set()
    for line in read(tmp_path):
        level, keys = described[line["event"]]
        assert line["level"] in level.split("; "), line
        assert line.keys() - {"event", "level", "timestamp"} <= keys, line
        seen.add(line["event"])
    assert {"training begins", "window opens", "masks changed", "learning rate changed", "training ends"} <= seen


# Pages


def test_every_installed_plugin_has_a_row_in_the_list() -> None:
    rows = {re.sub(r"[`*\[\]]|\(.*\)", "", row[0]): row for row in table(ROOT / "docs" / "plugins.md", "class")}
    missing = []
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for group, entries in project["entry-points"].items():
            for name in entries if group != "prunekit" else ():
                if not any(project["name"] in cell for cell in rows.get(name, [])):
                    missing.append(f"{name} of {project['name']}")
    assert missing == []


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            file = target.partition("#")[0]
            if file and not re.match(r"[a-z]+:", target) and not (page.parent / file).exists():
                broken.append(f"{page_id(page)}: {target}")
    assert broken == []


def test_every_page_stands_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    contents = [name for toc in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for name in toc.split("\n")]
    pages = {path.stem for path in ROOT.glob("docs/*.md")} - {"index"}
    assert pages <= set(contents)


def test_a_block_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves: what a page says and what happens must be told apart."""
    monkeypatch.chdir(tmp_path)

    def check(*blocks: tuple[str, str]) -> Any:
        page = ROOT / "docs" / "index.md"
        after = Block(page, 1, *blocks[1]) if len(blocks) > 1 else None
        assert_does_as_it_says(Block(page, 1, *blocks[0], after), ModuleType("wrong"), monkeypatch)

    with pytest.raises(AssertionError, match="shows"):
        check(("python", "print(1)\n"), ("text", "2\n"))
    with pytest.raises(AssertionError, match="shows"):
        check(("console", "$ prunekit --version\nprunekit 99\n"))
    with pytest.raises(ScheduleError):
        check(("yaml", "version: 2\npolicies: []\n"))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(("yaml error", "version: 1\npolicies: []\n"), ("text", "wrong\n"))
    with pytest.raises(AssertionError, match="wrong"):
        check(("yaml error", "version: 2\npolicies: []\n"), ("text", "wrong\n"))
    (tmp_path / "made.py").write_text("one = 1\n")
    check(("python generated", "# made.py\none = 1\n"))
    with pytest.raises(AssertionError, match=r"docs/index\.md:1"):
        check(("python generated", "# made.py\none = 2\n"))
    with pytest.raises(AssertionError, match="on_epoch_begin"):
        check(("python signature", "def on_epoch_begin(model): ...\n"))


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ("python", "assert 1 == 2"),
        ("yaml", "version: 1\npruners:\n  a: {class: Nothing}\npolicies: []\n"),
        ("python signature", "def on_epoch_begin(nothing: int) -> None: ..."),
        ("python nonsense", "1"),
    ],
)
def test_a_block_that_does_not_do_what_it_says_fails(
    info: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, ScheduleError)):
        assert_does_as_it_says(Block(ROOT / "README.md", 1, info, text), ModuleType("page_of_docs"), monkeypatch)
