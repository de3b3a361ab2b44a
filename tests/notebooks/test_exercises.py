"""Every exercise accepts its own solution and refuses wrong ones with a sentence that says where."""

import numpy as np
import pytest

from refvt import backends
from refvt.notebooks import EXERCISES, check_exercise, solution, worked_example
from refvt.notebooks.pictures import draw_lives


def solved(name):
    """What the text of a solution defines: a function, or ``answer``."""
    names = {"np": np}
    exec(solution(name), names)
    return [value for key, value in names.items() if key not in ("np", "__builtins__")][-1]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right(name):
    assert check_exercise(name, solved(name)) == "Right."


def change(name, *replacement):
    text = solution(name)
    assert replacement[0] in text
    names = {"np": np}
    exec(text.replace(*replacement), names)
    return [value for key, value in names.items() if key not in ("np", "__builtins__")][-1]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("halting layers", [3, 1, 2, 3, 2]),
        ("halting layers", [3, 1, 2, 3]),
        ("halting layers", "three"),
        ("halt_tokens", lambda *arguments: None),
        ("halt_tokens", ("remainder * x", "h * x")),  # the last score is not replaced
        ("halt_tokens", ("layer + remainder", "layer")),  # ponder without the remainder
        ("halt_tokens", ("1.0 if layer == L else", "")),  # the last score is not 1
        ("halt_tokens", ("> 1 - epsilon", "> 1")),
        ("halt_tokens", ("scale * x[0] - center", "scale * (x[0] - center)")),
        ("gradient of the logit", ("- dponder[k]", "+ dponder[k]")),
        ("gradient of the logit", ("states[layer, k] - states[last, k]", "states[layer, k]")),
        ("gradient of the logit", ("range(last)", "range(last + 1)")),
        ("gradient of the logit", ("scale * h[layer]", "h[layer]")),
    ],
)
def test_a_wrong_answer_is_refused_in_a_sentence(name, wrong):
    said = check_exercise(name, change(name, *wrong) if isinstance(wrong, tuple) else wrong)
    assert said.startswith("Not yet: ")
    assert said.endswith(".") or "raised" in said


def test_an_answer_that_raises_is_wrong():
    def answer(*arguments):
        raise KeyError("x")

    assert check_exercise("halt_tokens", answer) == "Not yet: your answer raised KeyError: 'x'"


def test_unknown_exercises_are_named():
    for call in (solution, lambda name: check_exercise(name, 1)):
        with pytest.raises(ValueError, match=r"exercise: expected one of halting layers, .*, got 'sums'"):
            call("sums")


def test_the_worked_example_is_what_its_text_says():
    states, scale, center, epsilon, names = worked_example()
    scores = 1 / (1 + np.exp(-(scale * states[:2, :, 0] - center)))
    assert np.allclose(scores, [[0.3, 0.995, 0.6, 0.1, 0.5], [0.5, 0.5, 0.5, 0.2, 0.45]], rtol=0, atol=1e-12)
    (_, ponder, layers), _ = backends.get("reference").halt_tokens.forward(states, scale, center, epsilon)
    assert layers.tolist() == [3, 1, 2, 3, 3]
    assert np.allclose(ponder - layers, [0.2, 1, 0.4, 0.7, 0.05], rtol=0, atol=1e-12)
    assert len(names) == 5
    picture = draw_lives(np.vstack([scores, np.ones(5)]), epsilon, names)
    assert picture._repr_png_().startswith(b"\x89PNG")
