"""A schedule from a file, a dict or Python objects: the same data, and everything wrong with it at its place."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import TRICKY
from hypothesis import given, settings, strategies as st

from prunekit import ComponentSpec, PolicySpec, PrunekitError, Schedule, ScheduleError, Window
from prunekit.schedule.schedule import parse
from prunekit.schedule.yaml_source import Source

EXAMPLES = Path(__file__).parents[2] / "examples" / "schedules"
TEXT = """\
version: 1
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 85e-2
    weights: [conv1.weight, 'fc*']
lr_schedulers:
  lr: {class: 'prunekit-torch-lr:ExponentialLR', gamma: 0.9}
policies:
  - pruner:
      instance_name: agp
      args: {mask_on_forward_only: true}
    starting_epoch: 0
    ending_epoch: 38
    frequency: 2
  - lr_scheduler: {instance_name: lr}
    epochs: [24, 25, 30]
"""
DATA: dict[str, Any] = {
    "policies": [
        {
            "frequency": 2,
            "ending_epoch": 38,
            "starting_epoch": 0,
            "pruner": {"args": {"mask_on_forward_only": True}, "instance_name": "agp"},
        },
        {"epochs": (24, 25, 30), "lr_scheduler": {"instance_name": "lr"}},
    ],
    "lr_schedulers": {"lr": {"class": "prunekit-torch-lr:ExponentialLR", "gamma": 0.9}},
    "pruners": {
        "agp": {
            "weights": ("conv1.weight", "fc*"),
            "final_sparsity": 0.85,
            "initial_sparsity": 0.05,
            "class": "AutomatedGradualPruner",
        }
    },
}
PYTHON = Schedule(
    components=[
        ComponentSpec("lr_scheduler", "lr", "prunekit-torch-lr:ExponentialLR", {"gamma": 0.9}),
        ComponentSpec(
            "pruner",
            "agp",
            "AutomatedGradualPruner",
            {"initial_sparsity": 0.05, "final_sparsity": 0.85, "weights": ("conv1.weight", "fc*")},
        ),
    ],
    policies=[
        PolicySpec("pruner", "agp", Window(0, 38, 2), {"mask_on_forward_only": True}),
        PolicySpec("lr_scheduler", "lr", Window(epochs=[24, 25, 30])),
    ],
)


def refusal(text: str) -> list[str]:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_text(text, "s.yaml")
    return str(caught.value).splitlines()


# Three ways in, one schedule


def test_file_dict_and_python_objects_give_equal_schedules(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(TEXT)
    assert Schedule.from_yaml(file) == Schedule.from_text(TEXT) == Schedule.from_dict(DATA) == PYTHON


def test_every_difference_makes_schedules_unequal() -> None:
    schedule = Schedule.from_text(TEXT)
    for old, new in [
        *[("agp", "agq"), ("0.05", "0.06"), ("fc*", "fc"), ("true", "false"), ("38", "39"), ("cy: 2", "cy: 1")],
        *[("prunekit-torch-lr:", ""), ("30]", "31]"), ("24, 25, 30", "24, 30"), ("conv1.weight, 'fc*'", "'fc*'")],
    ]:
        assert Schedule.from_text(TEXT.replace(old, new)) != schedule, (old, new)
    assert schedule != TEXT
    assert schedule.components[0] != schedule.policies[0]


def test_a_class_itself_stands_for_its_name() -> None:
    class Mine:
        pass

    by_class, by_name = ComponentSpec("pruner", "p", Mine), ComponentSpec("pruner", "p", "Mine")
    assert (by_class == by_name, by_class.class_name, by_class.section) == (True, "Mine", "pruners")
    assert Schedule([by_class], []).to_dict() == {"version": 1, "pruners": {"p": {"class": "Mine"}}, "policies": []}


def test_the_dict_is_not_changed_and_serves_twice() -> None:
    """The reference pops `class` out of it."""
    given = copy.deepcopy(DATA)
    first = Schedule.from_dict(given)
    assert given == DATA
    assert Schedule.from_dict(given) == first
    given["pruners"]["agp"]["weights"] = ["other"]
    given["policies"][0]["pruner"]["args"]["mask_on_forward_only"] = False
    assert first == PYTHON


def test_a_schedule_gives_a_dict_away_and_keeps_its_own() -> None:
    schedule = Schedule.from_text(TEXT)
    data = schedule.to_dict()
    data["pruners"]["agp"]["weights"].append("more")
    data["policies"][1]["epochs"].append(99)
    data["policies"][0]["pruner"]["args"].clear()
    assert schedule == PYTHON


def test_components_stand_in_the_order_of_the_sections_and_of_their_names_in_the_file() -> None:
    text = (
        "extensions: {e: {class: E}}\npruners: {b: {class: B}, a: {class: A}}\nquantizers: {q: {class: Q}}\npolicies:"
    )
    names = [spec.name for spec in Schedule.from_text(text).components]
    assert names == ["b", "a", "q", "e"]


def test_the_yaml_is_written_in_the_order_of_the_language() -> None:
    assert (
        Schedule.from_dict(DATA).to_yaml()
        == """\
