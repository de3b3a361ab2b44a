"""Sliders: a picture without a kernel, and one that is drawn again with it."""

from types import SimpleNamespace

import numpy as np
import pytest

from refvt.notebooks import explore_life, explore_scene, sliders, worked_example
from refvt.notebooks.pictures import Picture

pytest.importorskip("IPython", reason="IPython is not installed")
SCORES = [0.3, 0.5, 0.4, 1.0]


class Shown:
    """Stands in for IPython's display: keeps what is shown, and hands out handles that can be updated."""

    def __init__(self, monkeypatch, kernel):
        self.outputs = []
        shell = type("Shell", (), {"kernel": None} if kernel else {})()
        monkeypatch.setattr("IPython.get_ipython", lambda: shell)
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, value, raw=False, display_id=False):
        self.outputs.append(value)
        place = len(self.outputs) - 1
        return SimpleNamespace(update=lambda value: self.outputs.__setitem__(place, value))


def test_without_a_kernel_there_is_the_picture_alone(monkeypatch):
    shown = Shown(monkeypatch, kernel=False)
    explore_life(SCORES)
    (picture,) = shown.outputs
    assert isinstance(picture, Picture)
    assert picture.png.startswith(b"\x89PNG")


def test_without_ipywidgets_there_is_the_picture_alone(monkeypatch):
    shown = Shown(monkeypatch, kernel=True)
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    explore_life(SCORES)
    assert [type(output) for output in shown.outputs] == [Picture]


def test_a_slider_draws_the_picture_again(monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    made = []
    monkeypatch.setattr(ipywidgets, "VBox", lambda children: made.extend(children) or ipywidgets.Box(children))
    shown = Shown(monkeypatch, kernel=True)
    drawn = []
    monkeypatch.setattr(sliders, "draw_lives", lambda h, epsilon, names: drawn.append((h[:, 0], epsilon)) or len(drawn))
    explore_life(SCORES, epsilon=0.02)
    bundle, picture = shown.outputs
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "need a running kernel" in bundle["text/plain"]
    assert picture == 1
    np.testing.assert_allclose(drawn[0][0], SCORES)
    epsilon, beta = made
    assert (epsilon.value, beta.value) == (0.02, 10.0)
    epsilon.value = 0.3
    assert shown.outputs[1] == 2
    assert drawn[1][1] == 0.3
    beta.value = 11.0
    x = np.log(np.divide(SCORES[:3], np.subtract(1, SCORES[:3]))) - 1
    np.testing.assert_allclose(drawn[2][0], [*(1 / (1 + np.exp(-x))), 1])


def test_lives_at_another_center_are_those_of_the_model():
    from refvt import backends

    example = worked_example()
    halt_tokens = backends.get("reference").halt_tokens.forward
    h = 1 / (1 + np.exp(example.center - example.scale * example.states[:, :, 0]))
    for beta in (9.0, 10.0, 12.5):
        sums = sliders.lives_at(h, example.center, beta).cumsum(axis=0)
        (_, _, layers), _ = halt_tokens(example.states, example.scale, beta, example.epsilon)
        assert (1 + (sums > 1 - example.epsilon).argmax(axis=0)).tolist() == layers.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [0.2, 1.0, 1.0]}, "scores: expected numbers above 0 and below 1 before the last layer"),
        ({"scores": 0.5}, r"scores: expected \[layers\] or \[layers, tokens\]"),
        ({"scores": SCORES, "epsilon": 1.0}, "epsilon: expected a number above 0 and below 1, got 1.0"),
        ({"scores": SCORES, "names": ["a", "b"]}, "names: expected 1, one for each token, got 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        explore_life(**arguments)


def test_the_scene_at_two_keep_rates(monkeypatch):
    pytest.importorskip("skvideo", reason="scikit-video is not installed")
    shown = Shown(monkeypatch, kernel=False)
    explore_scene()
    (picture,) = shown.outputs
    assert picture.png.startswith(b"\x89PNG")
    assert sliders._draw_scene(0.25).png != picture.png
