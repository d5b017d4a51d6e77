"""Whatever a schedule's file holds: it is accepted, or refused with a position for every problem."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings, strategies as st

from examples.models.alexnet import AlexNet
from prunekit import CompressionScheduler, Schedule, ScheduleError, Trace
from prunekit.plugins.loading import load_plugins
from prunekit.schedule.yaml_source import Source, dump

EXAMPLES = Path(__file__).parents[2] / "examples" / "schedules"
PRUNERS = """\
version: 1
pruners:
  agp: &agp
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: .85
    weights: [features.0.weight, module.features.3.weight]
  agp2:
    <<: *agp
    weights: ['features.[68].weight', 're:features\\.10\\..*']
  level: {class: prunekit-level-pruner:SparsityLevelParameterPruner, levels: {classifier.1.weight: 0.5, '*': 0}}
  magnitude:
    class: MagnitudeParameterPruner
    thresholds:
      classifier.4.weight: 1e-4   # a number
policies:
  - pruner: {instance_name: agp}
    starting_epoch: 0
    ending_epoch: 8
    frequency: 2
  - pruner:
      instance_name: agp2
      args:
        mini_batch_pruning_frequency: 3
        mask_on_forward_only: true
        mask_gradients: true
    epochs: [1, 3, 7]
  - pruner: {instance_name: agp2}
    starting_step: 900
    ending_step: 2000
    frequency: 50
  - pruner: {instance_name: level, args: {levels: {classifier.1.weight: 0.25}, keep_mask: true}}
    epochs: [0]
  - pruner: {instance_name: magnitude}
    starting_epoch: 2
    ending_epoch: 3
"""
TERMS = """\
regularizers:
  l1:
    class: L1Regularizer
    reg_regims:
      "classifier.6.weight": 2e-6
  group:
    class: GroupLassoRegularizer
    reg_regims: {features.0.weight: [1.2e-5, 3D]}
lr_schedulers:
  lr: {class: MultiStepLR, milestones: [3, 5], gamma: 0.1}
extensions:
policies:
  - &l1
    regularizer: {instance_name: l1}
    starting_epoch: 0
    ending_epoch: 38
  - <<: *l1
    regularizer:
      instance_name: group
      args: {}
  - lr_scheduler: {instance_name: lr}
    starting_epoch: 0
    ending_epoch: 38
"""
RATES = """\
lr_schedulers:
  a: {class: StepLR, step_size: 2}
  b: {class: ReduceLROnPlateau, mode: min, patience: 2, min_lr: [1e-4]}
  c: {class: CyclicLR, base_lr: 0.001, max_lr: 0.1}
  d: {class: OneCycleLR, max_lr: 0.1, total_steps: 50}
  e: {class: MultiStepMultiGammaLR, milestones: [1, 2], gammas: [0.1, 0.5]}
  f: {class: PolynomialLR, T_max: 10, power: 0.5}
policies:
  - {lr_scheduler: {instance_name: a}, epochs: [0]}
  - {lr_scheduler: {instance_name: b}, epochs: [1]}
  - {lr_scheduler: {instance_name: c}, epochs: [2]}
  - {lr_scheduler: {instance_name: d}, epochs: [3]}
  - {lr_scheduler: {instance_name: e}, epochs: [4]}
  - {lr_scheduler: {instance_name: f}, epochs: [5]}
