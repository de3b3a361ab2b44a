"""The scores of a run: those of the trace, in the places of the output's tokens."""

import numpy as np
import pytest

from refvt.evaluation.scores import halting_scores
from tests.support.halting_pages import run_model


@pytest.mark.parametrize("full_ponder", [True, False])
def test_scores_and_remainders_make_up_the_output(full_ponder):
    model, clips, output = run_model(full_ponder, clips=2)
    scores, remainders = halting_scores(model, clips, output)
    halting_layer = output.decisions.halting_layer
    assert (halting_layer[:, 1:] > halting_layer[:, :1]).any() == full_ponder  # some outlive CLS
    assert np.array_equal(np.isnan(scores), ~output.alive)
    assert np.array_equal(np.isnan(remainders), np.isnan(output.ponder))
    known = halting_layer > 0
    np.testing.assert_allclose((halting_layer + remainders)[known], output.ponder[known], rtol=1e-6)

    sums = np.nancumsum(scores, axis=1)  # [B, L, N']
    entered = output.alive.sum(axis=1)  # [B, N'] number of layers
    for b, k in np.argwhere(known):
        last = halting_layer[b, k]
        assert entered[b, k] == last
        assert sums[b, last - 1, k] > 1 - model.config.epsilon
        before = sums[b, last - 2, k] if last > 1 else 0.0
        assert before <= 1 - model.config.epsilon
        assert before + remainders[b, k] == pytest.approx(1, abs=1e-6)


def test_scores_are_the_sigmoid_of_the_logits():
    model, clips, output = run_model(True)
    scores, _ = halting_scores(model, clips, output)
    trace, c = model.trace(clips, execution="compact", decisions=output.decisions), model.config
    for layer in range(1, c.joint_depth):
        entered = output.alive[0, layer - 1]
        logit = trace[f"joint.{layer}.logit"][entered].astype(np.float64)
        expected = 1 / (1 + np.exp(c.halting_center - c.halting_scale * logit))
        np.testing.assert_allclose(scores[0, layer - 1, entered], expected, rtol=1e-6)
    assert (scores[0, -1][output.alive[0, -1]] == 1).all()


@pytest.mark.parametrize("full_ponder", [True, False])
def test_every_token_halts_at_once_and_the_later_layers_are_never_computed(full_ponder):
    model, clips, output = run_model(full_ponder, halting_scale=1.0, halting_center=-50.0)
    scores, remainders = halting_scores(model, clips, output)
    assert (output.decisions.halting_layer == 1).all()
    assert np.isnan(scores[:, 1:]).all()
    assert (scores[:, 0] > 0.99).all()
    assert (remainders == 1).all()  # all of the weight is the remainder