version: 1
pruners:
  agp:
    class: AutomatedGradualPruner
    weights:
    - conv1.weight
    - fc*
    final_sparsity: 0.85
    initial_sparsity: 0.05
lr_schedulers:
  lr:
    class: prunekit-torch-lr:ExponentialLR
    gamma: 0.9
policies:
- pruner:
    instance_name: agp
    args:
      mask_on_forward_only: true
  starting_epoch: 0
  ending_epoch: 38
  frequency: 2
- lr_scheduler:
    instance_name: lr
  epochs:
  - 24
  - 25
  - 30
"""
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_written_back_and_read_again_equal(path: Path) -> None:
    """Peer failure 24."""
    schedule = Schedule.from_yaml(path)
    again = Schedule.from_text(schedule.to_yaml())
    assert again == schedule
    assert again.to_yaml() == schedule.to_yaml()


words = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
arguments = st.dictionaries(words.filter(lambda word: word != "class"), values, max_size=4)
numbers, lengths, units = st.integers(0, 10**6), st.integers(1, 10**6), st.sampled_from(["epoch", "step"])
several = st.lists(numbers, min_size=1, max_size=5, unique=True).map(sorted)
listed = st.builds(lambda unit, some: Window(**{f"{unit}s": some}), units, several)
ranges = st.builds(
    lambda unit, start, length, frequency: Window(
        **{f"starting_{unit}": start, f"ending_{unit}": start + length}, frequency=frequency
    ),
    units,
    numbers,
    lengths,
    lengths,
)
KINDS = ("pruner", "regularizer", "quantizer", "lr_scheduler", "extension")


@st.composite
def schedules(draw: Any) -> Schedule:
    """Any schedule: instances of odd names with nested arguments, and policies over some of them."""
    names = st.tuples(st.sampled_from(KINDS), words.filter(bool))
    components = [
        ComponentSpec(kind, name, draw(words.filter(bool)), draw(arguments))
        for kind, name in draw(st.lists(names, max_size=4, unique=True))
    ]
    policies = [
        PolicySpec(
            spec.kind,
            spec.name,
            draw(listed | ranges),
            draw(arguments) if spec.kind in ("pruner", "regularizer") else {},
        )
        for spec in (draw(st.lists(st.sampled_from(components), max_size=4)) if components else [])
    ]
    return Schedule(components, policies)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(schedule=schedules())
def test_what_is_written_is_read_again_equal(schedule: Schedule) -> None:
    """Peer failure 24, with names that look like numbers, `on`, `null`, and arguments of any shape."""
    written = schedule.to_yaml()
    again = Schedule.from_text(written)
    assert again == schedule
    assert repr(again.to_dict()) == repr(schedule.to_dict())
    assert again.to_yaml() == written
    assert Schedule.from_dict(schedule.to_dict()) == schedule


# What is allowed


def test_sections_may_be_present_and_empty() -> None:
    text = "version: 1\npruners:\nregularizers: {}\nquantizers: ~\nlr_schedulers:\nextensions: null\npolicies: []\n"
    assert Schedule.from_text(text) == Schedule((), ())


def test_what_is_probably_not_meant_is_a_warning_with_its_place() -> None:
    text = (
        "pruners:\n  used: {class: A}\n  not: {class: B}\npolicies:\n  - {pruner: {instance_name: used}, epochs: [0]}\n"
    )
    warned = [str(warning) for warning in Schedule.from_text(text, "s.yaml").warnings()]
    assert warned == [
        "s.yaml:3:8: pruners.not: no policy uses the pruner 'not'",
        "s.yaml:1:1: no version is given; 1 is assumed",
    ]
    assert [str(w) for w in Schedule.from_text("version: 1\npolicies:\n", "s.yaml").warnings()] == [
        "s.yaml:2:10: policies: no policy: this schedule does nothing"
    ]
    assert [str(w) for w in PYTHON.warnings()] == []


@pytest.mark.parametrize(
    "policies",
    [
        "[{pruner: {instance_name: p}, epochs: 3}]",
        "[{prunner: {instance_name: p}, epochs: [3]}]",
        "[{pruner: {instance_nam: p}, epochs: [3]}]",
        "[{pruner: {instance_name: pp}, epochs: [3]}]",
        "[3]",
        "{pruner: {instance_name: p}, epochs: [3]}",
    ],
)
def test_a_policy_that_is_wrong_is_no_reason_to_say_that_there_is_none(policies: str) -> None:
    schedule = parse(Source.from_text(f"version: 1\npruners: {{p: {{class: A}}}}\npolicies: {policies}\n"))
    assert schedule.problems() != []
    assert schedule.warnings() == []


def test_frequency_is_one_and_args_may_be_empty() -> None:
    base = (
        "pruners: {p: {class: A}}\npolicies:\n  - {pruner: {instance_name: p%s}, starting_epoch: 0, ending_epoch: 3}\n"
    )
    expected = (PolicySpec("pruner", "p", Window(0, 3, 1)),)
    assert Schedule.from_text(base % "").policies == expected
    assert Schedule.from_text(base % ", args: ").policies == expected
    assert Schedule.from_text(base % ", args: {}").policies == expected


def test_a_frequency_longer_than_the_window_means_one_activation() -> None:
    text = TEXT.replace("frequency: 2", "frequency: 100")
    assert list(Schedule.from_text(text).policies[0].window.active) == [0]


# Refused: every structural error, word for word

REFUSED = """\
=== nothing
# only a comment
--->
1:1: a schedule must be a mapping, got nothing
=== a list
- pruners
--->
1:1: a schedule must be a mapping, got a list
=== a text
hello
--->
1:1: a schedule must be a mapping, got the text 'hello'
=== version 2
version: 2
policies: []
--->
1:10: version: this prunekit reads version 1 of the schedule language, got 2
=== version '1'
version: '1'
policies: []
--->
1:10: version: this prunekit reads version 1 of the schedule language, got '1'
=== version true
version: true
policies: []
--->
1:10: version: this prunekit reads version 1 of the schedule language, got True
=== version 1.0
version: 1.0
policies: []
--->
1:10: version: this prunekit reads version 1 of the schedule language, got 1.0
=== version empty
policies: []
version:
--->
2:9: version: this prunekit reads version 1 of the schedule language, got None
=== misspelt section
prunners:
  p: {class: A}
