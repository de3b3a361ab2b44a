"""The halting page: its numbers are the model's, it is small, and it asks no network for anything."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from refvt.evaluation.scores import halting_scores
from refvt.model import flops
from refvt.plots.halting_page import embed_page, halting_page
from tests.support.halting_pages import page_of, run_model


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def numbers(values):
    return np.array([np.nan if value is None else value for value in values], np.float32)


@pytest.mark.parametrize("full_ponder", [True, False])
@pytest.mark.parametrize("windows", [(1, 1), (2, 1), (1, 2)])
def test_the_numbers_are_the_models(full_ponder, windows):
    model, clips, output = run_model(full_ponder, clips=windows[0] * windows[1])
    data = data_of(page_of(model, clips, output, windows=windows))
    scores = halting_scores(model, clips, output)
    assert data["epsilon"] == model.config.epsilon
    assert len(data["clips"]) == len(clips)
    for b, clip in enumerate(data["clips"]):
        assert np.array_equal(numbers(clip["ponder"]), output.ponder[b], equal_nan=True)
        assert np.array_equal(numbers(clip["remainders"]), scores.remainders[b], equal_nan=True)
        assert clip["halting_layer"] == output.decisions.halting_layer[b].tolist()
        assert clip["tokens_per_layer"] == output.tokens_per_layer[b].tolist()
        assert clip["gflops_so_far"][-1] == output.gflops[b]
        for k, of_token in enumerate(clip["scores"]):
            assert np.array_equal(numbers(of_token), scores.scores[b, output.alive[b, :, k], k])
    full = np.full((1, model.config.joint_depth), model.config.joint_tokens)
    assert data["gflops_so_far_without_halting"][-1] == flops.clip_gflops(model.config, full)[0]


@pytest.mark.parametrize("fuse_dropped", [True, False])
def test_every_patch_has_its_token_or_the_block_that_dropped_it(fuse_dropped):
    model, clips, output = run_model(True, fuse_dropped=fuse_dropped)
    clip = data_of(page_of(model, clips, output))["clips"][0]
    kept, T = [of_block[0] for of_block in output.decisions.kept], model.config.num_frames
    for t, of_frame in enumerate(clip["token"]):
        for patch, token in enumerate(of_frame):
            if token > 0:
                assert (token - 1) % T == t
                assert kept[-1][t, (token - 1) // T] == patch
            else:
                assert patch not in kept[-token - 1][t]
                assert all(patch in block[t] for block in kept[: -token - 1])
    shown = [token for of_frame in clip["token"] for token in of_frame if token > 0]
    fused = [token for _, token in clip["fused"]]
    assert sorted(shown + fused) == list(range(1, model.config.joint_tokens))
    assert bool(fused) == fuse_dropped


def test_the_frames_are_the_images():
    model, clips, output = run_model(True)
    y, x = np.mgrid[0:64, 0:96]
    images = np.stack([np.stack([2 * x, 3 * y, 0 * x + 40 * t], -1) for t in range(4)]).astype(np.uint8)
    data = data_of(halting_page(model, clips, output, images, "Ramps", ""))
    for image, uri in zip(images, data["frames"], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))))
        assert np.abs(shown.astype(int) - image).mean() < 3


def test_the_page_is_one_file_that_escapes_its_title():
    model, clips, output = run_model(True)
    page = page_of(model, clips, output, title="</title><script>alert(1)</script>", note="<b> & <!--js-->")
    assert "alert(1)</script>" not in page
    assert "&lt;b&gt; &amp; &lt;!--js--&gt;" in page
    assert page.count("<script") == 2
    without_frames = re.sub(r'"data:image/jpeg[^"]*"', "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link", without_frames)
    assert "default-src 'none'" in page
    frame = embed_page(page, 500)
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == page
    assert "height:500px" in frame


def test_a_page_of_the_papers_size_is_small():
    """196 patches, 8 frames, 10 joint layers, nothing halted or dropped, frames that hardly compress."""
    from refvt import HaltingVT, HaltingVTConfig

    sizes = {"width": 6, "num_heads": 1, "keep_rates": (1.0, 1.0), "halting_center": 30.0}
    model = HaltingVT(HaltingVTConfig(**sizes), backend="reference")
    clips = np.zeros((1, 3, 8, 224, 224), np.float32)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 224, 224, 3), np.uint8)
    page = halting_page(model, clips, model(clips), images, "Noise", "")
    assert len(page.encode()) < 3e6


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"windows": (2, 2)}, ValueError, r"windows: expected rows · columns = 1 clips, got 2 × 2"),
        ({"images": np.zeros((4, 64, 96, 3))}, TypeError, "images: expected uint8, got float64"),
        ({"images": np.zeros((3, 64, 96, 3), np.uint8)}, ValueError, r"images: expected \[4, height, width, 3\]"),
        ({"images": np.zeros((4, 64, 64, 3), np.uint8)}, ValueError, r"images: expected 4 × 6 square patches"),
        ({"indices": [1, 2]}, ValueError, "indices: expected 4 numbers, one per frame, got 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, error, message):
    model, clips, output = run_model(True)
    arguments = {"images": np.zeros((4, 64, 96, 3), np.uint8), "title": "", "note": "", **changes}
    with pytest.raises(error, match=message):
        halting_page(model, clips, output, **arguments)
