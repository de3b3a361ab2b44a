"""``backend="reference"`` trains where Numba cannot be imported: NumPy is all it needs."""

import subprocess
import sys

CODE = """if True:
    import sys

    class NoNumba:
        def find_spec(self, name, *rest):
            if name.partition(".")[0] in ("numba", "llvmlite"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, NoNumba())
    from pathlib import Path

    from refvt.training import train
    from tests.support.sliding_bars import SlidingBars, small_recipe

    recipe = small_recipe(epochs=1)
    out = Path(sys.argv[1])
    found = train(recipe, SlidingBars(8), SlidingBars(4), out, backend="reference")
    assert found.clips == 4
    assert (out / "model.safetensors").is_file()
    assert "numba" not in sys.modules
"""


def test_reference_trains_without_numba(tmp_path):
    process = subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "run")], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