policies: []
--->
1:1: prunners: unknown key 'prunners'; did you mean 'pruners'?
=== kind for section
pruner:
  p: {class: A}
policy: []
--->
1:1: pruner: unknown key 'pruner'; did you mean 'pruners'?
1:1: 'policies' is missing: a schedule without policies never does anything
3:1: policy: unknown key 'policy'; did you mean 'policies'?
=== instance not indented
pruners:
p:
  class: A
policies: []
--->
2:1: p: unknown key 'p'; known are 'extensions', 'lr_schedulers', 'policies', 'pruners', 'quantizers', 'regularizers', 'version'
=== policies indented
pruners:
  p: {class: A}
  policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
1:1: 'policies' is missing: a schedule without policies never does anything
4:3: pruners.policies: the pruner 'policies' must be a mapping, got a list
=== no policies
pruners:
  p: {class: A}
--->
1:1: 'policies' is missing: a schedule without policies never does anything
=== policies a mapping
pruners:
  p: {class: A}
policies:
  pruner: {instance_name: p}
  epochs: [0]
--->
4:3: policies: policies must be a list, got a mapping
=== section a list
pruners: [p]
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
1:10: pruners: the section pruners must be a mapping, got a list
=== section a text
pruners: p
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
1:10: pruners: the section pruners must be a mapping, got the text 'p'
=== section a boolean
pruners: false
policies: []
--->
1:10: pruners: the section pruners must be a mapping, got False
=== instance a text
pruners:
  p: A
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:6: pruners.p: the pruner 'p' must be a mapping, got the text 'A'
=== instance empty
pruners:
  p:
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:5: pruners.p: the pruner 'p' must be a mapping, got nothing
=== class missing
pruners:
  p: {}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:6: pruners.p: the pruner 'p' has no 'class'
