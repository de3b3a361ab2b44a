"""Layouts: which rearrangements are accepted, and what is said of those that are not."""

import numpy as np
import pytest

from refvt.conformance.arrangements import Geometry
from refvt.conformance.cases import Truth, truth_of
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.layouts import LayoutError, explain, geometry_of, rearrange


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Three clips that halt differently; T = 2 frames of S = 12 patches, D = 8, two heads."""
    case = load_manifest()["model-unequal"]
    return truth_of(case, load_arrays(case))


@pytest.mark.parametrize("case", ["model-unequal", "model-prune-two-masked", "model-fuse-then-prune", "model-tall"])
def test_geometry_knows_every_named_tensor(case: str) -> None:
    golden = load_manifest()[case]
    truth = truth_of(golden, load_arrays(golden))
    geometry = geometry_of(truth)
    for name, tensor in truth.tensors.items():
        rows = geometry.rows_of(name)
        if tensor.layout in ("parameter", "number", "decision"):
            assert rows is None or tensor.layout == "parameter", name
            continue
        assert rows is not None, name
        assert rows.count * rows.channels == tensor.value.size, name
        counts = geometry.counts(name)
        assert (counts is None) == (tensor.rows is None), name
        assert counts is None or np.array_equal(counts, tensor.rows), name


def test_rectangular_states_are_accepted(truth: Truth) -> None:
    stored = truth["blocks.2.attn.q"].value  # [75, 8]
    for shape in ((3, 25, 8), (3, 25, 2, 4), (75, 2, 4), (75, 8)):
        value, counts = rearrange("blocks.2.attn.q", stored.reshape(shape), truth)
        assert np.array_equal(value.reshape(stored.shape), stored)
        assert np.array_equal(counts, truth["blocks.2.attn.q"].rows)
    paths = truth["blocks.0.temporal_norm1"].value
    assert np.array_equal(rearrange("blocks.0.temporal_norm1", paths.reshape(3, 12, 2, 8), truth)[0], paths)


def test_packed_rows_of_living_tokens_are_accepted(truth: Truth) -> None:
    name, rows = "blocks.4.norm1", truth["blocks.4.norm1"].rows
    assert rows is not None
    assert 0 < rows.sum() < len(rows)
    packed = truth[name].value[rows]
    value, counts = rearrange(name, packed, truth)
    assert np.array_equal(counts, rows)
    assert np.array_equal(value[rows], packed)


def test_last_block_may_hold_the_class_token_alone(truth: Truth) -> None:
    name = "blocks.4.mlp"
    full = truth[name].value.reshape(3, 25, 8)
    living = truth[name].rows.reshape(3, 25)[:, 0]  # type: ignore[union-attr]
    for given in (full[:, :1], full[:, 0][living], np.where(np.arange(25)[:, None] == 0, full, np.nan)):
        value, counts = rearrange(name, given, truth)
        assert counts is not None
        assert counts.sum() == living.sum()
        assert np.array_equal(value[counts], full[:, 0][living])
    # the keys of patches are needed in the last block too: a row of NaN is not "not computed"
    hidden = np.where(np.arange(25)[:, None] == 0, truth["blocks.4.attn.k"].value.reshape(3, 25, 8), np.nan)
    _, counts = rearrange("blocks.4.attn.k", hidden, truth)
    assert np.array_equal(counts, truth["blocks.4.attn.k"].rows)


def test_a_shape_that_is_no_layout_is_refused(truth: Truth) -> None:
    with pytest.raises(LayoutError, match=r"blocks.2.attn.q: expected shape \[75, 8\], got \[74, 8\]"):
        rearrange("blocks.2.attn.q", np.zeros((74, 8)), truth)
    with pytest.raises(LayoutError, match="head"):
        rearrange("d(head.weight)", truth["d(head.weight)"].value.T, truth)


def test_explain_says_what_was_done(truth: Truth) -> None:
    q, mlp = truth["blocks.2.attn.q"].value, truth["blocks.2.mlp"].value
    orders = {
        a.says: a for a in Geometry(truth.config, 3, truth["decisions.halting_layer"].value).arrangements("embed")
    }  # type: ignore[arg-type]
    embed = truth["embed"].value
    said = {
        "the right tensor, transposed": ("blocks.2.attn.q", q.T),
        "the right tensor, heads before tokens": ("blocks.2.attn.q", q.reshape(3, 25, 2, 4).swapaxes(1, 2)),
        "the right tensor, its heads interleaved": (
            "blocks.2.attn.q",
            q.reshape(75, 2, 4).swapaxes(1, 2).reshape(75, 8),
        ),
        "the right tensor scaled by 1/√d (as is 1/T, 1/A, 1/2)": ("blocks.2.attn.q", q / 2),
        "the right tensor with the opposite sign": ("blocks.2.attn.q", -q),
        "the right tensor scaled by 0.37": ("blocks.2.attn.q", q * 0.37),
        "equals blocks.1.attn.q": ("blocks.2.attn.q", truth["blocks.1.attn.q"].value),
        "the right tensor without its skip connection": ("blocks.2.mlp", mlp - truth["blocks.2.attn.proj"].value),
        "the right tensor, frame-major token order": (
            "embed",
            embed[orders["frame-major token order"].rows.ravel()],
        ),
        "the right tensor, class token last": ("embed", embed[orders["class token last"].rows]),
    }
    for phrase, (name, value) in said.items():
        assert explain(name, value, truth) == phrase


def test_explain_claims_nothing_that_is_not_so(truth: Truth) -> None:
    rng = np.random.default_rng(0)
    q = truth["blocks.2.attn.q"].value
    assert explain("blocks.2.attn.q", q, truth) is None  # nothing is wrong
    assert explain("blocks.2.attn.q", q.reshape(3, 25, 8), truth) is None  # a layout that is accepted
    assert explain("blocks.2.attn.q", rng.standard_normal(q.shape), truth) is None
    assert explain("blocks.2.attn.q", q * (1 + 1e-4 * rng.standard_normal(q.shape)), truth) is None
    assert explain("blocks.2.attn.q", np.full(q.shape, np.nan), truth) is None
    one_wrong = q.copy()
    one_wrong[0, 0] += 1
    assert explain("blocks.2.attn.q", one_wrong.T, truth) is None
