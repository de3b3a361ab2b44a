"""A candidate is run where it can do no harm: it may raise, hang, end its process or print megabytes.

``Isolated`` runs it in a child process that is forked once and serves many cases; one that has died or hung is
replaced. What the candidate prints is discarded. The memory that the child's C library hands out is filled with a
pattern first (``judgement.POISON``), so that values that were never written are recognised.

``InProcess`` runs the candidate in this process: for refvt's own backends, where there is no ``fork``, and where fork
is unsafe because JAX or PyTorch's CUDA already runs here. A time limit is then kept with a thread, which is left
behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from refvt.array import Array
from refvt.conformance.candidates import BackwardFailed, Candidate, CannotFollow, collected_warnings
from refvt.conformance.cases import AnyCase, ModelCase, OperationCase, TrainingCase

__all__ = ["Answer", "CannotLoad", "InProcess", "Isolated", "Request", "Runner", "runner_for"]

M_PERTURB = -6
PERTURBATION = 0x01  # glibc fills what it hands out with the complement of this byte: POISON
LOADING_TIME = 120.0  # seconds that the import of a candidate may take at least


class CannotLoad(ValueError):  # noqa: N818 - it reads as what happened
    """A candidate that could not be loaded at all; the message says why in one sentence."""


@dataclass(frozen=True)
class Request:
    """One question: the case, and the names that its truth knows. forced: decisions imposed on an operation."""

    case: AnyCase
    names: frozenset[str]
    forced: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: status "given", "not given" or "error", the named tensors, and a sentence.

    unknown: names that the case does not have. mutated: inputs that the candidate changed. warnings: sentences of an
    adapter about what it was given.
    """

    status: str
    tensors: dict[str, Array] = field(default_factory=dict)
    sentence: str = ""
    unknown: tuple[str, ...] = ()
    mutated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Runner(Protocol):
    """Something that asks a candidate."""

    def ask(self, request: Request) -> Answer:
        """The candidate's answer; an error of the candidate is an answer too."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(candidate, *arguments)`` where the candidate runs; an Answer if that raises, hangs or dies."""

    def close(self) -> None:
        """End what was started."""


def runner_for(load: Callable[[], Candidate], timeout: float, isolate: bool = True) -> Runner:
    """A runner for the candidate that ``load`` returns. CannotLoad if it cannot be loaded."""
    if isolate and _fork_is_safe():
        return Isolated(load, timeout)
    return InProcess(_loaded(load), timeout) if isolate else InProcess(load(), None)


def _fork_is_safe() -> bool:
    if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        return False
    if getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None):
        return False
    torch = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_initialized()


# ---- one question


def answer(candidate: Candidate, request: Request) -> Answer:
    """Ask a candidate in this process. Every exception but KeyboardInterrupt becomes an answer."""
    with collected_warnings() as warned:
        found = _answer(candidate, request)
    return replace(found, warnings=tuple(warned))