=== class misspelt
pruners:
  p: {clas: A}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:6: pruners.p: the pruner 'p' has no 'class'; is it 'clas'?
=== class empty
pruners:
  p: {class: }
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:13: pruners.p.class: must be the name of a pruner class, got None
=== class a number
pruners:
  p: {class: 3}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:14: pruners.p.class: must be the name of a pruner class, got 3
=== class endless
pruners:
  p: {class: [x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x]}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
--->
2:14: pruners.p.class: must be the name of a pruner class, got ['x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', '...
=== policy a text
pruners:
  p: {class: A}
policies:
  - p
--->
4:5: policies[0]: a policy must be a mapping, got the text 'p'
=== policy empty
pruners:
  p: {class: A}
policies:
  -
--->
4:4: policies[0]: a policy must be a mapping, got nothing
=== policy without kind
pruners:
  p: {class: A}
policies:
  - epochs: [0]
--->
4:5: policies[0]: a policy names exactly one of pruner, regularizer, quantizer, lr_scheduler, extension; got none
=== two kinds in one policy
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    extension: {instance_name: p}
    epochs: [0]
--->
4:5: policies[0]: a policy names exactly one of pruner, regularizer, quantizer, lr_scheduler, extension; got pruner and extension
=== misspelt kind
pruners:
  p: {class: A}
policies:
  - prunner: {instance_name: p}
    epochs: [0]
--->
4:5: policies[0].prunner: unknown key 'prunner'; did you mean 'pruner'?
=== section for kind
pruners:
  p: {class: A}
policies:
  - pruners: {instance_name: p}
    epochs: [0]
--->
4:5: policies[0].pruners: unknown key 'pruners'; did you mean 'pruner'?
=== policy's component not indented
pruners:
  p: {class: A}
policies:
  - pruner:
    instance_name: p
    args: {keep_mask: true}
    epochs: [0]
--->
4:12: policies[0].pruner: the policy's pruner must be a mapping, got nothing
5:5: policies[0].instance_name: unknown key 'instance_name'; it belongs one level deeper, below 'pruner'
6:5: policies[0].args: unknown key 'args'; it belongs one level deeper, below 'pruner'
=== window indented
pruners:
  p: {class: A}
policies:
  - pruner:
      instance_name: p
      starting_epoch: 0
      ending_epoch: 3
--->
4:5: policies[0]: 'starting_epoch' and 'ending_epoch' missing; a policy needs both, or 'epochs'
6:7: policies[0].pruner.starting_epoch: unknown key 'starting_epoch'; it belongs one level up, beside 'pruner'
7:7: policies[0].pruner.ending_epoch: unknown key 'ending_epoch'; it belongs one level up, beside 'pruner'
=== args outside args
pruners:
  p: {class: A}
policies:
  - pruner:
      instance_name: p
      keep_mask: true
    epochs: [0]
--->
6:7: policies[0].pruner.keep_mask: unknown key 'keep_mask'; known are 'args', 'instance_name'
=== policy's component a text
pruners:
  p: {class: A}
policies:
  - pruner: p
    epochs: [0]
--->
4:13: policies[0].pruner: the policy's pruner must be a mapping, got the text 'p'
=== instance_name missing
pruners:
  p: {class: A}
policies:
  - pruner: {args: {}}
    epochs: [0]
--->
4:13: policies[0].pruner.instance_name: instance_name is missing
=== instance_name misspelt
pruners:
  p: {class: A}
policies:
  - pruner: {instance: p}
    epochs: [0]
--->
4:13: policies[0].pruner.instance_name: instance_name is missing
4:14: policies[0].pruner.instance: unknown key 'instance'; did you mean 'instance_name'?
=== instance_name a number
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: 3}
    epochs: [0]
