"""The conformance kit: what is right passes, and what is wrong fails by the law that it breaks."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import wrong_components
from wrong_components import Compounds, Fails, Gambler, Penalty, Right, TiesGoTogether

from prunekit import PluginError, hookimpl
from prunekit.errors import PrunekitError
from prunekit.testing import LAWS, LawsBroken, TinyNet, check_component, epochs_under_card
from prunekit.testing.laws import traceback_of
from prunekit.testing.subject import find_subject

WRONG = [cls for cls in vars(wrong_components).values() if inspect.isclass(cls) and "breaks" in vars(cls)]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ComparesAll": {"sparsity": 0.5, "weights": "fc2.weight"},
    "WrongDefault": {"weights": "*.weight", "sparsity": 0.5},
    "BelowZero": {"step": 0.05},
}


def check(cls: type, **options: Any) -> Any:
    kind = "listener" if cls is Gambler else getattr(cls, "kind", None)
    return check_component(cls, kind=kind, **options, **ARGUMENTS.get(cls.__name__, {}))


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_what_is_wrong_breaks_each_law_that_it_says(cls: Any) -> None:
    with pytest.raises(LawsBroken) as error:
        check(cls, laws=cls.breaks)
    assert {failure.law.name for failure in error.value.report.broken} == set(cls.breaks)


@pytest.mark.slow
@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_what_is_wrong_breaks_the_laws_that_it_breaks_and_no_other(cls: Any) -> None:
    with pytest.raises(LawsBroken) as error:
        check(cls)
    assert {failure.law.name for failure in error.value.report.broken} == set(cls.breaks)


def test_every_law_is_broken_by_somebody() -> None:
    assert set(LAWS) == {law for cls in WRONG for law in cls.breaks}


@pytest.mark.parametrize(("cls", "given"), [(Right, {"sparsity": 0.3}), (Penalty, {"strength": 0.01})])
def test_what_is_right_keeps_every_law_of_its_kind(cls: type, given: dict[str, float]) -> None:
    report = check_component(cls, **given, weights="*.weight")
    kind = "pruner" if cls is Right else "regularizer"
    assert (report.component, report.broken) == (cls.__name__, ())
    assert {*report.kept, *report.not_applicable} == {law.name for law in LAWS.values() if kind in law.kinds}
    reasons = {
        "state_round_trip": "it has no state_dict() and load_state_dict()",
        "over_time": "no argument of it changes over time",
    }
    assert report.not_applicable == reasons | ({} if cls is Right else {"boolean_masks": "it makes no masks"})


def test_a_quantizer_of_modules_is_given_bits_and_keeps_every_law_of_its_kind() -> None:
    report = check_component(wrong_components.Steps)
    assert {*report.kept, *report.not_applicable} == {law.name for law in LAWS.values() if "quantizer" in law.kinds}
    assert report.not_applicable == {
        "state_round_trip": "it has no state_dict() and load_state_dict()",
        "over_time": "no argument of it changes over time",
    }


def test_a_failure_says_which_law_what_was_expected_what_came_and_how_to_see_it_again() -> None:
    with pytest.raises(LawsBroken) as error:
        check_component(TiesGoTogether, sparsity=0.5, weights="fc2.weight")
    assert str(error.value) == (
        "TiesGoTogether breaks 1 of 19 laws\n"
        "\n"
        "exact_sparsity: The sparsity asked for is reached exactly: floor(s · n) of n units, also among equal weights\n"
        "  expected: among weights of which many are equal: fc2.weight 32 of 64 pruned (0.5 asked)\n"
        "  got:      fc2.weight 61 of 64\n"
        "  reproduce:\n"
        "    from prunekit.testing import check_component\n"
        "    from wrong_components import TiesGoTogether\n"
        "    check_component(TiesGoTogether, laws=['exact_sparsity'], sparsity=0.5, weights='fc2.weight')"
    )


def test_an_exception_is_told_with_the_lines_of_the_component_that_it_comes_from() -> None:
    with pytest.raises(LawsBroken) as error:
        check_component(Fails, sparsity=0.5, weights="fc2.weight", laws=["runs"])
    assert str(error.value) == (
        "Fails breaks 1 of 1 laws\n"
        "\n"
        "runs: It takes part in a training from the first epoch to the last\n"
        "  expected: no exception\n"
        "  got:      RuntimeError: not this epoch\n"
        "            raised in on_epoch_begin by Fails 'subject', policies[0], wrong_components\n"
        "  raised at:\n"
        f'    File "{wrong_components.__file__}", line {line_of("not this epoch")}, in compute_masks\n'
        '      raise RuntimeError("not this epoch")\n'
        "  reproduce:\n"
        "    from prunekit.testing import check_component\n"
        "    from wrong_components import Fails\n"
        "    check_component(Fails, laws=['runs'], sparsity=0.5, weights='fc2.weight')"
    )


@pytest.mark.parametrize(
    ("cls", "law", "place"),
    [
        (wrong_components.NeedsAMaximum, "odd_parameters", "weight.abs().max()"),
        (wrong_components.FailsInCompany, "two_processes", "alone I would"),
    ],
)
def test_where_an_exception_was_raised_is_told_too_of_one_that_a_law_met_on_its_way(
    cls: type, law: str, place: str
) -> None:
    with pytest.raises(LawsBroken) as error:
        check_component(cls, sparsity=0.5, weights="fc2.weight", laws=[law])
    (failure,) = error.value.report.broken
    first = failure.traceback.partition("\n")[0].strip()
    assert first == f'File "{wrong_components.__file__}", line {line_of(place)}, in compute_masks'


def test_the_causes_of_an_exception_are_told_and_the_way_of_one_that_no_component_raised() -> None:
    def fail() -> None:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("no number") from error

    with pytest.raises(RuntimeError) as error:
        fail()
    lines = traceback_of(error.value).splitlines()
    assert [line.strip() for line in lines if "File" not in line and "^" not in line] == [
        "fail()",
        'raise RuntimeError("no number") from error',
        "caused by ValueError: invalid literal for int() with base 10: 'x'",
        'int("x")',
    ]
    with pytest.raises(PrunekitError) as error:
        find_subject("nothing", None, {})
    assert "in find_subject" in traceback_of(error.value)


def line_of(text: str) -> int:
    """The number of the line of the wrong components that holds a text."""
    lines = Path(wrong_components.__file__).read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return number


def test_the_three_lines_reproduce_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LawsBroken) as first:
        check_component(Compounds, sparsity=0.5, weights="fc1.weight", laws=["idempotent"])
    (failure,) = first.value.report.broken
    with pytest.raises(LawsBroken) as again:
        exec("\n".join(failure.reproduction), {})
    assert str(again.value) == str(first.value)
    assert (failure.expected, failure.got[:27]) == ("fc1.weight keeps 16 of 512", "fc1.weight keeps 8 of 512 (")


def test_a_basic_law_that_is_broken_ends_the_check() -> None:
    with pytest.raises(LawsBroken) as error:
        check(wrong_components.FloatMasks)
    report = error.value.report
    assert report.kept == ()
    assert set(report.not_applicable.values()) == {"not tried: boolean_masks is broken"}


# What is asked for wrongly


@pytest.mark.parametrize(
    ("component", "options", "message"),
    [
        (
            "AutomatedGradualPrunr",
            {},
            "no plugin is called 'AutomatedGradualPrunr'; did you mean 'AutomatedGradualPruner'?",
        ),
        ("AutomatedGradualPruner", {"kind": "regularizer"}, "no regularizer is called 'AutomatedGradualPruner'"),
        ("wrong_components:Wrong", {}, "no plugin is called 'wrong_components:Wrong'"),
        ("no_package.module:Right", {}, "no plugin is called 'no_package.module:Right'"),
        (Right, {"sparcity": 0.5}, "Right can't be made with sparcity=0.5: sparcity: Right has no argument 'sparcity'"),
        ("PolynomialLR", {}, "these were made up from the types: give it others"),
        (wrong_components.ChangesTheGraph, {"kind": "pruner"}, "is no pruner: it has no compute_masks()"),
    ],
)
def test_what_can_t_be_checked_is_said(component: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as error:
        check_component(component, **options)
    assert message in str(error.value)


def test_a_law_that_does_not_exist_is_said() -> None:
    with pytest.raises(PrunekitError, match="no law is called 'exact_sparcity'; did you mean 'exact_sparsity'"):
        check_component(Right, laws=["exact_sparcity"])


def test_a_class_that_no_other_process_can_import_is_not_tried_in_two() -> None:
    class Local(Right):
        pass

    report = check_component(Local, laws=["two_processes"], sparsity=0.5, weights="*.weight")
    assert report.not_applicable == {
        "two_processes": "another process can't import a class of a function, a notebook or a script"
    }


class Keeps:
    """A listener that leaves a file in the folder of each run."""

    folders: ClassVar[list[Path]] = []

    @hookimpl
    def on_train_begin(self, run_dir: Path) -> None:
        self.folders.append(run_dir)
        (run_dir / "file").touch()


def test_what_a_listener_writes_is_gone_after_each_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Keeps.folders.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report = check_component(Keeps, kind="listener", laws=["runs", "deterministic"])
    assert report.kept == ("runs", "deterministic")
    assert len(set(Keeps.folders)) == 3
    assert all(tmp_path in folder.parents for folder in Keeps.folders)
    assert list(tmp_path.iterdir()) == []


# pytest


def pytest_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_pytest_has_a_test_for_each_law_of_a_component(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other(): raise SystemError('not asked for')")
    result = pytest_in(tmp_path, "--prunekit-component", "PolynomialLR", "--prunekit-arguments", "{T_max: 6, power: 2}")
    assert result.returncode == 0, result.stdout
    names = [line.split()[0].removeprefix("::") for line in result.stdout.splitlines() if "%]" in line]
    assert names == [f"PolynomialLR::{law.name}" for law in LAWS.values() if "lr_scheduler" in law.kinds]
    assert "8 passed, 1 skipped" in result.stdout


def test_pytest_shows_a_broken_law_as_it_is_told(tmp_path: Path) -> None:
    options = ("--prunekit-component", "PolynomialLR", "--prunekit-arguments", "{total_iters: 6, power: 0.5, T_max: 2}")
    result = pytest_in(tmp_path, *options)
    assert result.returncode == 4
    assert "PolynomialLR needs exactly one of 'T_max' and 'total_iters', got both" in result.stderr


def test_pytest_shows_where_a_component_failed(tmp_path: Path) -> None:
    options = ("--prunekit-component", "wrong_components:Fails", "-k", "runs")
    result = pytest_in(tmp_path, *options, "-o", f"pythonpath={Path(wrong_components.__file__).parent}")
    assert result.returncode == 1, result.stdout
    assert f"line {line_of('not this epoch')}, in compute_masks" in result.stdout
    assert "check_component(Fails, laws=['runs'], sparsity=0.25, weights='*.weight')" in result.stdout


def test_starting_pytest_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("import sys\ndef test_one(): assert 'torch' not in sys.modules")
    result = pytest_in(tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_card_without_a_schedule_is_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# prunekit-nothing\n")
    batch = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"README\.md has no ```yaml block"):
        next(epochs_under_card(tmp_path / "README.md", TinyNet(), batch, 1))
