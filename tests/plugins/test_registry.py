"""Which distribution offers which class: by name, lazily, and never by path order."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest
from fake_sites import PRUNER, Install, fake_site, refusal, run, schedule

from prunekit import PluginError
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.registry import Registry


def test_a_class_is_found_by_name_and_by_distribution_and_name(install: Install) -> None:
    install("Fake_Pruners", "1.2", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    found = [Registry().find("pruner", name) for name in ("Halver", "Fake_Pruners:Halver", "fake-pruners:Halver")]
    assert {(f.cls.__name__, f.distribution, f.version) for f in found} == {("Halver", "Fake_Pruners", "1.2")}
    assert "Halver" in Registry().names("pruner")
    assert "Halver" not in Registry().names("regularizer")


def test_nothing_is_imported_until_a_schedule_names_it(install: Install, tmp_path: Path) -> None:
    install("fake-one", "1", {"prunekit.pruners": {"One": "fake_one:Halver"}}, fake_one=PRUNER)
    install("fake-two", "1", {"prunekit.pruners": {"Two": "fake_two:Halver"}}, fake_two=PRUNER)
    registry = load_plugins().registry
    with pytest.raises(PluginError):
        registry.find("pruner", "Tow")
    assert {"One", "Two"} <= set(registry.names("pruner"))
    assert {"fake_one", "fake_two"} & set(sys.modules) == set()
    run(schedule("One"), tmp_path)
    assert {"fake_one", "fake_two"} & set(sys.modules) == {"fake_one"}


def test_two_distributions_that_offer_one_name_are_an_error_naming_both(install: Install, tmp_path: Path) -> None:
    """Peer failure 11: elsewhere one of them wins by path order, in silence."""
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    install("fake-b", "2.0", {"prunekit.pruners": {"Halver": "fake_b:Halver"}}, fake_b=PRUNER)
    assert refusal(schedule("Halver"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: fake-a 1.0 and fake-b 2.0 both offer pruner 'Halver'; "
        "say which: class: fake-a:Halver"
    ]
    assert {"fake_a", "fake_b"} & set(sys.modules) == set()
    install("fake-c", "3.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}})
    assert refusal(schedule("Halver"), tmp_path)[0].endswith(
        "fake-a 1.0 and fake-b 2.0 and fake-c 3.0 all offer pruner 'Halver'; say which: class: fake-a:Halver"
    )


def test_a_qualified_name_chooses(install: Install, tmp_path: Path) -> None:
    """Peer failure 11."""
    install("fake-a", "1.0", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    install("fake-b", "2.0", {"prunekit.pruners": {"Halver": "fake_b:Halver"}}, fake_b=PRUNER)
    scheduler = run(schedule("fake-b:Halver"), tmp_path)
    assert scheduler.state_dict()["plugins"] == {"fake-b": "2.0"}
    assert {"fake_a", "fake_b"} & set(sys.modules) == {"fake_b"}
    scheduler.on_epoch_begin(0)
    assert scheduler.sparsity("fc1.weight") == 0.5


def test_the_same_name_of_another_kind_is_no_conflict(install: Install) -> None:
    install("fake-a", "1", {"prunekit.pruners": {"Both": "fake_a:Halver"}}, fake_a=PRUNER)
    install("fake-b", "1", {"prunekit.extensions": {"Both": "fake_b:Halver"}}, fake_b=PRUNER)
    registry = Registry()
    found = (registry.find("pruner", "Both").distribution, registry.find("extension", "Both").distribution)
    assert found == ("fake-a", "fake-b")


def test_a_broken_import_fails_only_a_schedule_that_names_it(install: Install, tmp_path: Path) -> None:
    """Peer failure 12: elsewhere one broken plugin aborts every run, or its error is printed and forgotten."""
    install("fake-good", "1", {"prunekit.pruners": {"Good": "fake_good:Halver"}}, fake_good=PRUNER)
    install("fake-bad", "0.3", {"prunekit.pruners": {"Bad": "fake_bad:Halver"}}, fake_bad="import no_such_module\n")
    run(schedule("Good"), tmp_path)
    assert refusal(schedule("Bad"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: pruner 'Bad' of fake-bad 0.3 can't be imported from 'fake_bad:Halver': "
        "ModuleNotFoundError: No module named 'no_such_module'"
    ]
    with pytest.raises(PluginError) as caught:
        Registry().find("pruner", "Bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("body", "value", "cause"),
    [
        ("raise RuntimeError('no licence')", "fake_bad:Halver", "RuntimeError: no licence"),
        ("import sys; sys.exit('no GPU')", "fake_bad:Halver", "SystemExit: no GPU"),
        ("x = 1 +", "fake_bad:Halver", "SyntaxError: invalid syntax (fake_bad.py, line 1)"),
        ("", "fake_bad:Halver", "AttributeError: module 'fake_bad' has no attribute 'Halver'"),
        ("", "fake_worse:Halver", "ModuleNotFoundError: No module named 'fake_worse'"),
    ],
)
def test_whatever_an_import_raises_is_told(body: str, value: str, cause: str, install: Install, tmp_path: Path) -> None:
    """Peer failure 12."""
    install("fake-bad", "0.3", {"prunekit.pruners": {"Bad": value}}, fake_bad=body)
    assert refusal(schedule("Bad"), tmp_path) == [
        f"s.yaml:4:12: pruners.p.class: pruner 'Bad' of fake-bad 0.3 can't be imported from {value!r}: {cause}"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fake_odd:function", "pruner 'Odd' of fake-odd 1 is function <function function at 0x…>, not a class"),
        ("fake_odd:number", "pruner 'Odd' of fake-odd 1 is int 3, not a class"),
        ("fake_odd", "pruner 'Odd' of fake-odd 1 is module <module 'fake_odd' from …>, not a class"),
        ("fake_odd:Other", "'Odd' of fake-odd is no pruner: it has no compute_masks()"),
        ("fake_odd:Data", "'Odd' of fake-odd is no pruner: it has no compute_masks()"),
    ],
)
def test_an_entry_point_to_something_else_is_refused(
    value: str, message: str, install: Install, tmp_path: Path
) -> None:
    body = "def function(): ...\nnumber = 3\nclass Other: ...\nclass Data: compute_masks = None\n"
    install("fake-odd", "1", {"prunekit.pruners": {"Odd": value}}, fake_odd=body)
    [line] = refusal(schedule("Odd"), tmp_path)
    begin, _, end = message.partition("0x…" if "0x…" in message else "…")
    assert line.startswith(f"s.yaml:4:12: pruners.p.class: {begin}")
    assert line.endswith(end)


def test_an_unknown_class_is_refused_with_the_nearest_name_and_who_offers_it(install: Install, tmp_path: Path) -> None:
    install("fake-a", "1.5", {"prunekit.pruners": {"FancyPruner": "fake_a:Halver"}}, fake_a=PRUNER)
    assert refusal(schedule("FancyPrunner"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: no pruner is registered as 'FancyPrunner'; "
        "did you mean 'FancyPruner'? (fake-a 1.5)"
    ]


def test_a_class_of_another_kind_is_refused_with_its_section(install: Install, tmp_path: Path) -> None:
    install("fake-a", "1.5", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    assert refusal(schedule("Halver", "extensions"), tmp_path) == [
        "s.yaml:4:12: extensions.p.class: 'Halver' is a pruner, not an extension; "
        "it belongs under 'pruners' (fake-a 1.5)"
    ]


def test_a_name_from_the_wrong_distribution_is_refused_with_the_right_one(install: Install, tmp_path: Path) -> None:
    install("fake-a", "1.5", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    assert refusal(schedule("fake-b:Halver"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: 'Halver' is offered by fake-a 1.5, not by 'fake-b'"
    ]


@pytest.mark.parametrize("name", ["'::'", "':'", "'fake-a:'", "a:b:Halver", "' Halver'", "halver.Halver"])
def test_odd_names_are_unknown(name: str, install: Install, tmp_path: Path) -> None:
    install("fake-a", "1.5", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=PRUNER)
    [line] = refusal(schedule(name), tmp_path)
    assert line.startswith("s.yaml:4:12: pruners.p.class: ")
    assert "Halver" in line or "no pruner is registered as ''" in line


def test_a_distribution_with_broken_metadata_stops_nobody(install: Install, tmp_path: Path) -> None:
    """Peer failure 12: an interrupted `pip uninstall` leaves such folders behind."""
    install("fake-good", "1", {"prunekit.pruners": {"Good": "fake_good:Halver"}}, fake_good=PRUNER)
    install("fake-half", "1", {"prunekit.pruners": {"Half": "fake_good:Halver"}})
    site = tmp_path / "site"
    (site / "fake_half-1.dist-info" / "METADATA").unlink()
    run(schedule("Good"), tmp_path)
    assert Registry().find("pruner", "Half").distribution == "(unnamed)"
    (site / "fake_half-1.dist-info" / "entry_points.txt").write_text("[prunekit.pruners]\nHalf\n")
    run(schedule("Good"), tmp_path)
    with pytest.raises(PluginError, match=r"^no pruner is registered as 'Half'"):
        Registry().find("pruner", "Half")


HALVER = dedent("""\
    from prunekit import hookimpl
    from prunekit.components import Selectors
    class Halver:
        def __init__(self, weights: Selectors) -> None:
            self.weights = weights
        def compute_masks(self, parameters, context):
            return {}
""")
"""A pruner, to which methods can be added."""


def test_a_misspelt_hook_of_a_component_is_refused_with_the_right_one(install: Install, tmp_path: Path) -> None:
    body = HALVER + "    @hookimpl\n    def on_epoch_beginn(self, progress): ...\n"
    install("fake-a", "1", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=body)
    assert refusal(schedule("Halver"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: fake-a implements 'on_epoch_beginn', and there is no such hook; "
        "did you mean 'on_epoch_begin'?"
    ]


def test_a_hook_of_a_component_with_an_argument_that_is_not_given_is_refused(install: Install, tmp_path: Path) -> None:
    """Before training: pluggy would find out when the policy's window opens."""
    body = HALVER + "    @hookimpl\n    def on_epoch_end(self, metrics, epoch): ...\n"
    install("fake-a", "1", {"prunekit.pruners": {"Halver": "fake_a:Halver"}}, fake_a=body)
    assert refusal(schedule("Halver"), tmp_path) == [
        "s.yaml:4:12: pruners.p.class: on_epoch_end of fake-a takes 'epoch', which that hook does not give; "
        "known are 'masks', 'metrics', 'model', 'optimizer', 'progress'"
    ]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return fake_site(tmp_path, monkeypatch)
