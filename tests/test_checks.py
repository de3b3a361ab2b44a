"""Checks of arguments: what passes, and what the message says of the rest."""

import numpy as np
import pytest

from refvt.checks import check_int, words_of


def test_integers_of_every_kind_pass() -> None:
    assert check_int("stride", 3) == 3
    assert type(check_int("stride", np.int16(3))) is int
    assert check_int("seed", 0, minimum=0) == 0


def test_the_message_names_the_argument() -> None:
    with pytest.raises(TypeError, match=r"stride: expected a whole number, got 2\.0"):
        check_int("stride", 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        check_int("stride", 0)


def test_what_another_library_says_is_shortened() -> None:
    assert words_of(ValueError("too short")) == "too short"
    assert words_of(KeyError()) == "KeyError"
    assert words_of(ValueError("\x1b[2J")) == "\\x1b[2J"
    assert words_of(ValueError("x" * 5000)) == "x" * 1000 + "… (5000 characters)"
