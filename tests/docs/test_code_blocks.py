"""Every Python block of README and docs runs, or says above it why not: ``<!-- not run: reason -->``.

The blocks of a page run in one namespace, in order. What a page takes as given stands in ``SETUP``. A call in running
text is not run: its function must exist and take these arguments. How its result is used can be shown in a block only.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from importlib import import_module

import numpy as np
import pytest

import refvt
from refvt.data import find_sample_video
from refvt.ops.linear import reference as linear
from tests.docs.pages import BLOCK, PAGES, blocks_of, name_of

WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
WITH_TORCH = {"docs/checking.md"}


def linear_layer():
    """What the pages with the contract of an operation take as given."""
    rng = np.random.default_rng(0)
    x, weight, bias, residual, dy = (rng.standard_normal(shape) for shape in ((3, 4), (2, 4), 2, (3, 2), (3, 2)))
    functions = {"linear_forward": linear.linear_forward, "linear_backward": linear.linear_backward}
    return functions | {"x": x, "weight": weight, "bias": bias, "residual": residual, "gain": np.ones(3), "dy": dy}


def linear_layer_and_a_video():
    """What README takes as given; the video stands in the current folder."""
    shutil.copy(find_sample_video("carphone_pristine.mp4"), "video.mp4")
    return linear_layer()


def small_model():
    """A configuration with its parameters and two clips."""
    config = refvt.HaltingVTConfig(image_size=(16, 16), patch_size=8, width=16, num_heads=2, depth=5, num_classes=3)
    model = refvt.HaltingVT(config, seed=0, backend="reference")
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 16, 16)).astype("float32")
    return {"config": config, "parameters": model.parameters, "clips": clips, "refvt": refvt}


def candidates():
    """What docs/checking.md takes as given."""
    pytest.importorskip("torch")
    from refvt.conformance import adapters

    return {"adapters": adapters, "MyHaltingVT": None, "my_layernorm": lambda x, weight, bias: x}


SETUP = {
    "README.md": linear_layer_and_a_video,
    "docs/operations.md": linear_layer,
    "docs/porting.md": small_model,
    "docs/checking.md": candidates,
    "docs/data.md": lambda: {"rng": np.random.default_rng(0)},
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.torch] if name_of(page) in WITH_TORCH else [])
        for page in WITH_CODE
    ],
)
def test_the_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page", **SETUP.get(name_of(page), dict)()}
    for number, block in enumerate(blocks_of(page)):
        if block.language == "python" and block.reason is None:
            exec(compile(block.text, f"{name_of(page)}, block {number}", "exec"), namespace)


def test_every_setup_is_for_a_page_with_code():
    assert set(SETUP) <= {name_of(page) for page in WITH_CODE}


def test_every_reason_is_above_a_block():
    """A ``not run`` that stands elsewhere would mark nothing."""
    for page in PAGES:
        written = re.findall(r"^<!-- not run: .+ -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(written) == sum(block.reason is not None for block in blocks_of(page)), name_of(page)


def test_no_code_is_commented_out():
    """It would stand in a block that runs, and never be run."""
    for page in WITH_CODE:
        for block in blocks_of(page):
            for line in re.findall(r"^\s*# ?(.+)$", block.text if block.language == "python" else "", re.MULTILINE):
                assert not is_statement(line), f"{name_of(page)}: {line}"


def is_statement(text):
    """Whether a comment would do something without its sign."""
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    calls = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return bool(calls) or any(isinstance(node, ast.Assign | ast.Import | ast.ImportFrom) for node in body)


@pytest.mark.parametrize("line", ["model = refvt.load(path, config)  # .pth", "refvt.load(path)", "import refvt"])
def test_a_statement_that_is_commented_out_is_found(line):
    assert is_statement(line)
    assert not is_statement("1. the rows that enter")


# ---- names and calls in running text

MODULES = ("", ".data", ".weights", ".training", ".evaluation", ".conformance", ".conformance.adapters", ".backends")
NO_NAMES = {"refvt.sha256": "a key of the metadata of a file"}


def inline_code(page):
    """Every `code` outside of fenced blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))


def find(name):
    """The object with a dotted name, or None: ``refvt.data.read_clip``, ``AnnotatedVideos``.

    Raises AttributeError or ImportError if it begins with refvt and is not there.
    """
    first, *rest = name.split(".")
    if first == "refvt":
        found = refvt
        for part in rest:
            found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
        return found
    modules = [import_module(f"refvt{module}") for module in MODULES]
    return next((getattr(module, name) for module in modules if name in module.__all__), None) if not rest else None


def check_text(code):
    """Check a piece of code in running text; returns whether it names something of refvt."""
    name, call = re.match(r"([\w.]*)(\(.*\))?", code, re.DOTALL).groups()
    method = call is not None and name.startswith("model.")
    if method:
        found = getattr(refvt.HaltingVT, name.removeprefix("model."))
    else:
        found = None if not name or code in NO_NAMES else find(name)
    if found is None or call is None:
        return found is not None
    call = ast.parse(f"f{call.replace(', …', '')}", mode="eval").body
    given = [None, *call.args] if method else call.args
    inspect.signature(found).bind_partial(*given, **{word.arg: word.value for word in call.keywords})
    return True


TEXTS = sorted({(name_of(page), code) for page in PAGES for code in inline_code(page)})


def test_names_and_calls_in_the_text_exist():
    wrong, checked = [], set()
    for page, code in TEXTS:
        try:
            if check_text(code):
                checked.add(code)
        except (AttributeError, ImportError, TypeError, SyntaxError) as error:
            wrong.append(f"{page}: `{code}`: {error}")
    assert not wrong
    assert {'refvt.weights.load("digits")', "model.trace(clips, gradients=True)"} <= checked
    assert {code for _, code in TEXTS} >= set(NO_NAMES)


@pytest.mark.parametrize(
    "code",
    [
        "refvt.data.read_clips",
        "refvt.load(path, config, 1, 2, 3, 4, 5, 6)",
        "model.follow(clips)",
        "load_truth(a, b, c)",
    ],
)
def test_a_wrong_name_or_call_in_the_text_is_found(code):
    with pytest.raises((AttributeError, ImportError, TypeError)):
        check_text(code)
