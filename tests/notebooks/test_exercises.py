"""Every exercise accepts its own solution and refuses wrong ones with a sentence that says where."""

import numpy as np
import pytest

from refvt import HaltingVTConfig, backends
from refvt.notebooks import EXERCISES, check_exercise, solution, worked_example
from refvt.notebooks.checking import halt_tokens_with
from refvt.notebooks.pictures import draw_alive, draw_lives, draw_model, draw_points


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
        ("cost of a joint block", ("2 * n * n * D", "n * n * D")),  # q kᵀ alone
        ("cost of a joint block", ("3 * D * D + D * D", "3 * D * D")),  # no proj
        ("saved by halting", ("return 1 - sum", "return sum")),
        ("saved by halting", ("+ 2 * n * n * D", "")),
        ("the whole loss", ("5e-4 * ponder.mean()", "5e-4 * ponder.sum()")),
        ("the whole loss", ("1.0 * cross", "0.001 * cross")),
        ("the whole loss", ("right].mean()", "right].sum()")),
        ("first tensors", {"no remainder": "y", "ponder = N − 1 + r": "y", "remainder detached": "d(states)"}),
        ("first tensors", {"no remainder": "y"}),
        ("first tensors", ["y", "ponder", "d(states)"]),
        ("tie", ("0.5  # the limit", "0.4  # the limit")),
        ("tie", [np.ones((2, 1, 2)), 10.0, 10.0]),
        ("law of weights", ("return bool(np.allclose(y[:, 1:], 1))", "return True")),
        ("law of weights", ("same[:, :, 0] = states[:, :, 0]", "same = states")),
        ("one token", ("used += h", "used += weight + h")),
        ("one token", ("1 - used if stops else h", "h")),
        ("one token", ("y[k] = 0", "pass")),  # the results come uninitialised
        ("blocks of threads", ("-(-N // threads)", "N // threads")),
        ("blocks of threads", ("blocks * threads - N", "N % threads")),
    ],
)
def test_a_wrong_answer_is_refused_in_a_sentence(name, wrong):
    said = check_exercise(name, change(name, *wrong) if isinstance(wrong, tuple) else wrong)
    assert said.startswith("Not yet: ")
    assert said.endswith(".") or "raised" in said


def test_a_prediction_is_refused_without_giving_an_answer_away():
    assert check_exercise("halting layers", [1, 1, 1, 1, 1]) == "Not yet: 4 of 5 differ."


def test_an_answer_that_raises_is_wrong():
    def answer(*arguments):
        raise KeyError("x")

    assert check_exercise("halt_tokens", answer) == "Not yet: your answer raised KeyError: 'x'"


def test_unknown_exercises_are_named():
    for call in (solution, lambda name: check_exercise(name, 1)):
        with pytest.raises(ValueError, match=r"exercise: expected one of halting layers, .*, got 'sums'"):
            call("sums")


@pytest.mark.parametrize(
    ("mistake", "same"),
    [(None, (True, True, True)), ("remainder", (False, False, True)), ("ponder", (True, False, True))],
)
def test_a_mistake_changes_what_it_says(mistake, same):
    arguments = worked_example()[:4]
    expected, _ = backends.get("reference").halt_tokens.forward(*arguments)
    found = halt_tokens_with(mistake)(*arguments)
    assert tuple(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True)) == same


def test_only_a_tie_shows_the_mistake_tie():
    arguments = worked_example()[:4]
    (_, _, layers), _ = backends.get("reference").halt_tokens.forward(*arguments)
    assert halt_tokens_with("tie")(*arguments)[2].tolist() == layers.tolist()
    tie = np.ones((2, 1, 2)), 10.0, 10.0, 0.5
    assert [halt_tokens_with(mistake)(*tie)[2].tolist() for mistake in (None, "tie")] == [[2], [1]]


def test_an_unknown_mistake_is_named():
    with pytest.raises(ValueError, match="mistake: expected None or one of remainder, tie, ponder, got 'sign'"):
        halt_tokens_with("sign")


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


def test_pictures_are_png():
    shares = {"object": [1.0, 0.9, 0.8], "background": [1.0, 0.3, 0.1]}
    runs = {"R = 1": ([0.04, 0.05], [0.7, 0.8]), "R = 0.5": ([0.03], [0.6])}
    for picture in (
        draw_model(HaltingVTConfig()),
        draw_alive(shares, "alive"),
        draw_points("runs", runs),
    ):
        assert picture._repr_png_().startswith(b"\x89PNG")