def _answer(candidate: Candidate, request: Request) -> Answer:
    case = request.case
    before = {name: np.array(value) for name, value in _inputs(case).items()}
    try:
        if isinstance(case, ModelCase):
            found = candidate.answer_model(case)
        elif isinstance(case, TrainingCase):
            found = candidate.answer_training(case)
        else:
            found = candidate.answer_operation(case, request.forced)
    except CannotFollow as reason:
        return Answer("not given", sentence=str(reason))
    except BackwardFailed as failed:
        known = {name: value for name, value in failed.results.items() if name in request.names}
        return Answer("error", known, f"its backward raised {_sentence(failed.__cause__ or failed)}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Answer("error", sentence=_sentence(error))
    after = _inputs(case)
    mutated = [name for name, value in before.items() if not _same(after.get(name), value)]
    known = {name: value for name, value in found.items() if name.rpartition(": ")[2] in request.names}
    unknown = tuple(sorted(set(found) - set(known)))[:20]
    status = "given" if known else "not given"
    sentence = "" if found else "it returned nothing"
    return Answer(status, known, sentence, unknown, tuple(mutated))


def _same(after: Any, before: Array) -> bool:
    kept = isinstance(after, np.ndarray) and after.dtype == before.dtype
    return kept and np.array_equal(after, before, equal_nan=before.dtype.kind == "f")


def _inputs(case: AnyCase) -> dict[str, Array]:
    if isinstance(case, OperationCase):
        found = {f"d({name})": value for name, value in case.cotangents.items()}
        return {**case.arguments, **found}
    if isinstance(case, TrainingCase):
        return {**case.start, **case.batch}
    named = {"clips": case.clips, "labels": case.labels, "motion_labels": case.motion_labels}
    return {**case.parameters, **named}


def _sentence(error: BaseException) -> str:
    """The exception in one line, with the place in the candidate's code where it was raised."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code})"
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "…"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/refvt/conformance/" not in f.filename]
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _guarded(candidate: Candidate, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """``function(candidate, *arguments)``. Every exception but KeyboardInterrupt becomes an answer."""
    try:
        return function(candidate, *arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Answer("error", sentence=_sentence(error))


def _loaded(load: Callable[[], Candidate]) -> Candidate:
    """The candidate. Every exception but KeyboardInterrupt becomes CannotLoad."""
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        own = isinstance(error, (ValueError, TypeError)) and str(error).startswith("candidate: ")
        raise CannotLoad(str(error) if own else f"candidate: it could not be loaded: {_sentence(error)}") from error


# ---- in this process


class InProcess:
    """Runs the candidate here; ``timeout`` None: without a time limit and without a thread."""

    def __init__(self, candidate: Candidate, timeout: float | None) -> None:
        self.candidate, self.timeout = candidate, timeout

    def ask(self, request: Request) -> Answer:
        """The candidate's answer, or an error once the time is over."""
        found: Answer = self.call(answer, request)
        return found

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(candidate, *arguments)``, or an Answer with the error."""
        if self.timeout is None:
            return _guarded(self.candidate, function, arguments)
        found: list[Any] = []

        def work() -> None:
            found.append(_guarded(self.candidate, function, arguments))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.timeout)
        return found[0] if found else _too_long(self.timeout)

    def close(self) -> None:
        """Nothing was started."""


def _too_long(seconds: float) -> Answer:
    return Answer("error", sentence=f"it did not return within {seconds:g} s")


# ---- in a child process


class Isolated:
    """Runs the candidate in a forked child process, which is replaced when it has died or hung."""

    def __init__(self, load: Callable[[], Candidate], timeout: float) -> None:
        self.load, self.timeout = load, timeout
        self._process: Any = None
        self._connection: Any = None
        self._start()

    def ask(self, request: Request) -> Answer:
        """The candidate's answer; an error if the child hung or died, and the next question gets a new child."""
        found = self.call(answer, request)
        if not isinstance(found, Answer):
            return self._end(Answer("error", sentence="its process returned no answer"))
        return found

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(candidate, *arguments)`` in the child; an Answer with the error if it hung or died."""
        try:
            if self._process is None:
                self._start()
            self._connection.send((function, arguments))
            if not self._connection.poll(self.timeout):
                return self._end(_too_long(self.timeout))
            return self._connection.recv()
        except CannotLoad as error:
            return self._end(Answer("error", sentence=str(error)))
        except (EOFError, OSError):
            self._process.join(5)
            return self._end(Answer("error", sentence=_death(self._process.exitcode)))
        except Exception as error:  # what came through the pipe is no answer
            return self._end(Answer("error", sentence=f"its process returned no answer ({type(error).__name__})"))

    def close(self) -> None:
        """End the child."""
        self._end(Answer("not given"))

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._connection, self.load))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fork beside threads: ``_fork_is_safe`` knows those that matter
            self._process.start()
        theirs.close()
        try:
            limit = max(LOADING_TIME, self.timeout)
            ready = self._connection.poll(limit)
            problem = self._connection.recv() if ready else f"candidate: it could not be loaded within {limit:g} s"
        except (EOFError, OSError):
            self._process.join(5)
            problem = f"candidate: while it was loaded, {_death(self._process.exitcode)}"
        if problem is not None:
            self._end(Answer("error"))
            raise CannotLoad(problem)

    def _end(self, found: Answer) -> Answer:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # the child, and what it has started
            process.kill()
            process.join(5)
            self._connection.close()
        return found


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
    return f"it ended its process with exit code {code}"


def _serve(connection: Any, other_end: Any, load: Callable[[], Candidate]) -> None:
    """The child: load the candidate, say so, and answer until the parent is gone."""
    gc.freeze()  # the parent's garbage is not collected here: PyAV's frames would wait for threads of the parent
    other_end.close()
    os.setsid()
    warnings.resetwarnings()  # a test runner may have turned warnings into errors
    faulthandler.disable()  # it writes to a copy of the parent's error stream
    _silence()
    _poison_memory()
    torch = sys.modules.get("torch")
    if torch is not None:  # OpenMP's threads do not survive a fork
        torch.set_num_threads(1)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        _load_and_answer(connection, load)


def _load_and_answer(connection: Any, load: Callable[[], Candidate]) -> None:
    try:
        candidate = _loaded(load)
    except CannotLoad as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_guarded(candidate, function, arguments))


def _silence() -> None:
    """Discard what the candidate prints, also from C."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def _poison_memory() -> None:
    """Ask glibc to fill memory that it hands out; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_PERTURB, PERTURBATION)
