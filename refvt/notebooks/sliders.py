"""Pictures with sliders: one token's life under ε and β, and which patches live under R.

Below the sliders stands an ordinary picture, which a running kernel draws again when a slider moves. A notebook that is
read without a kernel still shows it, as the sliders' first values draw it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.notebooks.pictures import Picture, draw_lives

__all__ = ["explore_life", "explore_scene", "lives_at"]

SCENE = "carphone_pristine.mp4"
RATES = (0.1, 0.25, 0.5, 0.75, 1.0)


def explore_life(
    scores: Array, epsilon: float = 0.01, center: float = 10.0, names: Sequence[str] | None = None
) -> None:
    """Show the life of one token or of several as bars, with sliders for ε and β.

    scores [L] or [L, N]: h of every layer at halting centre β = ``center``, above 0 and below 1 before the last layer.
    Another β moves every logit: h' = σ(logit h + center − β). ValueError for other scores. ModuleNotFoundError without
    IPython.
    """
    given = np.asarray(scores, np.float64)
    given = given[:, None] if given.ndim == 1 else given
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"scores: expected [layers] or [layers, tokens], got {list(given.shape)}")
    if not ((given[:-1] > 0) & (given[:-1] < 1)).all():
        raise ValueError(f"scores: expected numbers above 0 and below 1 before the last layer, got {scores}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon: expected a number above 0 and below 1, got {epsilon}")
    N = given.shape[1]
    shown = list(names) if names is not None else ["token"] if N == 1 else [f"token {k}" for k in range(N)]
    if len(shown) != N:
        raise ValueError(f"names: expected {N}, one for each token, got {len(shown)}")
    steps = sorted({0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, epsilon})
    centers = [center + step / 2 for step in range(-10, 11)]
    _show(
        lambda epsilon, beta: draw_lives(lives_at(given, center, beta), epsilon, shown),
        {"epsilon": ("ε", steps, epsilon), "beta": ("β", centers, center)},
    )


def lives_at(scores: Array, center: float, beta: float) -> Array:
    """The scores [L, N] that would come out with β instead of ``center``; 1 in the last layer."""
    odds = scores[:-1] / (1 - scores[:-1]) * np.exp(center - beta)
    return np.concatenate([odds / (1 + odds), np.ones_like(scores[-1:])])


def explore_scene() -> None:
    """Show which patches of a real clip live in each layer, with a slider for the keep rate R of the Glimpser.

    The trained model that comes with refvt runs again for every R. It was trained with R = 0.75. ModuleNotFoundError
    without IPython, or without what ``refvt.data.find_sample_video`` needs.
    """
    _show(_draw_scene, {"rate": ("R", list(RATES), 0.75)})


@cache
def _draw_scene(rate: float) -> Picture:
    """The scene at one keep rate, in frames and layers."""
    from refvt import HaltingVT, weights
    from refvt.data import find_sample_video
    from refvt.evaluation.scenes import run_on_scene
    from refvt.plots.sheets import SheetClip, halting_sheet

    trained, _ = weights.load("photographs")
    settings = vars(trained.config) | {"keep_rates": (*trained.config.keep_rates[:-1], rate)}
    model = HaltingVT(type(trained.config)(**settings), trained.parameters, backend=trained.backend)
    scene = run_on_scene(model, find_sample_video(SCENE), stride=1)
    tokens = model.config.joint_tokens * scene.windows[0] * scene.windows[1]
    title = f"R = {rate:g}: {tokens} tokens enter the first layer"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scene.png"
        halting_sheet([SheetClip(scene.images, scene.states, SCENE)], title, "", path, columns=1, cell=96)
        return Picture(path.read_bytes())


# ---- sliders, and a picture that they draw again


def _show(draw: Callable[..., Picture], sliders: dict[str, tuple[str, list[float], float]]) -> None:
    """Display sliders if ipywidgets and a kernel are there, and in any case the picture of their first values.

    sliders: the name of each argument of ``draw``, its label, its values, and the first value.
    """
    from IPython import get_ipython
    from IPython.display import display

    first = {name: value for name, (_, _, value) in sliders.items()}
    widgets = _make_sliders(sliders) if hasattr(get_ipython(), "kernel") else None
    if widgets is None:
        display(draw(**first))
        return
    box, controls = widgets
    bundle = box._repr_mimebundle_()
    bundle["text/plain"] = "The sliders need a running kernel. The picture shows their first values."
    display(bundle, raw=True)
    picture = display(draw(**first), display_id=True)

    def redraw(change: Any) -> None:
        picture.update(draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(redraw, "value")


def _make_sliders(sliders: dict[str, tuple[str, list[float], float]]) -> tuple[Any, dict[str, Any]] | None:
    """A box of sliders, and each by its name; None without ipywidgets."""
    try:
        import ipywidgets
    except ModuleNotFoundError:
        return None
    controls = {
        name: ipywidgets.SelectionSlider(
            options=[(f"{v:g}", v) for v in values], value=value, description=label, continuous_update=False
        )
        for name, (label, values, value) in sliders.items()
    }
    return ipywidgets.VBox(list(controls.values())), controls
