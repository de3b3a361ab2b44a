"""The forms of a candidate, and how each is asked for its answer to a case.

A candidate is a function of a ``ModelCase``, or an object with operations as attributes, or both. ``resolve`` finds one
by name (``module:object``, also from the current folder), ``wrap`` recognises its form.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.cases import ModelCase, OperationCase, TrainingCase
from refvt.ops import Operation, operations

__all__ = [
    "BackwardFailed",
    "Candidate",
    "CannotFollow",
    "OperationCandidate",
    "call",
    "collected_warnings",
    "resolve",
    "to_array",
    "warn",
    "wrap",
]

_WARNINGS: ContextVar[list[str]] = ContextVar("warnings")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """A context that collects what ``warn`` is called with while the candidate answers one case."""
    found: list[str] = []
    token = _WARNINGS.set(found)
    try:
        yield found
    finally:
        _WARNINGS.reset(token)


def warn(text: str) -> None:
    """Add a warning to the report of the case that is being answered; outside of a check nothing happens."""
    found = _WARNINGS.get(None)
    if found is not None and text not in found:
        found.append(text)


class CannotFollow(Exception):  # noqa: N818 - no error: the candidate does not do what a case needs
    """Raised for a case that a candidate cannot compute; the message says why. The case is then "not given"."""


class BackwardFailed(Exception):  # noqa: N818 - it reads as what happened
    """A backward raised an exception (``__cause__``); ``results`` are those of the forward."""

    def __init__(self, results: dict[str, Array]) -> None:
        super().__init__("the backward raised an exception")
        self.results = results


@dataclass(frozen=True)
class OperationCandidate:
    """One operation of a candidate; backward: None if it was not given; cached: the forward returns (y, cache)."""

    operation: Operation
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    cached: bool


@dataclass(frozen=True)
class Candidate:
    """A candidate of any form: ``model(case)`` or None, and its operations by name."""

    name: str
    model: Callable[[ModelCase], Any] | None = None
    operations: Mapping[str, OperationCandidate] = field(default_factory=dict)
    training: Callable[[TrainingCase], Mapping[str, Array]] | None = None  # refvt's own backends have it

    def answer_training(self, case: TrainingCase) -> dict[str, Array]:
        """Losses, decisions and final parameters of a training run."""
        if self.training is None:
            raise CannotFollow("the candidate does not train")
        return dict(self.training(case))

    def answer_model(self, case: ModelCase) -> dict[str, Array]:
        """The named tensors that the candidate returns for a model's case. TypeError if they cannot be read."""
        if self.model is None:
            raise CannotFollow("the candidate has no function of a case")
        answer = self.model(case)
        if answer is None:
            return {}
        if not isinstance(answer, Mapping):
            raise TypeError(f"expected a mapping from names to arrays, got {type(answer).__name__}")
        return {str(name): to_array(str(name), value) for name, value in answer.items() if value is not None}

    def answer_operation(self, case: OperationCase, forced: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Results of an operation by name, and its gradients as ``d(argument)`` if it has a backward."""
        op = self.operations.get(case.operation)
        if op is None:
            raise CannotFollow(f"the candidate has no {case.operation}")
        arguments = {**case.arguments, **(forced or {})}
        answer = call(op, arguments, case.settings)
        cache = None
        if op.cached:
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise TypeError(f"{case.operation}_forward: expected (result, cache), got {_describe(answer)}")
            answer, cache = answer
        names = tuple(op.operation.results)
        found = _named(names, answer, case.operation)
        if op.backward is not None:
            cotangents = [case.cotangents[name] for name in op.operation.differentiable]
            wrapped = tuple(f"d({name})" for name in op.operation.gradients)
            try:
                found |= _named(wrapped, op.backward(*cotangents, cache), f"{case.operation}_backward")
            except Exception as error:
                raise BackwardFailed(found) from error
        return found


def _named(names: tuple[str, ...], answer: Any, what: str) -> dict[str, Array]:
    """Results by name: a tuple or a list of as many, or one alone."""
    if isinstance(answer, Mapping):
        answer = tuple(answer.get(name, answer.get(name[2:-1])) for name in names)
    values = tuple(answer) if isinstance(answer, tuple | list) and len(names) > 1 else (answer,)
    if len(names) == 1 and isinstance(answer, tuple | list) and len(answer) == 1:
        values = (answer[0],)
    if len(values) != len(names):
        expected = ", ".join(names)
        raise TypeError(f"{what}: expected {len(names)} results ({expected}), got {_describe(answer)}")
    return {name: to_array(name, value) for name, value in zip(names, values, strict=True) if value is not None}


def call(op: OperationCandidate, arguments: Mapping[str, Array], settings: Mapping[str, Any]) -> Any:
    """Call a forward: by name if it knows the names, else in the order of the contract."""
    given = {**arguments, **settings}
    try:
        signature = inspect.signature(op.forward)
    except (TypeError, ValueError):
        return op.forward(**given)
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds or set(given) <= set(signature.parameters):
        return op.forward(**given)
    optional = op.operation.optional
    ordered = [arguments[name] for name in op.operation.arguments if name in arguments and name not in optional]
    ordered += [settings[name] for name in op.operation.settings if name in settings]
    extra = {name: arguments[name] for name in optional if name in arguments}
    if set(extra) <= set(signature.parameters):
        call: tuple[list[Any], dict[str, Any]] = ordered, extra
    else:  # optional arguments in order, None for those that the case does not give
        last = max(i for i, name in enumerate(optional) if name in arguments)
        call = [*ordered, *(arguments.get(name) for name in optional[: last + 1])], {}
    try:
        signature.bind(*call[0], **call[1])
    except TypeError:
        missing = ", ".join(extra) or ", ".join(given)
        raise CannotFollow(f"{op.operation.name} takes no {missing}") from None
    return op.forward(*call[0], **call[1])


def to_array(name: str, value: Any) -> Array:
    """A NumPy array from anything with ``__array__`` or DLPack, a number or a list. TypeError for anything else."""
    if isinstance(value, np.ndarray):
        array: Array = value
    elif hasattr(value, "detach") and hasattr(value, "cpu"):  # PyTorch
        value = value.detach().cpu()
        array = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.resolve_neg().numpy()
    elif hasattr(value, "__array__") or isinstance(value, int | float | bool | list | tuple):
        array = np.asarray(value)
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    if array.dtype.name == "bfloat16":  # ml_dtypes, as JAX has it
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name}: expected an array of numbers, got {array.dtype}")
    return np.array(array)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    return f"one {type(value).__name__}"


# ---- recognition


def wrap(candidate: Any, name: str) -> Candidate:
    """Recognise the form of a candidate. TypeError says what was expected if it has none."""
    if isinstance(candidate, Candidate):
        return candidate
    found = _operations_of(candidate)
    alone = _operation_alone(candidate)
    if alone is not None:
        return Candidate(name, None, {alone.operation.name: alone})
    model = candidate if callable(candidate) and not inspect.ismodule(candidate) else None
    if isinstance(candidate, type):  # a class: its operations are static, or it is made without arguments
        model = None
        if any(not isinstance(inspect.getattr_static(candidate, n, None), staticmethod) for n in _attributes(found)):
            found = _operations_of(candidate())
    if found and model is not None and not _takes_a_case(candidate):
        model = None
    if model is None and not found:
        raise TypeError(
            f"candidate: {name}: expected a function of a case, or an object with operations such as "
            f"attention_forward or halt_tokens, got {type(candidate).__name__} without any"
        )
    if not found and _signature(candidate) is not None and not _takes_a_case(candidate):
        raise TypeError(
            f"candidate: {name}: expected a function of one argument, the case, got a function of "
            f"{str(_signature(candidate))[:200]}. Is it an operation? Then give it the operation's name, such as "
            "halt_tokens, or put it under that name into a class or a dict"
        )
    return Candidate(name, model, found)


def _signature(candidate: Any) -> inspect.Signature | None:
    """None for what is not called from Python alone."""
    try:
        return inspect.signature(candidate)
    except (TypeError, ValueError):
        return None


def _takes_a_case(candidate: Any) -> bool:
    signature = _signature(candidate)
    try:
        return signature is not None and bool(signature.bind(None))
    except TypeError:
        return False


def _attributes(found: Mapping[str, OperationCandidate]) -> list[str]:
    return [f"{name}{suffix}" for name in found for suffix in ("", "_forward", "_backward")]


def _operations_of(candidate: Any) -> dict[str, OperationCandidate]:
    """The operations that an object, a module or a mapping has as attributes."""
    if isinstance(candidate, Mapping):
        entries = dict(candidate)
    else:
        entries = {}
        for name in operations():
            for attribute in (name, f"{name}_forward", f"{name}_backward"):
                try:
                    entries[attribute] = getattr(candidate, attribute)
                except Exception:  # an attribute of the candidate may do anything
                    continue
    found = {}
    for name, operation in operations().items():
        forward, backward, plain = (entries.get(f"{name}{suffix}") for suffix in ("_forward", "_backward", ""))
        pair = forward if callable(getattr(forward, "forward", None)) else plain
        if callable(getattr(pair, "forward", None)) and (pair is forward or not callable(forward)):
            named: Any = getattr(type(pair), "__set_name__", None)
            if named is not None:  # an adapter that was not assigned in the body of a class
                named(pair, type(candidate), name)
            found[name] = _implementation(operation, pair)
        elif callable(forward):
            cached = operation.has_backward
            found[name] = OperationCandidate(operation, forward, backward if callable(backward) else None, cached)
        elif callable(plain):
            found[name] = OperationCandidate(operation, plain, None, cached=False)
    return found


def _implementation(operation: Operation, op: Any) -> OperationCandidate:
    """An object with ``forward`` and perhaps ``backward``, such as the operations of a backend."""
    backward = getattr(op, "backward", None)
    return OperationCandidate(
        operation, op.forward, backward if callable(backward) else None, cached=operation.has_backward
    )


def _operation_alone(candidate: Any) -> OperationCandidate | None:
    """A function that is itself an operation: named so, or with the arguments of ``halt_tokens``."""
    operation = getattr(candidate, "operation", None)
    if isinstance(operation, Operation) and callable(getattr(candidate, "forward", None)):
        return _implementation(operation, candidate)
    if not callable(candidate) or isinstance(candidate, type):
        return None
    name, table = str(getattr(candidate, "__name__", "")), operations()
    if name.removesuffix("_forward") in table:
        operation = table[name.removesuffix("_forward")]
        cached = name.endswith("_forward") and operation.has_backward
        return OperationCandidate(operation, candidate, None, cached)
    signature = _signature(candidate)
    parameters = [] if signature is None else list(signature.parameters)
    if parameters[:4] == ["states", "scale", "center", "epsilon"]:
        return OperationCandidate(table["halt_tokens"], candidate, None, cached=False)
    return None


# ---- names


def resolve(name: str) -> Any:
    """The object that ``module:object`` (or ``path/file.py:object``) names, found from the current folder too.

    ValueError says what was expected; an error inside the module is raised as it is.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        has = ""
        if not path and (
            module_name.endswith(".py") or (module_name.isidentifier() and Path(f"{module_name}.py").is_file())
        ):
            has = f", which has {_listed(module_name, _import(module_name))}"
        raise ValueError(
            f"candidate: expected a backend ({', '.join(backends.BACKENDS)}), module:object, file.py:object or an "
            f"exchange folder, got {name!r}{has}"
        )
    module = _import(module_name)
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"candidate: {module_name} has no {path!r}; it has {_listed(module_name, module)}")
        found = getattr(found, part)
    return found


def _listed(name: str, module: Any) -> str:
    """What a module has that can be a candidate, with an example of how one is named."""
    found = _candidates_of(module)
    if not found:
        return "nothing that can be checked"
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"{', '.join(found[:5])}{more}: write {name}:{found[0]}"


def _candidates_of(module: Any) -> list[str]:
    """The names of objects that a module defines and that have the form of a candidate, operations first."""
    operation, function = [], []
    for name, value in vars(module).items():
        home = sys.modules.get(str(getattr(value, "__module__", None)))
        imported = home is not module and getattr(home, name, None) is value
        if name.startswith("_") or inspect.ismodule(value) or imported:
            continue
        if _operation_alone(value) is not None or _operations_of(value):
            operation.append(name)
        elif inspect.isfunction(value) and _takes_a_case(value):
            function.append(name)
    return operation + function


def _import(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise ValueError(f"candidate: there is no file {name!r} here")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(f"candidate: no module {name!r} here or among the installed packages") from None
        raise
