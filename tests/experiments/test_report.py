"""Spreads, tables, and files that are whole or not there."""

import pytest

from refvt.experiments.report import Findings, Table, render_page, spread, write

REPORT = {
    "experiment": "trial",
    "command": "refvt experiment trial --seeds 2",
    "refvt": "1.2.3",
    "environment": {"date": "2031-01-02", "cpu": "abacus", "cores": 5, "threads": 3, "packages": {"numpy": "7"}},
    "recipe": {"epochs": 9, "changing_ponder": -2.0, "data_settings": {}},
    "test_clips": 100,
    "seeds": [0, 1],
    "jobs": 2,
    "trained": 3,
    "seconds": 600.0,
    "start": "They start from nothing.",
    "runs": [
        {
            "run": "only",
            "seed": 1,
            "top1": 0.625,
            "last_change": -0.0123,
            "gflops": 0.012344,
            "saved_by_halting": 0.25,
            "tokens_per_layer": [9, 4.25],
            "seconds": 60.4,
        }
    ],
}


def findings(draw):
    table = Table("Numbers", ("thing", "n"), [("one", "1"), ("seven", "7777")])
    return Findings("A trial", "It repeats nothing.", {}, [table], ["Nothing came out."], {"": draw, "-two": draw})


def test_spread_is_the_mean_and_its_95_percent_interval():
    # of 1, 2, 6: s = √7; t of two degrees of freedom is 4.3027 (tables of Student's distribution)
    assert spread([1, 2, 6]) == (3.0, pytest.approx(4.3027 * (7 / 3) ** 0.5, rel=1e-4), [1.0, 2.0, 6.0])
    assert spread([0.5]) == (0.5, None, [0.5])


def test_spreads_are_shown_with_their_units():
    assert spread([0.5, 0.7]).percent() == "60.0 ± 127.1 %"
    assert spread([0.5]).percent() == "50.0 %"
    assert spread([0.01234]).number() == "0.01234"
    assert spread([0.012, 0.014]).number() == "0.01300 ± 0.01271"
    assert spread([24.2]).number() == "24.20"
    for value in (0.04303, 0.7):
        assert spread([value] * 3).number().startswith(str(value))  # a cost that is the same for every seed
        assert "±" not in spread([value] * 3).number()
    assert spread([0.0]).number() == "0"
    assert spread([-0.1, 0.0]).change() == "-5.0 ± 63.5"
    assert spread([0.012]).change() == "+1.2"


def test_a_claim_is_confirmed_contradicted_or_not_told_apart():
    assert spread([1.0, 1.1, 1.2]).verdict(1) == "confirmed"
    assert spread([-1.0, -1.1, -1.2]).verdict(-1) == "confirmed"
    assert spread([1.0, 1.1, 1.2]).verdict(-1) == "contradicted"
    assert spread([-1.0, 1.1, 1.2]).verdict(1) == spread([5.0]).verdict(1) == "not told apart from zero"


def test_the_page_holds_what_the_report_says():
    page = render_page(REPORT, findings(None))
    assert page.startswith("# A trial\n\nIt repeats nothing.\n")
    assert "- Nothing came out.\n" in page
    assert "| thing |    n |\n| ----- | ---: |\n| one   |    1 |\n| seven | 7777 |\n" in page
    assert "(experiment-trial.png)" in page
    assert "(experiment-trial-two.png)" in page
    assert "```sh\nrefvt experiment trial --seeds 2\n```" in page
    for words in (
        "refvt 1.2.3, 2031-01-02, abacus, 5 cores, 3 threads; numpy 7",
        "3 runs, 10 minutes",
        "from nothing. Seeds 0, 1;",
        "variant `changing_ponder`",
        "the 100 test clips alone an accuracy is uncertain by ±9.5 points",  # 1.96 √(0.625 · 0.375 / 100)
        "In the last epoch accuracy changed by -1.2 points",
    ):
        assert words in page
    cells = [cell.strip() for cell in page.rstrip().splitlines()[-1].strip("|").split("|")]
    assert cells == ["only", "1", "62.5 %", "-1.2", "0.01234", "25.0 %", "9.0 4.2", "60"]


def test_a_page_of_the_papers_own_losses_names_no_variant():
    recipe = {**REPORT["recipe"], "changing_ponder": 1.0}
    page = render_page({**REPORT, "recipe": recipe, "runs": []}, findings(None))
    assert "changing_ponder`" not in page
    assert "last epoch" not in page


def test_files_are_written_and_replaced(tmp_path):
    def draw(path):
        path.write_bytes(b"picture")

    names = [path.name for path in write(REPORT, findings(draw), tmp_path)]
    assert names == [f"experiment-trial{end}" for end in (".png", "-two.png", ".json", ".md")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert write(REPORT, findings(draw), tmp_path)


def test_a_picture_that_cannot_be_drawn_leaves_no_page_that_speaks_of_it(tmp_path):
    def fail(path):
        raise OSError("no ink")

    with pytest.raises(OSError, match="no ink"):
        write(REPORT, findings(fail), tmp_path)
    assert list(tmp_path.iterdir()) == []
