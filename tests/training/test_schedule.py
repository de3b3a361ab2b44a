"""The rate at points where it is known."""

import math

import pytest

from refvt.training.schedule import learning_rate_at, ponder_weight_at


def test_warm_up_multiplies_the_cosine():
    # 10 epochs of 4 steps, 2 of them warm-up from a tenth
    rates = [learning_rate_at(step, 4, 10, 3.0, warmup_epochs=2) for step in range(40)]
    cosine = [1.5 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert rates[0] == pytest.approx(0.3)
    assert rates[4] == pytest.approx(cosine[4] * 0.55)  # half of the way from 0.1 to 1
    assert rates[8:] == pytest.approx(cosine[8:])
    assert rates[20] == pytest.approx(1.5)
    assert 0 < rates[39] < 3 * 0.002


def test_the_papers_rate_stands_still_within_an_epoch():
    rates = [learning_rate_at(step, 4, 20, 1e-5, warmup_epochs=5, per="epoch") for step in range(80)]
    assert all(len(set(rates[4 * e : 4 * e + 4])) == 1 for e in range(20))
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5 * 4] == pytest.approx(0.5e-5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.5e-5 * (1 + math.cos(math.pi * 19 / 20)))


def test_the_ponder_weight_grows_to_its_value():
    assert [ponder_weight_at(step, 4, 0.8, 2) for step in (0, 2, 4, 8, 30)] == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])
    assert ponder_weight_at(0, 4, 0.8, 0) == 0.8
