"""The pickle inside a PyTorch checkpoint, read as a description of tensors: nothing in it is ever called.

A pickle is a program for a small stack machine, and Python's own machine can be made to call any function. The one
here knows the opcodes that build values and four names that ``torch.save`` writes; all else is refused by its name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

__all__ = ["MAX_PICKLE", "RefusedError", "Storage", "Tensor", "interpret", "shown"]

T = TypeVar("T")

MAX_PICKLE = 8 << 20  # bytes that callers hand to interpret; a model of 1000 tensors writes about 100 kB
MAX_OPCODES = 1_000_000


class RefusedError(ValueError):
    """The file asks for something other than tensors and plain containers."""

    def __init__(self, wish: str) -> None:
        super().__init__(
            f"refused: the file asks for {shown(wish)}; "
            "refvt reads tensors and plain containers and never runs code from a file"
        )


def shown(name: str) -> str:
    """A name from a file, fit for a message: no control characters, not too long."""
    return ascii(name[:200])[1:-1]


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle mentions. It is a word, not the thing: nothing here can be called."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """``count`` numbers of a NumPy type ("bf16": the upper halves of float32) in the member ``data/<key>``."""

    kind: str
    key: str
    count: int

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return 2 if self.kind == "bf16" else np.dtype(self.kind).itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_STORAGES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "bf16",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
    "torch.storage.UntypedStorage": "u1",
}
_BUILDERS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
    "torch.Size",
}
# by (module, name), as a pickle says them: a dotted name is no path to walk, only a key that is not here
_KNOWN = {tuple(name.rsplit(".", 1)): Global(name) for name in _BUILDERS | _STORAGES.keys()}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def interpret(data: bytes | bytearray) -> Any:
    """What a pickle by ``torch.save`` describes: numbers, strings, tuples, lists, dicts, ``Storage`` and ``Tensor``.

    An OrderedDict becomes a dict, a Parameter its tensor. ``RefusedError`` with its full name for any other global,
    and for every opcode that could reach one; ValueError for a damaged pickle, or one beyond ``MAX_OPCODES``.
    """
    # pickle.Unpickler is not used, not even subclassed: with find_class replaced it would still call whatever lies on
    # its stack, take copyreg's cached extensions past find_class, set attributes for BUILD and grow its memo to any
    # index a file names. pickletools only reads opcodes, and the few below build a value: none can call.
    try:
        return _interpret(data)
    except (IndexError, KeyError) as error:  # an empty stack, a memo that was never put
        raise ValueError("its pickle is damaged") from error


def _interpret(data: bytes | bytearray) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lay under each mark
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for number, (opcode, arg, _) in enumerate(pickletools.genops(bytes(data))):
        if number >= MAX_OPCODES:
            raise ValueError(f"a pickle of more than {MAX_OPCODES} opcodes")
        name = opcode.name
        if name in _LITERALS:
            stack.append(arg)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[_whole(arg)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[_whole(arg)])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in _TUPLES:
            stack.append(tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            items = since_mark()
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else since_mark()
            _set_items(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            module, _, attribute = _expect(arg, str).partition(" ")
            stack.append(_known(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
            stack.append(_known(module, attribute))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, builder = _expect(stack.pop(), tuple), _expect(stack.pop(), Global)
            stack.append(_build(builder.name, arguments))
        elif name == "BUILD":  # the _metadata of a state dict: nothing refvt needs
            stack.pop()
            _expect(stack[-1], dict)
        elif name == "INST":
            raise RefusedError(_expect(arg, str).replace(" ", "."))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"opcode {name}" + (f" {arg}" if isinstance(arg, int) else ""))
    raise ValueError("its pickle does not end")


def _expect(value: object, kind: type[T]) -> T:
    # by exact type, and without a word about the value: a small nest of shared tuples has a repr without end
    if type(value) is not kind:
        raise ValueError(f"its pickle is damaged: a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _whole(value: object) -> int:
    number = _expect(value, int)
    if not 0 <= number < 2**62:
        raise ValueError("its pickle holds a size, stride or position that is negative or absurd")
    return number


def _set_items(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        # tuples can take forever to hash, and huge numbers can be chosen to collide
        if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
            raise ValueError(f"its pickle has a dict key of type {type(key).__name__}, expected str or int")
        target[key] = value


def _known(module: str, name: str) -> Global:
    if (module, name) not in _KNOWN:
        raise RefusedError(f"{module}.{name}")
    return _KNOWN[module, name]


def _storage(identity: object) -> Storage:
    """From a persistent id ("storage", class, key, device, count)."""
    parts = _expect(identity, tuple)
    if len(parts) != 5 or type(parts[0]) is not str or parts[0] != "storage":
        raise ValueError("its pickle has a persistent id that torch.save does not write")
    kind = _expect(parts[1], Global)
    if kind.name not in _STORAGES:
        raise ValueError(f"its pickle uses {kind.name} as a storage")
    return Storage(_STORAGES[kind.name], _expect(parts[2], str), _whole(parts[4]))


def _build(name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        match name, arguments:
            case "torch._utils._rebuild_tensor_v2", (storage, offset, shape, stride, _, _, *rest):
                # the seventh argument, where there is one, is metadata (a negative bit, say): none is understood here
                if len(rest) <= 1 and all(item is None or (type(item) is dict and not item) for item in rest):
                    return _tensor(storage, offset, shape, stride)
            case "torch._utils._rebuild_parameter", (tensor, _, _):
                return _expect(tensor, Tensor)
            case "torch.Size", (sizes,):
                return tuple(_whole(size) for size in _expect(sizes, tuple))
            case "collections.OrderedDict", ():
                return {}
    except ValueError as error:
        raise ValueError(f"{name} with arguments that torch.save does not write: {error}") from error
    raise ValueError(f"{name} with arguments that torch.save does not write")


def _tensor(storage: object, offset: object, shape: object, stride: object) -> Tensor:
    sizes = tuple(_whole(size) for size in _expect(shape, tuple))
    steps = tuple(_whole(step) for step in _expect(stride, tuple))
    if len(sizes) != len(steps) or len(sizes) > 32:
        raise ValueError(f"{len(sizes)} sizes and {len(steps)} strides")
    if math.prod(size for size in sizes if size) >= 2**40:
        raise ValueError("a shape that is absurd")
    return Tensor(_expect(storage, Storage), _whole(offset), sizes, steps)
