"""`prunekit schema`: what it accepts and refuses is what prunekit accepts and refuses."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner
from importlib_metadata import EntryPoint
from jsonschema import Draft202012Validator
from pydantic import Field
from typing_extensions import TypedDict

from prunekit import hookimpl
from prunekit.cli.group import prunekit
from prunekit.engine.building.build import build
from prunekit.plugins.entry_points import Offer
from prunekit.plugins.listeners import Listener
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.registry import Registry
from prunekit.plugins.run_time import RunTimeComponents
from prunekit.plugins.scaffold import create_plugin
from prunekit.schedule.json_schema import schema_document
from prunekit.schedule.schedule import parse
from prunekit.schedule.yaml_source import Source

SCHEDULES = sorted((Path(__file__).parents[2] / "examples" / "schedules").glob("*.yaml"))


class Layer(TypedDict):
    share: Annotated[float, Field(ge=0, le=1)]


class First:
    """Prunes first.

    And says more.
    """

    def __init__(self, layers: dict[str, Layer], mode: Literal["up", "down"] = "up") -> None: ...

    def compute_masks(self) -> None: ...


class Second:
    def __init__(self, layers: list[int]) -> None: ...


class Offered(Offer):
    def load(self) -> Any:
        if self.name == "Broken":
            return super().load()
        return globals()[self.name]


def offer(name: str, distribution: str) -> Offer:
    return Offered("pruner", name, distribution, "1.0", EntryPoint(name, f"no_such_module:{name}", "prunekit.pruners"))


class Late:
    """A listener that offers an extension."""

    @hookimpl
    def find_component(self, kind: str, name: str) -> type | None:
        return Second if (kind, name) == ("extension", "Late") else None

    @hookimpl
    def list_components(self, kind: str) -> Iterable[str]:
        return ["Late"] if kind == "extension" else []


REGISTRY = Registry(
    [offer("First", "one"), offer("Second", "one"), offer("Second", "two")],
    RunTimeComponents([Listener("late", "late", "2.0", Late)]),
)


@pytest.fixture(scope="module")
def installed() -> Draft202012Validator:
    return Draft202012Validator(schema_document(load_plugins().registry))


def agp(**changes: Any) -> dict[str, Any]:
    keys = {"initial_sparsity": 0.1, "final_sparsity": 0.9, "weights": ["fc.weight"]}
    return {"agp": {"class": "AutomatedGradualPruner", **keys, **changes}}


def schedule(policy: dict[str, Any] | None = None, pruner: dict[str, Any] | None = None) -> dict[str, Any]:
    window = {"epochs": [0, 2]} if policy is None else policy
    entry = {"pruner": {"instance_name": "agp"}, **window}
    return {"version": 1, "pruners": pruner or agp(), "policies": [entry]}


def accepts(validator: Draft202012Validator, data: Any) -> bool:
    # As JSON, as an editor sees it.
    return validator.is_valid(json.loads(json.dumps(data)))


def test_the_command_prints_a_valid_schema_and_nothing_else() -> None:
    result = CliRunner().invoke(prunekit, ["schema"])
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.name)
def test_the_schema_judges_every_example_as_prunekit_does(installed: Draft202012Validator, path: Path) -> None:
    source = Source.from_file(path)
    parsed = parse(source)
    problems = parsed.problems() + build(parsed, load_plugins().registry).problems
    assert accepts(installed, source.data) == (not problems)


GOOD = [
    schedule(),
    schedule({"starting_epoch": 0, "ending_epoch": 4}),
    schedule({"starting_epoch": 0, "ending_epoch": 4, "frequency": 2}),
    schedule({"starting_step": 0, "ending_step": 4000, "frequency": 100}),
    schedule({"steps": [0, 1000]}),
    schedule(pruner=agp(weights="*.weight")),
    schedule(pruner=agp(**{"class": "prunekit-agp-pruner:AutomatedGradualPruner"})),
    {**schedule(), "regularizers": None, "extensions": {}},
    {"policies": None},
    {"policies": []},
]
BAD = [
    {},
    [],
    {"version": 2, "policies": []},
    {**schedule(), "polices": []},
    schedule(pruner=agp(final_sparsty=0.9)),
    schedule(pruner=agp(final_sparsity="0.9")),
    schedule(pruner=agp(final_sparsity=8)),
    schedule(pruner=agp(**{"class": "AutomatedGradualPrunr"})),
    schedule(pruner={"agp": {"class": "AutomatedGradualPruner", "final_sparsity": 0.9, "weights": "*"}}),
    schedule(pruner={"agp": {"initial_sparsity": 0.1}}),
    schedule(pruner={"agp": None}),
    schedule({}),
    schedule({"starting_epoch": 0}),
    schedule({"epochs": [0], "starting_epoch": 0, "ending_epoch": 4}),
    schedule({"epochs": [0], "frequency": 1}),
    schedule({"epochs": []}),
    schedule({"epochs": [0], "steps": [0]}),
    schedule({"epochs": [0], "starting_step": 0}),
    schedule({"starting_epoch": 0, "ending_step": 4}),
    schedule({"starting_epoch": 0, "ending_epoch": 4, "starting_step": 0, "ending_step": 4}),
    schedule({"starting_step": 0}),
    schedule({"steps": [0], "starting_step": 0, "ending_step": 4}),
    schedule({"steps": [0], "frequency": 1}),
    schedule({"steps": []}),
    schedule({"epochs": [-1]}),
    schedule({"starting_epoch": 0, "ending_epoch": 4, "frequency": 0}),
    schedule({"starting_epoch": 0, "ending_epoch": 4, "frequncy": 1}),
    {**schedule(), "policies": [{"epochs": [0]}]},
    {
        **schedule(),
        "policies": [{"pruner": {"instance_name": "agp"}, "extension": {"instance_name": "x"}, "epochs": [0]}],
    },
    {**schedule(), "policies": [{"pruner": {}, "epochs": [0]}]},
    {**schedule(), "policies": [{"pruner": {"instance_name": "agp", "args": {"keep_masks": True}}, "epochs": [0]}]},
    {**schedule(), "policies": [{"lr_scheduler": {"instance_name": "agp", "args": {"x": 1}}, "epochs": [0]}]},
]


@pytest.mark.parametrize("data", GOOD, ids=str)
def test_what_prunekit_accepts_the_schema_accepts(installed: Draft202012Validator, data: Any) -> None:
    assert list(problems_of(data)) == []
    assert accepts(installed, data)


@pytest.mark.parametrize("data", BAD, ids=str)
def test_what_the_schema_refuses_prunekit_refuses(installed: Draft202012Validator, data: Any) -> None:
    assert list(problems_of(data)) != []
    assert not accepts(installed, data)


def problems_of(data: Any) -> Iterator[Any]:
    parsed = parse(Source.from_data(copy.deepcopy(data)))
    yield from parsed.problems()
    yield from build(parsed, load_plugins().registry).problems


def test_policies_take_the_args_of_their_kind(installed: Draft202012Validator) -> None:
    data = schedule()
    data["policies"][0]["pruner"]["args"] = {"mini_batch_pruning_frequency": 3, "keep_mask": True}
    assert accepts(installed, data)
    data["policies"][0]["pruner"]["args"] = {"mini_batch_pruning_frequency": -3}
    assert not accepts(installed, data)


def test_a_class_that_listeners_offer_is_known_by_both_its_names(installed: Draft202012Validator) -> None:
    policies = [{"lr_scheduler": {"instance_name": "lr"}, "epochs": [0]}]
    for name in ("StepLR", "prunekit-torch-lr:StepLR"):
        data = {"lr_schedulers": {"lr": {"class": name, "step_size": 3}}, "policies": policies}
        assert accepts(installed, data)
        data["lr_schedulers"]["lr"]["step_siez"] = 3
        assert not accepts(installed, data)


def section(class_: str, **keys: Any) -> dict[str, Any]:
    return {"pruners": {"p": {"class": class_, **keys}}, "policies": []}


def test_definitions_of_different_classes_keep_apart() -> None:
    validator = Draft202012Validator(schema_document(REGISTRY))
    assert accepts(validator, section("First", layers={"fc": {"share": 0.5}}, mode="down"))
    assert accepts(validator, section("one:First", layers={}))
    assert not accepts(validator, section("First", layers={"fc": {"share": 2}}))
    assert not accepts(validator, section("First", layers={}, mode="left"))
    assert not accepts(validator, section("First", layers=[1]))
    assert accepts(validator, section("one:Second", layers=[1]))


def test_a_name_that_two_distributions_offer_needs_its_distribution() -> None:
    validator = Draft202012Validator(schema_document(REGISTRY))
    assert not accepts(validator, section("Second", layers=[1]))
    assert accepts(validator, section("two:Second", layers=[1]))


def test_the_schema_says_what_a_class_is_for_and_what_its_defaults_are() -> None:
    definition = schema_document(REGISTRY)["$defs"]["pruner.one:First"]
    assert definition["description"] == "Prunes first."
    assert definition["properties"]["mode"] == {"enum": ["up", "down"], "type": "string", "default": "up"}
    assert definition["required"] == ["layers"]


def test_a_broken_plugin_is_left_out_with_a_word() -> None:
    told: list[str] = []
    document = schema_document(Registry([offer("First", "one"), offer("Broken", "three")]), told.append)
    assert document["$defs"]["pruner"]["properties"]["class"]["enum"] == ["First", "one:First"]
    assert len(told) == 1
    assert "'Broken' of three 1.0 can't be imported" in told[0]


# What an editor shows


BAD_FILES = [
    ("final_sparsity: 0.9", "final_sparsty: 0.9", ["pruners", "agp"], "'final_sparsty' was unexpected"),
    (
        "initial_sparsity: 0.1",
        "initial_sparsity: much",
        ["pruners", "agp", "initial_sparsity"],
        "is not of type 'number'",
    ),
    (
        "final_sparsity: 0.9",
        "final_sparsity: 90",
        ["pruners", "agp", "final_sparsity"],
        "90 is greater than the maximum",
    ),
    ("GradualPruner", "GradualPrunr", ["pruners", "agp", "class"], "'AutomatedGradualPrunr' is not one of"),
    ("policies:", "polices:", [], "'polices' was unexpected"),
    ("instance_name: agp", "instance: agp", ["policies", 0, "pruner"], "'instance' was unexpected"),
    ("ending_epoch: 4", "ending_epoch: 0", ["policies", 0, "ending_epoch"], "0 is less than the minimum of 1"),
    ("version: 1", "version: 2", ["version"], "1 was expected"),
]
GOOD_FILE = """\
version: 1
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.1
    final_sparsity: 0.9
    weights: fc.weight