"""
GOOD = [PRUNERS, TERMS, RATES]
SEEDS = [*GOOD, *GOOD, *(path.read_text("utf-8") for path in sorted(EXAMPLES.glob("*.yaml")))]

WORDS = sorted(set(re.findall(r"[A-Za-z_]{3,}", " ".join(SEEDS))))
ODD_SCALARS = [
    *("", "~", "null", "true", "on", "0", "-1", "1", "8.0", "1e-4", "1e400", "-.inf", ".nan", "1:30", "0o17", "0x1F"),
    *("2020-01-01", "9" * 30, "9" * 4000, "1e-400", "''", "' '", "'1'", "'*'", "'re:('", "'re:a{99999999999}'", "'['"),
    *("[]", "{}", "[1]", "[[]]", "{a: 1}", "[a, a]", "{1: 2}", "module", "<<", "=", "'\\ud800'", '"\\ud800"', '"\\0"'),
    *("!!int x", "!!float 1", "!!str 1", "!!bool maybe", "!!map [1]", "!!python/name:os.system", "!x 1", "&a [*a]"),
    *("*agp", "*nobody", "&agp 1", "{<<: *agp}", "{<<: 1}", "? [1]", "|", ">-", "[" * 200, "{a: " * 150, "3D", "'#'"),
]
ODD_PIECES = [
    *(
        "\t",
        " ",
        "\n",
        "\r",
        "  ",
        "\n\n",
        ": ",
        ":",
        "- ",
        ", ",
        "#",
        "&a ",
        "*a",
        "!",
        "!!python/object/apply:os.system ",
    ),
    *(
        "'",
        '"',
        "[",
        "]",
        "{",
        "}",
        "|",
        ">",
        "%",
        "@",
        "`",
        "?",
        "? ",
        "---\n",
        "...\n",
        "<<: *agp",
        "\\",
        "\x00",
        "\x07",
    ),
    *("\x1b[31m", "\x7f", "\x85", "\xa0", "é", "Ж", "\u2028", "\ufeff", "\ufffe", "😀", "\ud800", "%YAML 1.1\n---\n"),
]
ODD_DATA: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    1e300,
    float("nan"),
    "",
    "x",
    [],
    {},
    [None],
    {"": None},
    [[[]]],
]

Draw = Callable[[st.SearchStrategy[Any]], Any]


def nodes(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def parent(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data


def change_data(draw: Draw, text: str) -> str:
    """Delete, copy, swap, rename or replace a node."""
    data = Source.from_text(text).data
    paths = list(nodes(data))
    if not paths:
        return text
    path, other = draw(st.sampled_from(paths)), draw(st.sampled_from(paths))
    home, away = parent(data, path), parent(data, other)
    match draw(st.sampled_from(["delete", "copy", "swap", "rename", "replace"])):
        case "delete":
            del home[path[-1]]
        case "copy" if isinstance(away, list):
            away.append(Source.from_data(home[path[-1]]).data)
        case "copy":
            away[draw(st.sampled_from(WORDS))] = Source.from_data(home[path[-1]]).data
        case "swap" if other[: len(path)] != path and path[: len(other)] != other:
            home[path[-1]], away[other[-1]] = away[other[-1]], home[path[-1]]
        case "rename" if isinstance(home, dict):
            home[draw(spellings(str(path[-1])))] = home.pop(path[-1])
        case _:
            home[path[-1]] = draw(st.sampled_from(ODD_DATA))
    return dump(data)


@st.composite
def spellings(draw: Draw, word: str) -> str:
    """Another word, or this one misspelt."""
    at = draw(st.integers(0, len(word)))
    wrong = [
        word[:at] + word[at + 1 :],
        word[:at] + word[at - 1 : at] + word[at:],
        word.upper(),
        word + "s",
        f" {word}",
    ]
    return draw(st.sampled_from([*wrong, draw(st.sampled_from(WORDS)), draw(st.text(max_size=3))]))


def change_word(draw: Draw, text: str) -> str:
    found = list(re.finditer(r"[A-Za-z_]{2,}", text))
    return replaced(draw, text, found, spellings(draw(st.sampled_from(found)).group()) if found else st.just(""))


def change_scalar(draw: Draw, text: str) -> str:
    found = list(re.finditer(r"(?<=: )[^\s,{}\[\]&][^\n,}\]]*|(?<=- )[^\n]+|(?<=\[)[^\n,\]]+|[\d.]+", text))
    return replaced(draw, text, found, st.sampled_from(ODD_SCALARS))


def replaced(draw: Draw, text: str, found: list[re.Match[str]], by: st.SearchStrategy[str]) -> str:
    if not found:
        return text
    place = draw(st.sampled_from(found))
    return text[: place.start()] + draw(by) + text[place.end() :]


def change_lines(draw: Draw, text: str) -> str:
    lines = text.split("\n")
    one, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["delete", "copy", "swap", "indent", "outdent", "tab", "cut"])):
        case "delete":
            del lines[one]
        case "copy":
            lines.insert(other, lines[one])
        case "swap":
            lines[one], lines[other] = lines[other], lines[one]
        case "indent":
            lines[one] = " " * draw(st.integers(1, 5)) + lines[one]
        case "outdent":
            lines[one] = lines[one][draw(st.integers(1, 5)) :]
        case "tab":
            lines[one] = "\t" + lines[one].lstrip()
        case _:
            lines = lines[: one + 1]
    return "\n".join(lines)


def change_characters(draw: Draw, text: str) -> str:
    start = draw(st.integers(0, len(text)))
    end = start + draw(st.sampled_from([0, 0, 0, 1, 1, 2, 9]))
    return text[:start] + draw(st.sampled_from(["", *ODD_PIECES]) | st.text(max_size=3)) + text[end:]


def change_number(draw: Draw, text: str) -> str:
    found = list(re.finditer(r"(?<![\w.])[\d.]+(e-?\d+)?", text))
    return replaced(draw, text, found, st.sampled_from(["0", "0.25", "0.5", "1", "1.0", "2", "7", "40", "3.5e-3"]))


CHANGES = [change_data, change_number, change_word, change_scalar, change_lines, change_characters]


@st.composite
def schedules(draw: Draw) -> str:
    """A real schedule after one to four changes."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 4]))):
        change = draw(st.sampled_from(CHANGES))
        text = change(draw, text) if change is not change_data or Source.from_text(text).data else text
    return text


