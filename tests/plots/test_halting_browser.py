"""The halting page in headless Chromium, with clicks, keys and touch, and without a word in the console."""

import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

from refvt.evaluation.scores import halting_scores
from refvt.plots.halting_page import embed_page
from tests.support.halting_pages import page_of, run_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.browser

LIFE = """() => ({
    name: who.textContent, clip: Number(who.dataset.clip), token: Number(who.dataset.token), why: why.textContent,
    frame: Number(frame.value), layer: Number(layer.value), status: status.textContent, ponder: ponder.dataset.value,
    scores: [...document.querySelectorAll("#scores td:nth-child(2)[data-value]")].map((e) => Number(e.dataset.value)),
    slices: [...bar.children].map((e) => [e.className, e.getBoundingClientRect().width]), width: bar.clientWidth,
    soFar: [...document.querySelectorAll("#cost td:nth-child(5)")].map((e) => Number(e.dataset.value)),
})""".replace("status.textContent", 'document.getElementById("status").textContent')


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=[True, False], ids=["followed", "left"])
def run(request):
    return run_model(request.param, fuse_dropped=True)


@contextmanager
def opened(browser, path, **settings):
    """The page, which must neither write to the console nor ask for anything beside itself."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.fixture
def path(run, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page_of(*run), encoding="utf-8")
    return file


def wait_until(page, condition):
    """Playwright's own wait needs eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"expected {condition} within 10 s")


def place(page, row, column):
    """The middle of a patch of the 4 × 6, in pixels of the picture."""
    box = page.locator("#picture").bounding_box()
    return {"x": box["width"] * (column + 0.5) / 6, "y": box["height"] * (row + 0.5) / 4}


def token_of(run, frame, row, column):
    """The token of a patch; −g if Glimpser block g dropped it."""
    kept, patch = [block[0] for block in run[2].decisions.kept], row * 6 + column
    found = np.flatnonzero(kept[-1][frame] == patch)
    if len(found):
        return int(1 + found[0] * 4 + frame)
    return -next(g for g, block in enumerate(kept, 1) if patch not in block[frame])


def test_a_click_shows_the_life_of_every_patch(browser, path, run):
    model, clips, output = run
    scores, remainders = (of[0] for of in halting_scores(model, clips, output))
    halting_layer, cls = output.decisions.halting_layer[0], output.decisions.halting_layer[0, 0]
    reasons = set()
    with opened(browser, path) as page:
        for frame in (0, 3):
            page.locator("#frame").fill(str(frame))
            for row in range(4):
                for column in range(6):
                    page.click("#picture", position=place(page, row, column))
                    life, token = page.evaluate(LIFE), token_of(run, frame, row, column)
                    assert (life["frame"], life["token"]) == (frame, token)
                    assert life["name"].startswith(f"Frame {frame + 1}, patch in row {row + 1}, column {column + 1}")
                    assert "(held)" in life["name"]
                    reasons.add(life["why"].split(":")[0])
                    if token < 0:
                        assert f"in block {-token - 1}" in life["why"]
                        assert (life["scores"], life["slices"]) == ([], [])
                        continue
                    known = scores[~np.isnan(scores[:, token]), token]
                    assert np.array_equal(np.float32(life["scores"]), known)
                    if halting_layer[token] == 0:
                        assert f"Still alive when the clip left: CLS halted in layer {cls}" in life["why"]
                        assert life["ponder"] == "null"
                        continue
                    assert re.match(f"(Halts in|Lives to the last) layer,? {halting_layer[token]}", life["why"])
                    assert (f"CLS halts in layer {cls}" in life["why"]) == (cls < halting_layer[token])
                    assert np.float32(life["ponder"]) == output.ponder[0, token]
                    kind, width = life["slices"][-1]
                    assert "rest" in kind
                    assert width == pytest.approx(remainders[token] * life["width"], abs=1.1)
    assert len(reasons) >= 3


def test_frames_are_counted_from_1_in_the_clip_and_in_the_video(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page_of(*run_model(True, clips=2), windows=(1, 2), indices=[16, 18, 20, 22]), encoding="utf-8")
    with opened(browser, path) as page:
        assert page.evaluate(LIFE)["name"].startswith("Frame 1 (frame 17 of the video), patch in row ")
        page.locator("#frame").fill("3")
        page.locator("#layer").fill("0")
        life = page.evaluate(LIFE)
        assert re.fullmatch(
            r"Before the layers: \d+ tokens of the clip enter layer 1 \(all 4 frames, 2 windows\)\. Shown: frame 4\.",
            life["status"],
        )
        page.click("#picture", position={"x": 5, "y": 5})
        assert page.evaluate(LIFE)["name"].startswith(
            "Frame 4 (frame 23 of the video), patch in row 1, column 1, window 1"
        )


