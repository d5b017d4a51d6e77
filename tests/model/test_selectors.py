"""Names, globs and regular expressions select parameters, on wrapped and unwrapped models alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from prunekit.model.names import without_wrappers
from prunekit.model.selectors import Selection, select

PLAIN = ["conv1.weight", "conv1.bias", "features.0.weight", "features.3.weight", "fc.weight"]
WRAPPED = [f"module.{name}" for name in PLAIN]
HALF = ["conv1.weight", "conv1.bias", "features.module.0.weight", "features.module.3.weight", "fc.weight"]


def chosen(*selectors: str, names: list[str] = PLAIN) -> dict[str, str]:
    """Name -> selector, where nothing is wrong."""
    selection = select(selectors, names)
    assert selection.wrong == []
    return selection.chosen


def wrong(*selectors: str, names: list[str] = PLAIN) -> list[str]:
    return [message for _, message in select(selectors, names).wrong]


@pytest.mark.parametrize("selector", ["features.0.weight", "features.module.0.weight", "module.features.0.weight"])
@pytest.mark.parametrize("names", [PLAIN, WRAPPED, HALF], ids=["plain", "wrapped", "half wrapped"])
def test_wrappers_on_either_side_do_not_matter(selector: str, names: list[str]) -> None:
    assert chosen(selector, names=names) == {names[2]: selector}


@pytest.mark.parametrize("selector", ["conv1.*", "module.conv1.*", "conv[12].*", "conv?.*", "re:conv1\\..*"])
@pytest.mark.parametrize("names", [PLAIN, WRAPPED, HALF], ids=["plain", "wrapped", "half wrapped"])
def test_patterns_select_in_the_order_of_the_model(selector: str, names: list[str]) -> None:
    assert chosen(selector, names=names) == {names[0]: selector, names[1]: selector}


def test_only_a_whole_component_called_module_is_left_out() -> None:
    names = ["submodule.x", "module.modules.x", "module.module.w", "_orig_mod.a", "parametrizations.w.original"]
    assert [without_wrappers(name) for name in names] == ["submodule.x", "modules.x", "w", "a", "w"]


def test_a_name_goes_before_a_pattern_and_everything_comes_last() -> None:
    assert chosen("*", "conv1.*", "conv1.bias") == {
        "conv1.weight": "conv1.*",
        "conv1.bias": "conv1.bias",
        "features.0.weight": "*",
        "features.3.weight": "*",
        "fc.weight": "*",
    }


def test_of_two_patterns_the_first_wins() -> None:
    assert chosen("*.weight", "conv*") == {
        "conv1.weight": "*.weight",
        "conv1.bias": "conv*",
        "features.0.weight": "*.weight",
        "features.3.weight": "*.weight",
        "fc.weight": "*.weight",
    }


def test_everything_may_be_nothing_more() -> None:
    assert chosen("*", *PLAIN) == {name: name for name in PLAIN}


def test_a_regular_expression_matches_the_whole_name() -> None:
    assert wrong("re:conv1.bia") == ["'re:conv1.bia' selects nothing in the model; nearest are 'conv1.bias'"]
    assert chosen("re:.*\\.bias|fc.*") == {"conv1.bias": "re:.*\\.bias|fc.*", "fc.weight": "re:.*\\.bias|fc.*"}


def test_what_selects_nothing_is_named_with_its_neighbours() -> None:
    """Peer failure 8: a misspelt name, or a pattern that matches nothing, is skipped in silence elsewhere."""
    assert wrong("conv1.wieght", "features.module.1.weight", "zzz", "bn2.*") == [
        "'conv1.wieght' selects nothing in the model; nearest are 'conv1.weight', 'fc.weight', 'conv1.bias'",
        "'features.module.1.weight' selects nothing in the model; "
        "nearest are 'features.3.weight', 'features.0.weight', 'fc.weight'",
        "'zzz' selects nothing in the model; "
        "known are 'conv1.bias', 'conv1.weight', 'fc.weight', 'features.0.weight', 'features.3.weight'",
        "'bn2.*' selects nothing in the model; "
        "known are 'conv1.bias', 'conv1.weight', 'fc.weight', 'features.0.weight', 'features.3.weight'",
    ]
    assert wrong("conv1.wieght", names=WRAPPED) == [
        "'conv1.wieght' selects nothing in the model; "
        "nearest are 'module.conv1.weight', 'module.fc.weight', 'module.conv1.bias'"
    ]
    assert wrong("a", names=[]) == ["'a' selects nothing: the model has no parameters"]


def test_what_others_have_selected_already_is_said() -> None:
    assert wrong("conv1.weight", "module.conv1.weight", "conv*.weight") == [
        "'module.conv1.weight' selects nothing that 'conv1.weight' has not selected already",
        "'conv*.weight' selects nothing that 'conv1.weight' has not selected already",
    ]


def test_a_name_that_may_be_two_parameters_is_refused() -> None:
    assert wrong("a.w", names=["module.a.w", "a.module.w"]) == [
        "'a.w' may be 'module.a.w' and 'a.module.w'; give the name in full"
    ]
    assert chosen("a.module.w", names=["module.a.w", "a.module.w"]) == {"a.module.w": "a.module.w"}


@pytest.mark.parametrize("pattern", ["re:(", "re:a{99999999999}", "re:[z-a]", "re:*"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    [message] = wrong(pattern)
    assert message.startswith(f"{pattern!r} is no regular expression: ")


def test_a_name_is_no_pattern() -> None:
    """Exact names go before globs: brackets in a name mean themselves."""
    assert chosen("a[0].w", names=["a[0].w", "a0.w"]) == {"a[0].w": "a[0].w"}
    assert chosen("a[0].w", names=["a0.w"]) == {"a0.w": "a[0].w"}


@pytest.mark.parametrize(
    "selector", ["decoder.weight", "module.decoder.weight", "dec*", "re:decoder.*", "encoder.weight"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tied_parameter_is_selected_by_either_of_its_names(selector: str, prefix: str) -> None:
    names, aliases = [f"{prefix}encoder.weight"], {f"{prefix}decoder.weight": f"{prefix}encoder.weight"}
    assert select([selector], names, aliases) == Selection({names[0]: selector}, [])


def test_a_misspelt_name_of_a_tied_parameter_has_neighbours_too() -> None:
    selection = select(["decoder.wieght"], ["encoder.weight"], {"decoder.weight": "encoder.weight"})
    assert selection.wrong == [
        (
            "decoder.wieght",
            "'decoder.wieght' selects nothing in the model; nearest are 'decoder.weight', 'encoder.weight'",
        )
    ]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet="ab.*?[]re:(\\module", max_size=8), max_size=4), st.sampled_from([PLAIN, WRAPPED, []]))
def test_every_selector_selects_something_or_is_said_to_be_wrong(selectors: list[str], names: list[str]) -> None:
    """Peer failure 8."""
    selection = select(selectors, names)
    accounted = set(selection.chosen.values()) | {selector for selector, _ in selection.wrong} | {"*"}
    assert set(selectors) <= accounted
    assert set(selection.chosen) <= set(names)
