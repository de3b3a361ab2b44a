"""The pickle inside a PyTorch checkpoint, read as a description of tensors: nothing in it is ever called.

A pickle is a program for a small stack machine, and a pickle can make Python's own machine call any function. The
machine here knows only the opcodes that build values and the names that ``torch.save`` writes. It refuses everything
else, and the message gives the name of what was refused.
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

MAX_PICKLE = 8 << 20  # bytes, checked by the callers of interpret; a model of 1000 tensors writes about 100 kB
MAX_OPCODES = 1_000_000


class RefusedError(ValueError):
    """Raised for a file that asks for something other than tensors and plain containers."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"refused: the file asks for {shown(name)}; "
            "refvt reads tensors and plain containers and never runs code from a file"
        )


def shown(name: str) -> str:
    """A name from a file in a form that is safe in a message: no control characters, 200 characters at most."""
    return ascii(name[:200])[1:-1]


@dataclass(frozen=True, slots=True)
class Global:
    """A global that a pickle refers to, represented by its name only, so that it cannot be called."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``count`` numbers in the member ``data/<key>``.

    ``kind`` is a NumPy type code, or "bf16": the upper halves of float32 numbers.
    """

    kind: str
    key: str
    count: int

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return 2 if self.kind == "bf16" else np.dtype(self.kind).itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; offset and strides are in elements."""

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
# keys (module, name) as in the pickle; a dotted name is not resolved, so it is simply an unknown key
_KNOWN = {tuple(name.rsplit(".", 1)): Global(name) for name in _BUILDERS | _STORAGES.keys()}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", *_TUPLES, "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}


def interpret(data: bytes | bytearray) -> Any:
    """The value that a pickle by ``torch.save`` describes.

    It is made of numbers, strings, tuples, lists, dicts, ``Storage`` and ``Tensor``; an OrderedDict becomes a dict, a
    Parameter becomes its tensor. RefusedError with the full name of any other global, and for every opcode that could
    reach one. ValueError for a damaged pickle or one of more than ``MAX_OPCODES`` opcodes.
    """
    # pickle.Unpickler is not used, not even subclassed. With find_class replaced it would still call any callable on
    # its stack, take copyreg's cached extensions without find_class, set attributes for BUILD, and grow its memo to any
    # index in the file. pickletools only reads opcodes, and the machine below has none that calls anything.
    try:
        return _interpret(data)
    except (IndexError, KeyError) as error:  # an empty stack, or an index that is not in the memo
        raise ValueError("its pickle is damaged") from error


def _interpret(data: bytes | bytearray) -> Any:
    machine = _StackMachine()
    for number, (opcode, arg, _) in enumerate(pickletools.genops(bytes(data))):
        if number >= MAX_OPCODES:
            raise ValueError(f"a pickle of more than {MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.execute(opcode.name, arg)
    raise ValueError("its pickle does not end")


class _StackMachine:
    """The stack and the memo of a pickle, and the opcodes that build values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # for each mark the part of the stack below it
        self.memo: dict[int, Any] = {}

    def execute(self, name: str, arg: Any) -> None:
        """Execute one opcode. RefusedError for an opcode that does not build a value."""
        if name in _LITERALS:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[_whole(arg)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[_whole(arg)])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in _CONTAINERS:
            self._build_container(name)
        else:
            self._build_object(name, arg)

    def _build_container(self, name: str) -> None:
        stack = self.stack
        if name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in _TUPLES:
            stack.append(tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            items = self._items_since_mark()
            self.stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._items_since_mark()
            _expect(self.stack[-1], list).extend(items)
        else:  # SETITEM, SETITEMS
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._items_since_mark()
            _set_items(_expect(self.stack[-1], dict), zip(items[::2], items[1::2], strict=True))

    def _items_since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _build_object(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
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
        elif name == "BUILD":  # sets attributes, such as the _metadata of a state dict: dropped
            stack.pop()
            _expect(stack[-1], dict)
        elif name == "INST":
            raise RefusedError(_expect(arg, str).replace(" ", "."))
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"opcode {name}" + (f" {arg}" if isinstance(arg, int) else ""))


def _expect(value: object, kind: type[T]) -> T:
    # exact type; the value is not shown, because the repr of a few nested shared tuples can be endless
    if type(value) is not kind:
        raise ValueError(f"its pickle is damaged: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _whole(value: object) -> int:
    number = _expect(value, int)
    if not 0 <= number < 2**62:
        raise ValueError("its pickle holds a size, stride or position that is negative or too large")
    return number


def _set_items(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        # hashing a tuple can take forever, and huge integers can be chosen to collide
        if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
            raise ValueError(
                f"its pickle has a dict key of the wrong type: expected str or int, got {type(key).__name__}"
            )
        target[key] = value


def _known(module: str, name: str) -> Global:
    if (module, name) not in _KNOWN:
        raise RefusedError(f"{module}.{name}")
    return _KNOWN[module, name]


def _storage(identity: object) -> Storage:
    """The storage of a persistent id ("storage", class, key, device, count)."""
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
                # the optional seventh argument is metadata, such as a negative bit: only empty metadata is accepted
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
        raise ValueError(f"shape {list(sizes)} is too large")
    return Tensor(_expect(storage, Storage), _whole(offset), sizes, steps)
