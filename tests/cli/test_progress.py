"""Progress bars: what they show, and the one hint where tqdm is missing."""

import sys

import pytest

from refvt.cli import progress
from refvt.cli.progress import EvaluationBar, ProgressBar, TrainingBar
from refvt.evaluation import Record
from refvt.training import train
from tests.support.sliding_bars import SlidingBars, small_recipe


@pytest.fixture
def terminal(monkeypatch):
    """As if stderr were a terminal."""
    monkeypatch.delenv("REFVT_QUIET", raising=False)
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)


@pytest.fixture
def clock(monkeypatch):
    """clock.now: the seconds that have passed since the last plain line of any bar; stderr is a pipe."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.delenv("REFVT_QUIET", raising=False)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress._PlainLines, "printed", 0.0)
    return clock


@pytest.fixture
def no_tqdm(monkeypatch):
    """As if tqdm were not installed."""
    monkeypatch.delenv("REFVT_QUIET", raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    progress._find_tqdm.cache_clear()
    yield
    progress._find_tqdm.cache_clear()


def test_the_bar_of_a_run_shows_losses_tokens_and_gflops(tmp_path, capsys, terminal):
    data = SlidingBars(), SlidingBars(6)
    train(small_recipe(epochs=1), *data, tmp_path, backend="reference", observer=TrainingBar())
    shown = capsys.readouterr().err
    for part in ("4/4", "loss", "rec", "ponder", "motion", "acc", "tokens 13", "GFLOPs", "test"):
        assert part in shown


def test_the_bar_of_an_evaluation_shows_the_figures_so_far(capsys, terminal):
    bar = EvaluationBar(3)
    bar.add(Record(0, [1], [], None, [0.0, 2.0], 0.25, [5]))
    bar.add(Record(1, [0], [], None, [0.0, 2.0], 0.75, [5]))
    bar.add(Record(2, [0], [], "cut short"))
    bar.close()
    shown = capsys.readouterr().err
    for part in ("3/3", "right=50.0%", "GFLOPs=0.50", "skipped=1"):
        assert part in shown


@pytest.mark.parametrize("visible", [True, False])
def test_problems_are_printed_with_and_without_a_bar(capsys, visible):
    bar = TrainingBar(visible)
    bar.on_start(4, 0)
    bar.on_unreadable_clip("film 3 is cut")
    bar.on_end()
    assert "refvt: film 3 is cut\n" in capsys.readouterr().err


def test_without_tqdm_there_is_one_hint_and_no_bar(tmp_path, capsys, no_tqdm):
    data = SlidingBars(), SlidingBars(6)
    train(small_recipe(epochs=1), *data, tmp_path, backend="reference", observer=TrainingBar())
    with ProgressBar(2, "run") as bar:
        bar.describe("one")
        bar.advance()
    assert capsys.readouterr().err == 'refvt: for a progress bar: pip install "refvt[demo]"\n'
    TrainingBar(visible=False).on_unreadable_clip("film 3 is cut")
    assert capsys.readouterr().err == "refvt: film 3 is cut\n"


def test_a_pipe_gets_a_plain_line_every_ten_seconds_at_most(capsys, clock):
    for bar in (ProgressBar(40, "step"), ProgressBar(60, "clip")):  # one after the other: together
        for number in range(bar._bar.total):
            clock.now += 1
            bar._bar.last_print_t -= 1  # tqdm's own clock
            bar.advance(f"text {number}")
        bar.close()
    said = capsys.readouterr().err
    assert "\r" not in said
    shares = [line.split(" ")[0] for line in said.splitlines()]
    assert shares == ["25%", "50%", "75%", "100%", "17%", "33%", "50%", "67%", "83%", "100%"]
    assert all("text" in line for line in said.splitlines())


def test_what_is_quick_prints_nothing_into_a_pipe(capsys, clock):
    with ProgressBar(2, "step") as bar:
        bar.describe("one")
        bar.advance("two")
        clock.now += 9.9
        bar.advance("three")
    assert capsys.readouterr().err == ""


def test_refvt_quiet_leaves_the_bar_out_but_not_the_problems(capsys, terminal, monkeypatch):
    monkeypatch.setenv("REFVT_QUIET", "1")
    bar = TrainingBar()
    bar.on_start(4, 0)
    bar.on_unreadable_clip("film 3 is cut")
    bar.on_end()
    assert capsys.readouterr().err == "refvt: film 3 is cut\n"