policies:
  - pruner: {instance_name: agp}
    starting_epoch: 0
    ending_epoch: 4
"""


@pytest.mark.parametrize(("right", "wrong", "place", "message"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_a_mistake_is_shown_where_it_is(
    right: str, wrong: str, place: list[str | int], message: str, installed: Draft202012Validator
) -> None:
    assert accepts(installed, Source.from_text(GOOD_FILE).data)
    errors = list(installed.iter_errors(Source.from_text(GOOD_FILE.replace(right, wrong)).data))
    shown = [(list(error.absolute_path), error.message) for error in errors]
    assert [text for path, text in shown if path == place and message in text], shown
    assert {tuple(path) for path, _ in shown} == {tuple(place)}


def test_every_key_is_shown_with_what_its_docstring_says(installed: Draft202012Validator) -> None:
    keys = installed.schema["$defs"]["pruner.prunekit-agp-pruner:AutomatedGradualPruner"]["properties"]
    assert keys["final_sparsity"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "the fraction at the last active epoch, above the initial one.",
    }


def test_the_command_covers_a_third_partys_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = create_plugin("AcmePruner", "pruner", tmp_path)
    info = tmp_path / "prunekit_acme_pruner-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prunekit-acme-pruner\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[prunekit.pruners]\nAcmePruner = prunekit_acme_pruner:AcmePruner\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(plugin.folder / "src"))
    validator = Draft202012Validator(json.loads(CliRunner().invoke(prunekit, ["schema"]).stdout))
    monkeypatch.delitem(sys.modules, "prunekit_acme_pruner")
    data = Source.from_file(plugin.folder / "schedule.yaml").data
    assert accepts(validator, data)
    data["pruners"]["half"]["desired_sparsity"] = 2
    places = [list(error.absolute_path) for error in validator.iter_errors(data)]
    assert places == [["pruners", "half", "desired_sparsity"]]
