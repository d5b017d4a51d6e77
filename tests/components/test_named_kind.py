"""Curves, granularities and rankings by name: prunekit's own and those of distributions, under the rules of classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fake_sites import Install, fake_site
from helpers import MLP, SILENT, through_a_file

from prunekit import (
    ArgumentError,
    CompressionScheduler,
    Lock,
    PluginError,
    Schedule,
    ScheduleError,
    StateError,
    Trace,
    Trust,
    load_plugins,
)
from prunekit.cli.group import prunekit
from prunekit.components.named_kind import takes
from prunekit.engine.building.build import build
from prunekit.plugins.registry import Registry
from prunekit.pruning import CURVE, CURVES, GRANULARITY, RANKING, GradualSparsity
from prunekit.pruning.named_kinds import NAMED_KINDS
from prunekit.schedule.json_schema import schema_document
from prunekit.testing import LawsBroken, check_component
from prunekit.trace import read

PIECES = '''\
import torch
from prunekit.pruning import Groups

def late(initial, final, fraction):
    """All of the way in the last third."""
    return initial + (final - initial) * max(0, 3 * fraction - 2)

class EveryOther:
    """Even rows, and odd ones."""
    def groups(self, tensor):
        if tensor.dim() != 2 or len(tensor) % 2:
            raise ValueError(f"has shape {list(tensor.shape)}, not an even number of rows")
        return Groups(tuple(tensor.shape), (len(tensor) // 2, 2, tensor.shape[1]), (0, 2))

def signed(weight, groups):
    return groups.sum(weight)

number = 3
'''
GROUPS = {
    "prunekit.curves": {"late": "fake_pieces:late"},
    "prunekit.granularities": {"every-other": "fake_pieces:EveryOther"},
    "prunekit.rankings": {"signed": "fake_pieces:signed"},
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return fake_site(tmp_path, monkeypatch)


@pytest.fixture
def pieces(install: Install) -> Install:
    """A distribution with one of each; more can be installed."""
    install("fake-pieces", "1.5", GROUPS, fake_pieces=PIECES)
    return install


def gradual(curve: str) -> str:
    return f"""\
version: 1
pruners:
  p:
    class: AutomatedGradualPruner
    initial_sparsity: 0.25
    final_sparsity: 0.5
    curve: {curve}
    weights: [fc1.weight]
policies:
  - pruner: {{instance_name: p}}
    starting_epoch: 0
    ending_epoch: 4
"""


def ranked(granularity: str = "every-other", magnitude: str = "") -> str:
    cls = "FMReconstructionChannelPruner" if magnitude else "L1RankedStructureParameterPruner"
    keys = f"group_type: Channels\n    magnitude_fn: {magnitude}" if magnitude else f"granularity: {granularity}"
    return f"""\
version: 1
pruners:
  p:
    class: {cls}
    desired_sparsity: 0.5
    {keys}
    weights: [fc1.weight]
policies:
  - {{pruner: {{instance_name: p}}, epochs: [0]}}
"""


def run(text: str, trust: Trust | None = None, trace: Trace = SILENT) -> CompressionScheduler:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule.from_text(text, "s.yaml")
    return CompressionScheduler(schedule, model, optimizer, trace=trace, plugins=load_plugins(trust))


def refusal(text: str, trust: Trust | None = None) -> list[str]:
    with pytest.raises(ScheduleError) as caught:
        run(text, trust)
    return str(caught.value).splitlines()


def sparsities(scheduler: CompressionScheduler, epochs: range = range(4)) -> list[float]:
    seen = []
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        seen.append(scheduler.sparsity("fc1.weight"))
        scheduler.on_epoch_end(epoch)
    return seen


# What a name means


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", ["late", "fake-pieces:late", "Fake_Pieces:late"])
def test_an_installed_curve_is_followed(name: str) -> None:
    assert sparsities(run(gradual(name))) == [0.25, 0.25, 0.25, 0.5]


LEVEL = """
version: 1
pruners:
  p: {{class: SparsityLevelParameterPruner, levels: {{fc1.weight: {{curve: {}, from: 0.25, to: 0.5}}}}}}