--->
4:29: policies[0].pruner.instance_name: instance_name must be a string, got 3
=== instance_name empty
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: ''}
    epochs: [0]
--->
4:29: policies[0].pruner.instance_name: instance_name must be a string, got ''
=== unknown instance
pruners:
  first: {class: A}
  second: {class: A}
policies:
  - {pruner: {instance_name: frist}, epochs: [0]}
--->
5:30: policies[0].pruner.instance_name: no pruner is called 'frist'; did you mean 'first'?
=== instance of another kind
pruners:
  p: {class: A}
policies:
  - {regularizer: {instance_name: p}, epochs: [0]}
--->
4:35: policies[0].regularizer.instance_name: no regularizer is called 'p'; the section regularizers is empty
=== args a list
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p, args: []}, epochs: [0]}
--->
4:39: policies[0].pruner.args: args must be a mapping, got a list
=== args a number
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p, args: 0}, epochs: [0]}
--->
4:39: policies[0].pruner.args: args must be a mapping, got 0
=== args on the policy of an extension
extensions:
  e: {class: E}
policies:
  - extension: {instance_name: e, args: {keep_mask: true}}
    epochs: [0]
--->
4:35: policies[0].extension.args: a policy of kind extension takes no args
=== window missing
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
--->
4:5: policies[0]: 'starting_epoch' and 'ending_epoch' missing; a policy needs both, or 'epochs'
=== window misspelt
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 0
    ending_epohc: 3
    frequncy: 2
--->
4:5: policies[0]: 'ending_epoch' missing; a policy needs both, or 'epochs'
6:5: policies[0].ending_epohc: unknown key 'ending_epohc'; did you mean 'ending_epoch'?
7:5: policies[0].frequncy: unknown key 'frequncy'; did you mean 'frequency'?
=== epochs with starting_epoch
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 0
    epochs: [0]
    frequency: 1
--->
6:5: policies[0].epochs: give either 'epochs' or 'starting_epoch', 'frequency', not both
=== window of other types
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: '0'
    ending_epoch: 3.0
    frequency: true
--->
5:21: policies[0].starting_epoch: must be an integer, got '0'
6:19: policies[0].ending_epoch: must be an integer, got 3.0
7:16: policies[0].frequency: must be an integer, got True
=== window backwards
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 5
    ending_epoch: 3
    frequency: -2
--->
4:5: policies[0]: 0 <= starting_epoch < ending_epoch must hold, got 5 and 3
7:16: policies[0].frequency: must be at least 1, got -2
=== window empty
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 3
    ending_epoch: 3
