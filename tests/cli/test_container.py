"""As in a container: an unprivileged user without a home or a cache, an installation that cannot be written.

Root becomes a user that has no name; it may read what root may read, and write nothing but its folder. Any other user
stays who it is, with a copy of the package that is read-only.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 54321  # a number that no user has
READS = "+dac_read_search"
BECOME = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
BECOME += [f"--inh-caps={READS}", f"--ambient-caps={READS}"]
SEES = "import os; print(os.access({root!r}, os.W_OK), os.path.isabs(os.path.expanduser('~')))"


class Container:
    """A folder ``here`` of the unprivileged user, and how to run Python as that user."""

    def __init__(self, here, root, become):
        self.here, self.root, self.become = here, root, become

    def run(self, *arguments, cwd=None):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        if not self.become:
            environment["HOME"] = "~"
        command = [*self.become, sys.executable, *arguments]
        where = self.here if cwd is None else cwd
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=3600)


@pytest.fixture
def container(tmp_path):
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to become another user")
        here = Path("/tmp", f"refvt-nobody-{os.getpid()}")  # every user may enter the folder above
        here.mkdir()
        os.chown(here, NOBODY, NOBODY)
        found = Container(here, ROOT, BECOME)
    else:
        here, root = tmp_path / "here", tmp_path / "installed"
        here.mkdir()
        for name in ("refvt", "golden"):
            shutil.copytree(ROOT / name, root / name)
        for path in (*root.rglob("*"), root):
            path.chmod(path.stat().st_mode & ~0o222)
        found = Container(here, root, [])
    try:
        sees = found.run("-c", SEES.format(root=str(found.root / "refvt")))
        if sees.stdout.split() != ["False", "False"]:
            pytest.skip(f"cannot become a user who cannot write: {sees.stdout} {sees.stderr[-200:]}")
        yield found
    finally:
        shutil.rmtree(here, ignore_errors=True)
        for path in tmp_path.rglob("*"):
            path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.slow  # every process compiles its kernels: there is no folder to keep them in
def test_the_demo_works(container):
    done = container.run("-m", "refvt", "demo")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in container.here.iterdir()} == {"refvt-demo"}  # no folder named ~
    assert {"digits.png", "bikes.gif"} <= {path.name for path in (container.here / "refvt-demo").iterdir()}


def test_where_nothing_can_be_written_the_demo_says_so_at_once(container):
    done = container.run("-m", "refvt", "demo", cwd=container.root)
    assert done.returncode == 2
    assert done.stderr == "refvt: [Errno 13] Permission denied: 'refvt-demo'\n"
    assert done.stdout == ""  # before the long work
