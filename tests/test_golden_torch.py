"""The golden files can be generated again, and the PyTorch model that made them is right."""

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def test_golden_files_can_be_generated_again(capsys):
    from refvt.cli import main

    assert main(["golden", "generate", "--check"]) == 0, capsys.readouterr().out
    assert "FAILS" not in capsys.readouterr().out


def test_the_torch_model_obeys_identities_and_finite_differences(capsys):
    from golden.verify import main

    assert main() == 0, capsys.readouterr().out