--->
4:5: policies[0]: 0 <= starting_epoch < ending_epoch must hold, got 3 and 3
=== window negative
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: -1
    ending_epoch: 3
--->
4:5: policies[0]: 0 <= starting_epoch < ending_epoch must hold, got -1 and 3
=== frequency zero
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 0
--->
7:16: policies[0].frequency: must be at least 1, got 0
=== epochs a number
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: 3}
--->
4:42: policies[0].epochs: must be a list of integers, got 3
=== epochs empty
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: }
--->
4:41: policies[0].epochs: must be a list of integers, got None
=== epochs of other types
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [0, 1.0, true]}
--->
4:42: policies[0].epochs: must be a list of integers, got [0, 1.0, True]
=== epochs none
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: []}
--->
4:42: policies[0].epochs: epochs must be ascending, not negative and at least one, got []
=== epochs descending
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [1, 3, 2]}
--->
4:42: policies[0].epochs: epochs must be ascending, not negative and at least one, got [1, 3, 2]
=== epochs twice
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [1, 1]}
--->
4:42: policies[0].epochs: epochs must be ascending, not negative and at least one, got [1, 1]
=== epochs negative
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [-1]}
--->
4:42: policies[0].epochs: epochs must be ascending, not negative and at least one, got [-1]
=== steps with epochs
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_epoch: 0
    ending_epoch: 3
    steps: [0]
--->
7:5: policies[0].steps: a window is in epochs or in steps, and 'starting_epoch' is there already; give one of the two forms
=== an epoch among steps
pruners:
  p: {class: A}
policies:
  - pruner: {instance_name: p}
    starting_step: 0
    ending_epoch: 3
    frequency: 2
--->
6:5: policies[0].ending_epoch: a window is in epochs or in steps, and 'starting_step' is there already; give one of the two forms
=== steps with starting_step
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, starting_step: 0, frequency: 2, steps: [0]}
--->
4:66: policies[0].steps: give either 'steps' or 'starting_step', 'frequency', not both
=== steps of other types
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, starting_step: 1e3, ending_step: true, frequency: 0}
  - {pruner: {instance_name: p}, steps: 500}
--->
4:49: policies[0].starting_step: must be an integer, got 1000.0
4:67: policies[0].ending_step: must be an integer, got True
5:41: policies[1].steps: must be a list of integers, got 500
=== steps that are none
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, starting_step: 5}
  - {pruner: {instance_name: p}, starting_step: 5, ending_step: 5, frequency: 0}
  - {pruner: {instance_name: p}, steps: [2, 1]}
  - {pruner: {instance_name: p, starting_step: 0}, ending_step: 3}
--->
4:5: policies[0]: 'ending_step' missing; a policy needs both, or 'steps'
5:5: policies[1]: 0 <= starting_step < ending_step must hold, got 5 and 5
5:79: policies[1].frequency: must be at least 1, got 0
6:41: policies[2].steps: steps must be ascending, not negative and at least one, got [2, 1]
7:5: policies[3]: 'starting_step' missing; a policy needs both, or 'steps'
7:33: policies[3].pruner.starting_step: unknown key 'starting_step'; it belongs one level up, beside 'pruner'
=== key twice
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
pruners:
  q: {class: B}
--->
5:1: pruners: the key 'pruners' stands twice, with different values; the first is on line 1
=== not YAML
pruners:
  p: {class: A}
