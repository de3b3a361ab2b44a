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


def released(epochs):
    """The rates of the released configurations, epoch by epoch, as their schedulers are documented."""
    warmup = [1e-5 * (0.1 + 0.9 * e / 4) for e in range(5)]
    return warmup + [1e-5 * (1 + math.cos(math.pi * (e - 5) / epochs)) / 2 for e in range(5, epochs)]


@pytest.mark.parametrize("epochs", [20, 50])
def test_the_released_rates(epochs):
    rates = [learning_rate_at(3 * e + e % 3, 3, epochs, 1e-5, 5, 0.1, "epoch", "consecutive") for e in range(epochs)]
    assert rates == pytest.approx(released(epochs), rel=1e-14)
    assert rates[:6] == pytest.approx([1.0e-6, 3.25e-6, 5.5e-6, 7.75e-6, 1.0e-5, 1.0e-5])
    if epochs == 20:
        assert [round(rates[e] * 1e6, 2) for e in (10, 15, 19)] == [8.54, 5.0, 2.06]


# What MMEngine 0.10.7 sets, in units of 1e-6: LinearLR(start_factor=0.1, begin=0, end=5) and
# CosineAnnealingLR(T_max=epochs, begin=5), by epoch; and both built for steps: 6 epochs of 3 steps, end=2, begin=2.
MMENGINE = {
    20: [
        1,
        3.25,
        5.5,
        7.75,
        10,
        10,
        9.93844170298,
        9.75528258148,
        9.45503262094,
        9.04508497187,
        8.53553390593,
        7.93892626146,
        7.2699524987,
        6.54508497187,
        5.7821723252,
        5,
        4.2178276748,
        3.45491502813,
        2.7300475013,
        2.06107373854,
    ],
    50: [
        1,
        3.25,
        5.5,
        7.75,
        10,
        10,
        9.99013364214,
        9.96057350657,
        9.91143625364,
        9.84291580564,
        9.75528258148,
        9.64888242944,
        9.52413526233,
        9.38153340022,
        9.22163962751,
        9.04508497187,
        8.85256621388,
        8.64484313711,
        8.42273552964,
        8.18711994874,
        7.93892626146,
        7.67913397489,
        7.40876837051,
        7.12889645783,
        6.84062276342,
        6.54508497187,
        6.24344943582,
        5.93690657293,
        5.62666616782,
        5.31395259765,
        5,
        4.68604740235,
        4.37333383218,
        4.06309342707,
        3.75655056418,
        3.45491502813,
        3.15937723658,
        2.87110354217,
        2.59123162949,
        2.32086602511,
        2.06107373854,
        1.81288005126,
        1.57726447036,
        1.35515686289,
        1.14743378612,
        0.954915028125,
        0.77836037249,
        0.618466599781,
        0.47586473767,
        0.351117570559,
    ],
}
MMENGINE_STEPS = [
    1,
    2.8,
    4.6,
    6.4,
    8.2,
    10,
    10,
    9.92403876506,
    9.69846310393,
    9.33012701892,
    8.83022221559,
    8.21393804843,
    7.5,
    6.71010071663,
    5.86824088833,
    5,
    4.13175911167,
    3.28989928337,
]


@pytest.mark.parametrize("epochs", MMENGINE)
def test_the_released_rates_are_those_that_mmengine_set(epochs):
    rates = [learning_rate_at(e, 1, epochs, 1e-5, 5, 0.1, "epoch", "consecutive") * 1e6 for e in range(epochs)]
    assert rates == pytest.approx(MMENGINE[epochs], rel=1e-11)  # stored in twelve digits


def test_consecutive_rates_per_step_are_those_that_mmengine_set():
    rates = [learning_rate_at(s, 3, 6, 1e-5, 2, 0.1, "step", "consecutive") * 1e6 for s in range(18)]
    assert rates == pytest.approx(MMENGINE_STEPS, rel=1e-11)


@pytest.mark.torch
def test_the_released_rates_are_those_of_pytorchs_schedulers():
    torch = pytest.importorskip("torch")

    def rates_of(number, make):
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=1e-5)
        scheduler, found = make(optimiser), []
        for _ in range(number):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
        return found

    schedulers = torch.optim.lr_scheduler
    theirs = rates_of(5, lambda o: schedulers.LinearLR(o, start_factor=0.1, total_iters=4))
    theirs += rates_of(15, lambda o: schedulers.CosineAnnealingLR(o, T_max=20))
    ours = [learning_rate_at(e, 1, 20, 1e-5, 5, 0.1, "epoch", "consecutive") for e in range(20)]
    assert ours == pytest.approx(theirs, rel=1e-13)  # they multiply from epoch to epoch


def test_consecutive_schedules_at_their_edges():
    step = [learning_rate_at(s, 4, 6, 2.0, 1.5, 0.2, "step", "consecutive") for s in range(24)]
    assert step[:7] == pytest.approx([2 * (0.2 + 0.8 * s / 5) for s in range(6)] + [2.0])
    assert step[6:] == pytest.approx([1 + math.cos(math.pi * (s - 6) / 24) for s in range(6, 24)])
    none = [learning_rate_at(e, 1, 4, 2.0, 0, 0.1, "epoch", "consecutive") for e in range(4)]
    assert none == pytest.approx([1 + math.cos(math.pi * e / 4) for e in range(4)])
    assert learning_rate_at(0, 1, 4, 2.0, 1, 0.1, "epoch", "consecutive") == pytest.approx(0.2)
    assert learning_rate_at(1, 1, 4, 2.0, 1, 0.1, "epoch", "consecutive") == pytest.approx(2.0)
    broken = [learning_rate_at(e, 1, 4, 2.0, 2.5, 0.1, "epoch", "consecutive") for e in range(3)]
    assert broken == pytest.approx([0.2, 2 * (0.1 + 0.9 / 1.5), 2.0])


def test_the_ponder_weight_grows_to_its_value():
    assert [ponder_weight_at(step, 4, 0.8, 2) for step in (0, 2, 4, 8, 30)] == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])
    assert ponder_weight_at(0, 4, 0.8, 0) == 0.8