regularizers:
  r: {{class: GroupLassoRegularizer, reg_regims: {{fc2.weight: [{{curve: {}, from: 1, to: 2}}, Rows]}}}}
policies:
  - {{pruner: {{instance_name: p}}, starting_epoch: 0, ending_epoch: 4}}
  - {{regularizer: {{instance_name: r}}, starting_epoch: 0, ending_epoch: 4}}
"""


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", ["late", "fake-pieces:late", "Fake_Pieces:late"])
def test_an_installed_curve_is_followed_by_an_argument_that_changes_over_time(name: str) -> None:
    scheduler = run(LEVEL.format(name, name))
    assert sparsities(scheduler) == [0.25, 0.25, 0.25, 0.5]
    assert "fake-pieces" in {entry.distribution for entry in scheduler.lock().entries}


@pytest.mark.usefixtures("pieces")
def test_a_curve_that_nobody_has_is_said_once_where_it_is_named() -> None:
    lines = [line.partition(" (")[0] for line in refusal(LEVEL.format("latte", "linear"))]
    assert lines == [
        "s.yaml:4:73: pruners.p.levels.fc1.weight.curve: no curve is registered as 'latte'; did you mean 'late'?"
    ]


@pytest.mark.parametrize("name", ["one-shot", "prunekit:one-shot"])
def test_prunekits_own_have_names_of_the_same_form(name: str) -> None:
    assert sparsities(run(gradual(name))) == [0.5] * 4


@pytest.mark.usefixtures("pieces")
def test_an_installed_granularity_says_what_goes_as_one() -> None:
    scheduler = run(ranked())
    scheduler.on_epoch_begin(0)
    kept = scheduler.masks["fc1.weight"].any(1).tolist()
    assert kept in ([True, False] * 4, [False, True] * 4)


@pytest.mark.usefixtures("pieces")
def test_a_tensor_that_has_no_such_groups_is_refused_at_the_key_that_selects_it() -> None:
    assert refusal(ranked().replace("fc1.weight", "fc1.bias")) == [
        "s.yaml:7:15: pruners.p.weights[0]: 'fc1.bias' has shape [8], not an even number of rows"
    ]


def test_from_python_an_argument_is_prunekits_name_or_the_thing_itself() -> None:
    def halfway(initial: float, final: float, fraction: float) -> float:
        return (initial + final) / 2 if fraction < 1 else final

    given = [GradualSparsity(initial_sparsity=0, final_sparsity=1, curve=c).at(0.25) for c in ("linear", halfway)]
    assert given == [0.25, 0.5]
    with pytest.raises(ArgumentError) as error:
        GradualSparsity(initial_sparsity=0, final_sparsity=1, curve="liner")
    assert str(error.value) == "curve: prunekit has no curve 'liner'; did you mean 'linear'?"


def test_a_curve_that_gives_no_sparsity_is_told_when_it_is_asked() -> None:
    def wild(initial: float, final: float, fraction: float) -> float:
        return 1.5

    with pytest.raises(ValueError, match=r"wild' gives 1\.5 when 0\.5 of the window has passed; a sparsity is from 0"):
        GradualSparsity(initial_sparsity=0, final_sparsity=1, curve=wild).at(0.5)


def test_every_kind_has_its_group_and_prunekits_own_are_of_their_kind() -> None:
    assert [kind.group for kind in NAMED_KINDS.values()] == [
        "prunekit.curves",
        "prunekit.granularities",
        "prunekit.rankings",
    ]
    assert all(kind.fits(thing) for kind in (CURVE, GRANULARITY, RANKING) for thing in kind.built_in.values())
    assert takes(1)(torch.Tensor.abs)


# What is refused


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            gradual("layt"),
            "s.yaml:7:12: pruners.p.curve: no curve is registered as 'layt'; did you mean 'late'? (fake-pieces 1.5)",
        ),
        (
            gradual("signed"),
            "s.yaml:7:12: pruners.p.curve: 'signed' is a ranking, not a curve (fake-pieces 1.5)",
        ),
        (
            gradual("SparsityLevelParameterPruner"),
            "s.yaml:7:12: pruners.p.curve: 'SparsityLevelParameterPruner' is a pruner, not a curve; "
            "it belongs under 'pruners' (prunekit-level-pruner 0.1.0)",
        ),
        (
            gradual("acme:late"),
            "s.yaml:7:12: pruners.p.curve: 'late' is offered by fake-pieces 1.5, not by 'acme'",
        ),
        (gradual("3"), "s.yaml:7:12: pruners.p.curve: must be the name of a curve or a list, got 3"),
        (
            ranked("everyother"),
            "s.yaml:6:18: pruners.p.granularity: no granularity is registered as 'everyother'; "
            "did you mean 'every-other'? (fake-pieces 1.5)",
        ),
    ],
)
def test_a_name_that_means_nothing_is_refused_at_its_line(text: str, line: str) -> None:
    assert refusal(text) == [line]
    assert "fake_pieces" not in sys.modules


@pytest.mark.usefixtures("pieces")
def test_all_that_is_wrong_beside_a_name_is_told_with_it() -> None:
    text = gradual("layt").replace("0.25", "25").replace("AutomatedGradualPruner", "MovementPruner")
    assert [line.partition(": ")[2].partition(":")[0] for line in refusal(text)] == [
        "pruners.p.initial_sparsity",
        "pruners.p.curve",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fake_odd:number", "is int 3, not a function (initial, final, fraction) -> value"),
        ("fake_odd:signed", "is function <function signed at …>, not a function (initial, final, fraction) -> …"),
        ("fake_odd:Needy", "is a class that can't be made without arguments: TypeError: …"),
        ("fake_odd:gone", "can't be imported from 'fake_odd:gone': AttributeError: …"),
    ],
)
def test_what_is_no_curve_is_refused_with_what_would_be_one(value: str, message: str, install: Install) -> None:
    body = PIECES + "class Needy:\n    def __init__(self, needed): ...\n"
    install("fake-odd", "1", {"prunekit.curves": {"odd": value}}, fake_odd=body)
    [line] = refusal(gradual("odd"))
    begin, *others = f"s.yaml:7:12: pruners.p.curve: curve 'odd' of fake-odd 1 {message}".split("…")
    assert line.startswith(begin) and all(other in line for other in others), line


def test_an_entry_point_in_a_group_that_does_not_exist_is_found(install: Install) -> None:
    install("fake-pieces", "1.5", {"prunekit.curve": {"late": "fake_pieces:late"}}, fake_pieces=PIECES)
    assert refusal(gradual("late")) == [
        "s.yaml:7:12: pruners.p.curve: no curve is registered as 'late'; fake-pieces 1.5 offers it in "
        "'prunekit.curve', which is no group: a curve belongs in 'prunekit.curves'"
    ]
    [row] = [row for row in rows() if row["distribution"] == "fake-pieces"]
    reason = "prunekit has no group 'prunekit.curve'; did you mean 'prunekit.curves'?"
    assert (row["kind"], row["state"], row["reason"]) == ("?", "broken", reason)


# Whose it is


def test_nothing_is_imported_until_a_schedule_names_it(pieces: Install) -> None:
    pieces("fake-more", "1", {"prunekit.curves": {"other": "fake_more:late"}}, fake_more=PIECES)
    run(gradual("cubic"))
    assert {"fake_pieces", "fake_more"} & set(sys.modules) == set()
    run(gradual("late"))
    assert {"fake_pieces", "fake_more"} & set(sys.modules) == {"fake_pieces"}


def test_two_distributions_with_one_name_are_an_error_naming_both(pieces: Install) -> None:
    pieces("fake-more", "2.0", GROUPS, fake_more=PIECES)
    assert refusal(gradual("late")) == [
        "s.yaml:7:12: pruners.p.curve: fake-more 2.0 and fake-pieces 1.5 both offer curve 'late'; "
        "say which: fake-more:late"
    ]
    assert "fake_pieces" not in sys.modules
    assert run(gradual("fake-more:late")).state_dict()["plugins"]["fake-more"] == "2.0"
    assert sparsities(run(gradual("late"), Trust(allow=["prunekit-*", "fake-more"])))[0] == 0.25


def test_a_name_that_prunekit_has_collides_too(install: Install) -> None:
    install("fake-pieces", "1.5", {"prunekit.curves": {"cubic": "fake_pieces:late"}}, fake_pieces=PIECES)
    [line] = refusal(gradual("cubic"))
    assert line.endswith("fake-pieces 1.5 and prunekit 0.1.0 both offer curve 'cubic'; say which: fake-pieces:cubic")
    assert sparsities(run(gradual("fake-pieces:cubic"))) == [0.25, 0.25, 0.25, 0.5]
    assert sparsities(run(gradual("prunekit:cubic")))[1] > 0.4
    assert sparsities(run(gradual("cubic"), Trust(allow=["prunekit-*"])))[1] > 0.4
    without_curve = gradual("cubic").replace("    curve: cubic\n", "")
    assert sparsities(run(without_curve))[1] > 0.4, "a default is prunekit's own"


@pytest.mark.usefixtures("pieces")
def test_what_is_not_allowed_is_refused_and_not_imported() -> None:
    trust = Trust(allow=["prunekit-*"])
    assert refusal(gradual("late"), trust) == [
        "s.yaml:7:12: pruners.p.curve: fake-pieces 1.5 is not among the plugins that are allowed: prunekit-*"
    ]
    assert "fake_pieces" not in sys.modules
    assert run(gradual("linear"), trust).schedule


@pytest.mark.usefixtures("pieces")
def test_a_lock_holds_what_was_named_and_refuses_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "plugins.lock.json"
    run(gradual("late")).lock().write(file)
    entries = [(entry.kind, entry.name) for entry in Lock.read(file).entries if entry.kind != "listener"]
    assert entries == [("core", "prunekit"), ("curve", "late"), ("pruner", "AutomatedGradualPruner")]
    assert run(gradual("late"), Trust(lock=Lock.read(file))).schedule
    assert run(gradual("cubic"), Trust(lock=Lock.read(file))).schedule, "prunekit's own are part of prunekit"
    data = json.loads(file.read_text())
    for entry in data["plugins"]:
        entry["sha256"] = "0" * 64 if entry["name"] == "late" else entry["sha256"]
    file.write_text(json.dumps(data))
    [line] = refusal(gradual("late"), Trust(lock=Lock.read(file)))
    assert f"curve 'late' of fake-pieces 1.5 is not the one in the lock {file}: its files have changed" in line
    data["plugins"] = [entry for entry in data["plugins"] if entry["name"] != "late"]
    file.write_text(json.dumps(data))
    assert refusal(gradual("late"), Trust(lock=Lock.read(file))) == [
        f"s.yaml:7:12: pruners.p.curve: curve 'late' of fake-pieces 1.5 is not in the lock {file}"
    ]


def own_curve(initial: float, final: float, fraction: float) -> float:
    return final


def test_what_is_given_from_python_is_locked_by_the_module_that_defines_it() -> None:
    data = Schedule.from_text(gradual("cubic")).to_dict()
    data["pruners"]["p"]["curve"] = own_curve
    scheduler = CompressionScheduler.from_dict(data, MLP(), trace=SILENT)
    [entry] = [entry for entry in scheduler.lock().entries if entry.kind == "curve"]
    assert (entry.name, entry.distribution, entry.version, len(entry.sha256)) == ("own_curve", __name__, "", 64)
    lock = Lock(tuple(e for e in scheduler.lock().entries if e.kind != "curve"), "x.json")
    with pytest.raises(ScheduleError, match=f"curve 'own_curve' of {__name__} is not in the lock x.json"):
        CompressionScheduler.from_dict(data, MLP(), trace=SILENT, plugins=load_plugins(Trust(lock=lock)))


@pytest.mark.usefixtures("pieces")
def test_the_trace_says_whose_a_curve_is(tmp_path: Path) -> None:
    run(gradual("late"), trace=Trace(tmp_path, logger=None)).on_train_begin()
    [line] = [line for line in read(tmp_path) if line["event"] == "training begins"]
    assert line["plugins"] == {"prunekit-agp-pruner": "0.1.0", "fake-pieces": "1.5"}
    assert line["named"] == {"pruners.p.curve": "fake-pieces:late"}


def test_the_trace_says_nothing_of_prunekits_own(tmp_path: Path) -> None:
    run(gradual("linear"), trace=Trace(tmp_path, logger=None)).on_train_begin()
    [line] = [line for line in read(tmp_path) if line["event"] == "training begins"]
    assert "named" not in line


# Resuming


@pytest.mark.usefixtures("pieces")
def test_a_state_names_the_curve_and_goes_on_along_it() -> None:
    whole = sparsities(run(gradual("late")))
    first = run(gradual("late"))
    begun = sparsities(first, range(2))
    state = through_a_file(first.state_dict())
    assert "curve: late\n" in state["schedule"]
    second = run(gradual("late"))
    second.load_state_dict(state)
    assert begun + sparsities(second, range(2, 4)) == whole
    with pytest.raises(StateError, match="another schedule"):
        run(gradual("cubic")).load_state_dict(state)


class Own:
    """A granularity whose repr has an address."""

    def groups(self, tensor: torch.Tensor) -> Any:
        return GRANULARITY.of("Rows").groups(tensor)


def test_an_object_without_a_name_is_told_by_its_class() -> None:
    data = Schedule.from_text(ranked("Rows")).to_dict()
    states = []
    for _ in range(2):
        data["pruners"]["p"]["granularity"] = Own()
        states.append(CompressionScheduler.from_dict(data, MLP(), trace=SILENT).state_dict()["schedule"])
    assert states[0] == states[1]
    assert f"granularity: {__name__}.Own\n" in states[0]


# Editors, the command line, the kit


def test_the_schema_lists_prunekits_own_and_installed_names_without_importing_them(pieces: Install) -> None:
    pieces("fake-more", "2.0", {"prunekit.curves": {"linear": "fake_more:late"}}, fake_more=PIECES)
    document = schema_document(Registry())
    assert document["$defs"]["curve"]["enum"] == [
        *(name for name in CURVES if name != "linear"),
        "late",
        *(f"prunekit:{name}" for name in CURVES),
        "fake-pieces:late",
        "fake-more:linear",
    ]
    agp = document["$defs"]["pruner.prunekit-agp-pruner:AutomatedGradualPruner"]
    assert agp["properties"]["curve"]["anyOf"][0] == {"$ref": "#/$defs/curve"}
    assert "every-other" in document["$defs"]["granularity"]["enum"]
    assert {"fake_pieces", "fake_more"} & set(sys.modules) == set()


def rows(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(prunekit, ["plugins", "--json", *arguments])
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_the_list_of_plugins_has_them_in_their_states(pieces: Install) -> None:
    pieces(
        "fake-more",
        "2.0",
        {"prunekit.curves": {"odd": "fake_more:number", "cubic": "fake_more:late"}},
        fake_more=PIECES,
    )
    ours = [row for row in rows() if row["distribution"].startswith("fake-")]
    assert [(row["kind"], row["name"], row["state"]) for row in ours] == [
        ("curve", "cubic", "shadowed"),
        ("curve", "late", "ok"),
        ("curve", "odd", "ok"),
        ("granularity", "every-other", "ok"),
        ("ranking", "signed", "ok"),
    ]
    assert ours[0]["reason"] == "so does prunekit 0.1.0; say fake-more:cubic"
    assert "fake_more" not in sys.modules
    [odd] = [row for row in rows("--check") if row["name"] == "odd"]
    reason = "curve 'odd' of fake-more 2.0 is int 3, not a function (initial, final, fraction) -> value"
    assert (odd["state"], odd["reason"]) == ("broken", reason)


@pytest.mark.usefixtures("pieces")
def test_all_about_one_is_shown(tmp_path: Path) -> None:
    result = CliRunner().invoke(prunekit, ["plugins", "show", "late"])
    assert result.stdout.splitlines() == [
        "curve late: All of the way in the last third.",
        "distribution: fake-pieces 1.5",
        f"location: {tmp_path / 'site' / 'fake_pieces.py'}",
    ]
    assert result.stderr == "fake-pieces has no method card\n"
    shown = CliRunner().invoke(prunekit, ["plugins", "show", "one-shot"])
    assert (shown.stdout.splitlines()[0], shown.stderr) == ("curve one-shot: All of it at the first active epoch.", "")
    assert CliRunner().invoke(prunekit, ["plugins", "show", "laet"]).stderr.endswith("did you mean 'late'?\n")


@pytest.mark.usefixtures("pieces")
def test_the_laws_are_tried_by_name() -> None:
    reports = [check_component(name) for name in ("late", "every-other")]
    assert [(report.component, report.kept) for report in reports] == [
        ("late", ("curve_ends", "curve_range", "pure_function")),
        ("every-other", ("partition", "refusal", "pure_function")),
    ]
    assert check_component("signed", kind="ranking").kept == ("finite_scores", "weight_untouched", "pure_function")
    for component, options, message in (
        ("late", {"sparsity": 1}, "a curve is not made with arguments, got 'sparsity'"),
        (3, {"kind": "curve"}, r"curve 'int' is int 3, not a function \(initial, final, fraction\) -> value"),
    ):
        with pytest.raises(PluginError, match=message):
            check_component(component, **options)


@pytest.mark.usefixtures("pieces")
def test_a_component_keeps_the_laws_along_an_installed_curve() -> None:
    keys = {"initial_sparsity": 0.25, "final_sparsity": 0.5, "curve": "late", "weights": "fc2.weight"}
    assert check_component("AutomatedGradualPruner", laws=["exact_sparsity", "own_state"], **keys).broken == ()


def never(initial: float, final: float, fraction: float) -> float:
    return initial


def test_a_broken_law_is_seen_again_in_three_lines() -> None:
    with pytest.raises(LawsBroken) as error:
        check_component(never, kind="curve")
    [failure] = error.value.report.broken
    assert (failure.law.name, failure.expected, failure.got) == ("curve_ends", "0.5 at 1, from 0.0 on", "0.0")
    assert failure.reproduction == (
        "from prunekit.testing import check_component",
        f"from {__name__} import never",
        "check_component(never, kind='curve', laws=['curve_ends'])",
    )


# A component of a third party takes them too


def test_an_argument_of_the_type_is_a_name_in_any_component(pieces: Install) -> None:
    body = """\