policies:
  - {pruner: {instance_name: p}, epochs: [0}
--->
4:44: not YAML: while parsing a flow sequence: expected ',' or ']', but got '}'
=== several at once
version: 3
prunners: {}
pruners:
  p: {clas: A}
policies:
  - pruner: {instance_name: p}
    epochs: []
  - 3
--->
1:10: version: this prunekit reads version 1 of the schedule language, got 3
2:1: prunners: unknown key 'prunners'; did you mean 'pruners'?
4:6: pruners.p: the pruner 'p' has no 'class'; is it 'clas'?
7:13: policies[0].epochs: epochs must be ascending, not negative and at least one, got []
8:5: policies[1]: a policy must be a mapping, got 3
"""  # noqa: E501


@pytest.mark.parametrize("case", REFUSED.split("=== ")[1:], ids=lambda case: case.splitlines()[0])
def test_an_error_says_where_and_what_and_what_would_be_right(case: str) -> None:
    """Peer failures 9 and 10: no misspelt or mis-nested word is passed over."""
    text, expected = case.partition("\n")[2].split("--->\n")
    assert refusal(text) == [f"s.yaml:{line}" for line in expected.splitlines()]


def test_an_error_keeps_its_problems_as_data() -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_text("pruners: []\npolicies: []\n", "s.yaml")
    [problem] = caught.value.problems
    assert (problem.position.file, problem.position.line, problem.position.column) == ("s.yaml", 1, 10)
    assert (problem.path, problem.message) == ("pruners", "the section pruners must be a mapping, got a list")
    assert isinstance(caught.value, PrunekitError)


def test_a_dict_is_refused_in_the_same_words_without_lines() -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_dict({"version": 1, "pruners": {"p": {"clas": "A"}}, "policies": [{"pruner": {}}]})
    assert str(caught.value).splitlines() == [
        "<dict>: pruners.p: the pruner 'p' has no 'class'; is it 'clas'?",
        "<dict>: policies[0]: 'starting_epoch' and 'ending_epoch' missing; a policy needs both, or 'epochs'",
        "<dict>: policies[0].pruner.instance_name: instance_name is missing",
    ]


def test_python_objects_are_checked_too() -> None:
    with pytest.raises(PrunekitError, match=r"^kind: there is no kind 'prunner'; did you mean 'pruner'\?$"):
        ComponentSpec("prunner", "p", "A")  # type: ignore[arg-type]
    with pytest.raises(PrunekitError, match=r"^kind: there is no kind 'pruners'; did you mean 'pruner'\?$"):
        PolicySpec("pruners", "p", Window(0, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^0 <= starting_epoch < ending_epoch must hold, got 3 and 2$"):
        Window(3, 2)
    twice = [ComponentSpec("pruner", "p", "A"), ComponentSpec("pruner", "p", "B"), ComponentSpec("extension", "p", "C")]
    schedule = Schedule(twice, [PolicySpec("pruner", "q", Window(0, 1))])
    assert [str(problem) for problem in schedule.problems()] == [
        "<python>: pruners.p: two components of kind pruner are called 'p'",
        "<python>: policies[0].pruner.instance_name: no pruner is called 'q'; known are 'p'",
    ]


def test_a_file_that_can_not_be_read_is_no_schedule_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Schedule.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(IsADirectoryError):
        Schedule.from_yaml(tmp_path)


# Scaled to runs of another length


@pytest.mark.parametrize(
    ("window", "factor", "expected"),
    [
        (Window(0, 30, 2), 0.1, [0, 1, 2]),
        (Window(30, 50, 2), 0.1, [3, 4]),
        (Window(4, 16, 4), 0.5, [2, 4, 6]),
        (Window(24, 25), 0.1, [2]),
        (Window(1, 3), 2, [2, 4]),
        (Window(epochs=[0, 1, 30]), 0.1, [0, 3]),
    ],
)
def test_a_scaled_window_has_its_epochs_times_the_factor_rounded_down(window, factor, expected):
    assert list(window.scaled(factor).active) == expected


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50), st.sampled_from([0.1, 0.25, 0.5, 1, 3]))
def test_windows_that_follow_each_other_still_do_when_they_are_scaled(start, first, second, factor):
    one, other = Window(start, start + first), Window(start + first, start + first + second)
    if math.floor((start + first) * factor) > math.floor(start * factor):
        assert set(one.scaled(factor).active).isdisjoint(other.scaled(factor).active)