MODEL = AlexNet()
PLUGINS = load_plugins()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the schedules go; what is installed is not looked up again for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunekit.scheduler.load_plugins", lambda: PLUGINS)
        yield tmp_path_factory.mktemp("fuzz") / "schedule.yaml"


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=schedules(), epochs=st.sampled_from([None, 200, 5]))
def test_a_changed_schedule_is_accepted_or_refused_with_positions(text: str, epochs: int | None, file: Path) -> None:
    """Peer failures 8, 9, 10, 22: no silent empty schedule, no crash, no error without a place."""
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    options = {"epochs": epochs, "plugins": PLUGINS, "trace": Trace(level="error")}
    try:
        schedule = CompressionScheduler.from_yaml(file, MODEL, optimizer, **options).schedule
    except ScheduleError as error:
        event("refused")
        must_have_positions(error, text)
    else:
        event("accepted")
        assert dump(Schedule.from_text(schedule.to_yaml()).to_dict()) == schedule.to_yaml()
        given_policies = schedule.source.data["policies"] or []
        assert len(schedule.policies) == len(given_policies)


def must_have_positions(error: ScheduleError, text: str) -> None:
    lines = len(re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text))
    places = [(problem.position.line or 0, problem.position.column or 0) for problem in error.problems]
    assert places == sorted(places)
    assert places
    assert [place for place in places if not (1 <= place[0] <= lines and place[1] >= 1)] == []


keys = st.sampled_from([*WORDS, "policies", "pruners", "pruner", "class", "instance_name", "epochs", "args", "version"])
odd = st.sampled_from(
    [*ODD_DATA, b"", {1, 2}, object(), (1, 2), {("a", 1): 2}, {1: {None: True}}, 3 + 4j, Path(), print]
)
data = st.recursive(
    odd | keys | st.integers(-2, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=6),
)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    given_data=st.fixed_dictionaries({"policies": st.lists(data, max_size=3), "pruners": data, "regularizers": data})
)
def test_any_dict_is_accepted_or_refused(given_data: Any) -> None:
    options = {"plugins": PLUGINS, "trace": Trace(level="error")}
    before = repr(given_data)
    with contextlib.suppress(ScheduleError):
        CompressionScheduler.from_dict(given_data, MODEL, torch.optim.SGD(MODEL.parameters(), lr=0.1), **options)
    assert repr(given_data) == before


@pytest.mark.parametrize("text", GOOD)
def test_the_schedules_that_are_changed_are_accepted_as_they_are(text: str) -> None:
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    schedule = Schedule.from_text(text)
    scheduler = CompressionScheduler(schedule, MODEL, optimizer, plugins=PLUGINS, trace=Trace(level="error"))
    assert (schedule.problems(), scheduler.schedule) == ([], schedule)
