"""What `python -m docs.generate` makes from the plugins: up to date, complete, and right."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from docs.generate import cards, files as files_here, keys, plugins as plugins_here
from docs.generate.__main__ import main
from prunekit.plugins.scaffold import create_plugin
from prunekit.schedule.yaml_source import Source

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/schedules/*.yaml"))
CARDS = [ROOT / "README.md", *sorted(ROOT.glob("plugins/*/README.md"))]
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
NEW = {
    "pruner": "OnePruner",
    "regularizer": "OneRegularizer",
    "quantizer": "OneQuantizer",
    "lr_scheduler": "OneLR",
    "extension": "OneExtension",
    "listener": "OneListener",
}


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's own path, and its modules, as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("prunekit_one_"):
            del sys.modules[name]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Any]:
    """Makes a new plugin of a kind, in a repository of its own."""

    def make(kind: str) -> Any:
        (tmp_path / "plugins").mkdir(exist_ok=True)
        create_plugin(NEW[kind], kind, tmp_path / "plugins")
        (plugin,) = [p for p in plugins_here.plugins_of(tmp_path) if p.name.startswith("prunekit-one-")]
        return plugin

    return make


# Up to date


def test_the_cards_and_the_page_and_the_schema_are_up_to_date() -> None:
    files, problems = files_here.generated(plugins_here.plugins_of())
    assert problems == []
    if torch.__version__.partition("+")[0] not in (ROOT / "constraints.txt").read_text():
        del files[files_here.SCHEMA]  # it holds the LR schedulers of one torch
    assert [path.relative_to(ROOT).as_posix() for path in files_here.stale(files)] == [], "run python -m docs.generate"


def test_the_command_writes_what_is_stale_and_with_check_only_says_so(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = made("pruner")
    page, schema = tmp_path / "page.md", tmp_path / "schema.json"
    page.write_text("# Page\n\n<!-- cards: pruner -->\n<!-- end -->\n")
    monkeypatch.setattr(files_here, "PAGES", (page,))
    monkeypatch.setattr(files_here, "SCHEMA", schema)
    monkeypatch.setattr(files_here, "CONTRACTS", tmp_path / "contracts.ini")
    monkeypatch.setattr("docs.generate.__main__.plugins_of", lambda: [plugin])
    assert main(["--check"]) == 1
    assert "page.md: not up to date: run python -m docs.generate" in capsys.readouterr().out
    assert not schema.exists()
    assert main([]) == 0
    assert "| `OnePruner` | [prunekit-one-pruner](methods.md#prunekit-one-pruner) | " in page.read_text()
    assert "OnePruner" in schema.read_text()
    assert main(["--check"]) == 0


# Schedules and the schema


@pytest.fixture(scope="module")
def schema() -> Any:
    files, _ = files_here.generated(plugins_here.plugins_of())
    return json.loads(files[files_here.SCHEMA])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_points_to_the_schema(path: Path) -> None:
    modeline = MODELINE.match(path.read_text(encoding="utf-8"))
    assert modeline is not None
    assert (path.parent / modeline[1]).resolve() == files_here.SCHEMA


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_every_example_but_for_classes_that_nobody_here_offers(path: Path, schema: Any) -> None:
    data = Source.from_file(path).data
    errors = list(Draft202012Validator(schema).iter_errors(data))
    assert {error.absolute_path[-1] for error in errors} <= {"class"}
    assert all(error.instance not in json.dumps(schema) for error in errors)


@pytest.mark.parametrize("page", CARDS, ids=lambda page: page.parent.name)
def test_the_schema_accepts_every_schedule_of_the_cards_and_the_readme(page: Path, schema: Any) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        errors = list(Draft202012Validator(schema).iter_errors(Source.from_text(text).data))
        assert [error.message for error in errors] == []


# Cards


@pytest.mark.parametrize("kind", NEW)
def test_the_card_of_a_new_plugin_lacks_nothing_and_its_table_is_the_one_that_is_made(
    kind: str, made: Callable[..., Any]
) -> None:
    plugin = made(kind)
    assert list(cards.problems_of(plugin)) == []
    assert files_here.filled(plugin.text(), [plugin], plugins_here.registry_of([plugin])) == plugin.text()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# prunekit-one-pruner\n", "# One\n", "must begin with '# prunekit-one-pruner'"),
        ("## What it does\n", "## What\n", "nothing under '## What it does'"),
        ("## In a schedule\n", "### In a schedule\n", "nothing under '## In a schedule'"),
        ("## When to use it\n", "## When\n", "nothing under '## When to use it'"),
        ("## Paper\n", "## Papers\n", "nothing under '## Paper'"),
        ("Prefer ", "Choose ", "no sentence under '## When to use it' begins with 'Prefer'"),
        ("parameters: OnePruner", "parameters: None", "'<!-- parameters: OnePruner -->' must stand in it once"),
        ("parameters: OnePruner", "parameters: OnePrunr", "'<!-- parameters: OnePrunr -->' is no class of its pypro"),
        ("<!-- end -->", "", "'<!-- parameters: OnePruner -->' must stand in it once, with '<!-- end -->' below"),
    ],
)
def test_what_a_card_lacks_is_said(old: str, new: str, problem: str, made: Callable[..., Any]) -> None:
    plugin = made("pruner")
    plugin.card.write_text(plugin.text().replace(old, new), encoding="utf-8")
    assert any(problem in said for said in cards.problems_of(plugin))


def test_a_plugin_that_can_not_be_imported_is_said_and_its_table_stays(made: Callable[..., Any]) -> None:
    plugin = made("pruner")
    (module,) = (plugin.folder / "src").iterdir()
    module.write_text("import no_such_module\n")
    files, problems = files_here.generated([plugin])
    assert plugin.card not in files
    assert [p for p in problems if "No module named 'no_such_module'" in p and str(plugin.card) in p]


TWO = '''
from dataclasses import dataclass
from prunekit.components import Selectors, Sparsity

@dataclass
class One:
    """One.

    Args:
        weights: all of these.
        sparsity: that |w| makes.
    """

    weights: Selectors
    sparsity: Sparsity = 0.5

@dataclass
class One_AGP:
    """The same, gradually.

    Args:
        weights: all of these.
        final_sparsity: in the end.
    """

    weights: Selectors
    final_sparsity: Sparsity
'''


def test_several_classes_have_a_table_each_or_one_that_says_whose_each_key_is(made: Callable[..., Any]) -> None:
    plugin = made("pruner")
    pyproject = plugin.folder / "pyproject.toml"
    two = 'One = "prunekit_one_pruner:One"\nOne_AGP = "prunekit_one_pruner:One_AGP"'
    pyproject.write_text(re.sub(r"^OnePruner = .*$", two, pyproject.read_text(), flags=re.MULTILINE))
    (plugin.folder / "src" / "prunekit_one_pruner.py").write_text(TWO)
    (plugin,) = plugins_here.plugins_of(plugin.folder.parents[1])
    registry = plugins_here.registry_of([plugin])

    def table(classes: str) -> list[str]:
        text = f"<!-- parameters: {classes} -->\n<!-- end -->\n"
        return str(files_here.filled(text, [plugin], registry)).splitlines()[2:-2]

    weights = "name, glob or `re:` pattern, or a list of these | required | all of these |"
    assert table("One") == [
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        f"| `weights` | {weights}",
        r"| `sparsity` | number, 0 to 1 | `0.5` | that \|w\| makes |",
    ]
    assert table("One, One_AGP") == [
        "| key | of | type | default | meaning |",
        "| --- | --- | --- | --- | --- |",
        f"| `weights` | all | {weights}",
        r"| `sparsity` | `One` | number, 0 to 1 | `0.5` | that \|w\| makes |",
        "| `final_sparsity` | `One_AGP` | number, 0 to 1 | required | in the end |",
    ]
    row = cards.rows_of_cards([plugin], "pruner").splitlines()[-1]
    assert row.startswith("| `One`, `One_AGP` | [prunekit-one-pruner]")


# Words


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "anything"),
        ({"type": "string"}, "text"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"type": "integer", "minimum": 1}, "integer, at least 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number, at most 1, above 0"),
        ({"enum": ["a", "b", "c"]}, "`a`, `b` or `c`"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "string"}]}, "`a` or `b`; or text"),
        ({"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}, "number or list of numbers"),
        (
            {"type": "object", "additionalProperties": {"$ref": "#/$defs/X"}},
            "mapping of name to mapping with `n` (text)",
        ),
        (
            {"type": "array", "prefixItems": [{"type": "number", "minimum": 0}, {"const": "a"}]},
            "[number, not negative; `a`]",
        ),
    ],
)
def test_a_type_in_words(schema: Any, words: str) -> None:
    definitions = {"X": {"type": "object", "properties": {"n": {"type": "string"}}}}
    assert keys.in_words(schema, definitions) == words


@pytest.mark.parametrize(
    ("section", "cell"),
    [
        ("None of its own: it is what *Others* do.", "none"),
        ("Ann B. Cee, *A title: b*, 2015,\n[a 1](https://x.org/1): more.", "*A title: b*, 2015, [a 1](https://x.org/1)"),
        ("Ann 2015, *Title*, Journal 58 (2006). See [arXiv 2](https://x.org/2).", "*Title*, Journal 58 (2006)"),
        ('Han et al. 2015, "A title", [arXiv 3](https://x.org/3).', '"A title", [arXiv 3](https://x.org/3)'),
        ("Folklore. More.", "Folklore."),
    ],
)  # fmt: skip
def test_a_paper_is_its_title_year_and_link(section: str, cell: str) -> None:
    assert cards.paper(section) == cell


def test_sentences_end_with_a_sentence() -> None:
    text = "Han et al. Found it.\nAs J. Dally says: `x` is 0.5 of y. `Y` too.\n\nPrefer z."
    assert cards.sentences(text) == [
        "Han et al. Found it.",
        "As J. Dally says: `x` is 0.5 of y.",
        "`Y` too.",
        "Prefer z.",
    ]
