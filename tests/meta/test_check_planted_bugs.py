"""``check`` finds bugs planted in candidates of every form, and names the tensor that each changes first."""

import pytest

from tests.support.planted_bugs import all_bugs, try_bug

BUGS = all_bugs()
MISSED = {
    # only the numbers of the kept patches are wrong, and they are no output
    ("outputs", "original = ranks"),
}
OTHER_FIRST: dict[str, str] = {}


def check_bug(bug):
    found = try_bug(bug)
    if (bug.form, bug.wrong) in MISSED:
        assert not found.caught, "it is caught now: take it off the list"
        return
    assert found.caught
    assert found.right_first or found.named == OTHER_FIRST.get(bug.wrong), found.named


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.form == "operation"], ids=lambda bug: bug.place)
def test_bug_in_an_operation(bug):
    check_bug(bug)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.form != "operation"], ids=lambda bug: bug.form)
def test_bug_in_a_pytorch_model(bug):
    pytest.importorskip("torch")
    check_bug(bug)


def test_there_are_many_bugs():
    assert len(BUGS) >= 120
    assert len({(bug.form, bug.place, bug.right, bug.wrong) for bug in BUGS}) == len(BUGS)