def test_hovering_shows_a_patch_until_one_is_held(browser, path, run):
    with opened(browser, path) as page:
        page.hover("#picture", position=place(page, 1, 1))
        assert "row 2, column 2" in page.evaluate(LIFE)["name"]
        page.click("#picture", position=place(page, 2, 3))
        page.hover("#picture", position=place(page, 0, 5))
        assert "row 3, column 4" in page.evaluate(LIFE)["name"]
        page.keyboard.press("Escape")
        page.hover("#picture", position=place(page, 0, 4))
        assert "row 1, column 5" in page.evaluate(LIFE)["name"]


def test_sliders_and_keys_change_frame_and_layer(browser, path, run):
    output = run[2]
    with opened(browser, path) as page:
        page.locator("#layer").fill("3")
        life = page.evaluate(LIFE)
        counts = f"{output.tokens_per_layer[0, 2]} of {output.alive.shape[2]} tokens of the clip alive (all 4 frames)"
        spent = page.evaluate("document.querySelector('#cost tr[aria-current] td:nth-child(5)').textContent")
        assert life["status"] == f"Layer 3: {counts}, {spent} GFLOPs so far. Shown: frame 1."
        assert life["soFar"][-1] == output.gflops[0]
        picture = page.evaluate("picture.toDataURL()")
        page.keyboard.press("ArrowLeft")  # the slider has the focus
        assert page.evaluate(LIFE)["layer"] == 2
        assert page.evaluate("picture.toDataURL()") != picture
        page.evaluate("document.activeElement.blur()")
        for key, frame, layer in (
            ("ArrowRight", 1, 2), ("ArrowDown", 1, 3), ("ArrowUp", 1, 2), ("ArrowLeft", 0, 2), ("ArrowLeft", 3, 2),
        ):  # fmt: skip
            page.keyboard.press(key)
            life = page.evaluate(LIFE)
            assert (life["frame"], life["layer"]) == (frame, layer)
        page.focus("#picture")
        page.click("#picture", position=place(page, 1, 1))
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert "row 3, column 3" in page.evaluate(LIFE)["name"]
        page.keyboard.press("Shift+ArrowRight")
        life = page.evaluate(LIFE)
        assert (life["frame"], life["token"]) == (0, token_of(run, 0, 2, 2))


def test_playing_goes_on_until_it_is_paused(browser, path):
    with opened(browser, path) as page:
        page.click("#play-layer")
        wait_until(page, "layer.value === '4'")
        assert page.get_attribute("#play-layer", "aria-label") == "Pause the layers"
        page.click("#play-layer")
        stopped = page.evaluate(LIFE)["layer"]
        page.wait_for_timeout(1500)
        assert page.evaluate(LIFE)["layer"] == stopped
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Space")
        wait_until(page, "frame.value === '2'")


def test_tokens_without_a_place_have_buttons(browser, path, run):
    output = run[2]
    with opened(browser, path) as page:
        page.click("#others button:has-text('CLS')")
        life = page.evaluate(LIFE)
        assert life["token"] == 0
        assert np.float32(life["ponder"]) == output.ponder[0, 0]
        page.click("#others button:has-text('fused') >> visible=true")
        assert "fused token" in page.evaluate(LIFE)["name"]


def test_a_tap_on_a_phone_in_the_dark(browser, path, run):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    with opened(browser, path, **phone) as page:
        page.tap("#picture", position=place(page, 3, 0))
        life = page.evaluate(LIFE)
        assert (life["token"], life["frame"]) == (token_of(run, 0, 3, 0), 0)
        page.tap("#play-frame")
        wait_until(page, "frame.value === '1'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"


def test_the_page_works_in_a_notebooks_iframe(browser, run, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(f'<!DOCTYPE html><meta charset="utf-8">{embed_page(page_of(*run))}', encoding="utf-8")
    with opened(browser, file) as page:
        inside = page.frame_locator("iframe")
        inside.locator("#picture").click()
        assert "(held)" in inside.locator("#who").inner_text()