from prunekit.components import Selectors
from prunekit.pruning import RANKING, RankingName, Units, prune_lowest

class Picky:
    def __init__(self, weights: Selectors, by: RankingName | None = None) -> None:
        self.by = by

    def compute_masks(self, parameters, context):
        groups = {name: Units(0).groups(weight) for name, weight in parameters.items()}
        scores = {name: RANKING.of(self.by, "by")(weight, groups[name]) for name, weight in parameters.items()}
        return {name: groups[name].spread(prune_lowest(scores[name], 0.5)) for name in parameters}
"""
    pieces("fake-picky", "1", {"prunekit.pruners": {"Picky": "fake_picky:Picky"}}, fake_picky=body)
    text = """\
version: 1
pruners:
  p: {class: Picky, by: signed, weights: fc1.weight}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
"""
    scheduler = run(text)
    weight = scheduler.model.fc1.weight.detach().clone()
    scheduler.on_epoch_begin(0)
    lowest = weight.sum(1).argsort()[:4].sort().values.tolist()
    assert (~scheduler.masks["fc1.weight"].any(1)).nonzero().flatten().tolist() == lowest
    assert refusal(text.replace("signed", "singed")) == [
        "s.yaml:3:25: pruners.p.by: no ranking is registered as 'singed'; did you mean 'signed'? (fake-pieces 1.5)"
    ]
    built = build(Schedule.from_text(text.replace("by: signed, ", "")), load_plugins().registry)
    assert (built.problems, [used.kind for used in built.used]) == ([], ["pruner"])
