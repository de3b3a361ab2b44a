"""The pickle inside a PyTorch checkpoint, read as a description of tensors: nothing in it is ever called.

A pickle is a program for a small stack machine, and a pickle can make Python's own machine call any function. The
machine here builds values only from the names that ``torch.save`` writes for tensors. Files hold other things beside
the weights: settings, NumPy numbers, histories, the state of an optimiser. Whatever needs another name becomes
``Inert``: words that say what the file asks for. It is never built, and matters only where a tensor was needed.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

__all__ = ["MAX_PICKLE", "Inert", "Storage", "Tensor", "interpret", "shown"]

T = TypeVar("T")

# Bytes, checked by the callers of interpret. A model of 1000 tensors writes about 100 kB; MMEngine adds the history of
# every number in its log, 24 bytes a step each.
MAX_PICKLE = 256 << 20
MAX_OPCODES = 1_000_000


def shown(name: str) -> str:
    """A name from a file in a form that is safe in a message: no control characters, 200 characters at most."""
    return ascii(name[:200])[1:-1]


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """What a file asks for and what is not built. ``reason``: why, as a sentence for a message."""

    reason: str


def _refuse(name: str) -> Inert:
    return Inert(
        f"refused: the file asks for {shown(name)}; refvt reads tensors and plain containers and never runs code from "
        "a file (of a whole model, save its state_dict() with torch.save)"
    )


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
# bytes of a number in storages that are not read: old files are read past them
_OTHER_STORAGES = {
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
}
_BUILDERS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch.Size",
}
# keys (module, name) as in the pickle; a dotted name is not resolved, so it is simply an unknown key
_KNOWN = {tuple(name.rsplit(".", 1)): Global(name) for name in _BUILDERS | _STORAGES.keys() | _OTHER_STORAGES.keys()}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", *_TUPLES, "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
_CONTAINERS |= {"DICT", "LIST", "EMPTY_SET", "FROZENSET", "ADDITEMS", "POP", "POP_MARK", "DUP"}


def interpret(data: bytes | bytearray | BinaryIO, itemsizes: dict[str, int] | None = None) -> Any:
    """The value that a pickle by ``torch.save`` describes; of an open file, its next pickle.

    It is made of numbers, strings, tuples, lists, dicts, ``Storage`` and ``Tensor``; an OrderedDict becomes a dict, a
    Parameter becomes its tensor, and everything else is ``Inert``. Items of a dict are left out if their key is neither
    a string nor a number below 2³¹. ``itemsizes`` receives the bytes per number of every storage.
    ValueError for a damaged pickle or one of more than ``MAX_OPCODES`` opcodes.
    """
    # pickle.Unpickler is not used, not even subclassed. With find_class replaced it would still call any callable on
    # its stack, take copyreg's cached extensions without find_class, set attributes for BUILD, and grow its memo to any
    # index in the file. pickletools only reads opcodes, and the machine below has none that calls anything.
    try:
        file = io.BytesIO(data) if isinstance(data, bytes | bytearray) else data
        return _interpret(file, {} if itemsizes is None else itemsizes)
    except (IndexError, KeyError) as error:  # an empty stack, or an index that is not in the memo
        raise ValueError("its pickle is damaged") from error


class _Bounded:
    """A file whose ``read`` asks for no more than is left: Python makes room for all that a pickle declares."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.readline, self.tell = file, file.readline, file.tell
        at = file.tell()
        self.size = file.seek(0, io.SEEK_END)
        file.seek(at)

    def read(self, number: int) -> bytes:
        """Read as many bytes, or what is left."""
        return self.file.read(number if number < 1 << 12 else min(number, self.size - self.file.tell()))


def _interpret(file: Any, itemsizes: dict[str, int]) -> Any:
    machine = _StackMachine(itemsizes)
    bounded: Any = _Bounded(file)
    for number, (opcode, arg, _) in enumerate(pickletools.genops(bounded)):
        if number >= MAX_OPCODES:
            raise ValueError(f"a pickle of more than {MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.execute(opcode.name, arg)
    raise ValueError("its pickle does not end")


class _StackMachine:
    """The stack and the memo of a pickle, and the opcodes that build values."""

    def __init__(self, itemsizes: dict[str, int]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # for each mark the part of the stack below it
        self.memo: dict[int, Any] = {}
        self.itemsizes = itemsizes

    def execute(self, name: str, arg: Any) -> None:
        """Execute one opcode. One that would call something makes an ``Inert``."""
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
        elif name not in ("PROTO", "FRAME"):
            self._build_object(name, arg)

    def _build_container(self, name: str) -> None:
        match name:
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_SET":
                self.stack.append(Inert("a set"))
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                self._build_from_mark(name)
            case "APPEND" | "APPENDS":
                items = [self.stack.pop()] if name == "APPEND" else self._items_since_mark()
                if type(self.stack[-1]) is not Inert:
                    _expect(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self.stack.pop(), self.stack.pop()][::-1] if name == "SETITEM" else self._items_since_mark()
                if type(self.stack[-1]) is not Inert:
                    _set_items(_expect(self.stack[-1], dict), zip(items[::2], items[1::2], strict=True))
            case "ADDITEMS":
                self._items_since_mark()
                _expect(self.stack[-1], Inert)
            case "POP" | "POP_MARK":
                if name == "POP" and self.stack:
                    self.stack.pop()
                else:
                    self._items_since_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case _:
                self.stack.append(tuple([self.stack.pop() for _ in range(_TUPLES[name])][::-1]))

    def _build_from_mark(self, name: str) -> None:
        items = self._items_since_mark()
        value: Any = tuple(items)
        if name == "LIST":
            value = items
        elif name == "FROZENSET":
            value = Inert("a set")
        elif name == "DICT":
            value = {}
            _set_items(value, zip(items[::2], items[1::2], strict=True))
        self.stack.append(value)

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
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, builder = _expect(stack.pop(), tuple), stack.pop()
            stack.append(builder if type(builder) is Inert else _build(_expect(builder, Global).name, arguments))
        elif name == "BUILD":  # sets attributes, such as the _metadata of a state dict: dropped
            stack.pop()
            if type(stack[-1]) is not Inert:
                _expect(stack[-1], dict)
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            del stack[-(1 if name == "NEWOBJ" else 2) :]  # the arguments
            stack.append(_object_of(stack.pop()))
        elif name == "OBJ":
            items = self._items_since_mark()
            self.stack.append(_object_of(items[0]))
        elif name == "INST":
            self._items_since_mark()
            self.stack.append(_refuse(_expect(arg, str).replace(" ", ".")))
        else:
            stack.append(_refuse(f"opcode {name}" + (f" {arg}" if isinstance(arg, int) else "")))

    def _storage(self, identity: object) -> Storage | Inert:
        """The storage of a persistent id ("storage", class, key, device, count); in old files with a sixth item."""
        parts = _expect(identity, tuple)
        if parts and parts[0] == "module":
            return Inert("its pickle has the persistent id of a whole model: save its state_dict() with torch.save")
        if len(parts) not in (5, 6) or type(parts[0]) is not str or parts[0] != "storage":
            raise ValueError("its pickle has a persistent id that torch.save does not write")
        if type(parts[1]) is Inert:
            return parts[1]
        kind, key, count = _expect(parts[1], Global).name, _expect(parts[2], str), _whole(parts[4])
        if kind in _OTHER_STORAGES:
            self.itemsizes[key] = _OTHER_STORAGES[kind]
            return _refuse(kind)
        if kind not in _STORAGES:
            raise ValueError(f"its pickle uses {kind} as a storage")
        storage = Storage(_STORAGES[kind], key, count)
        self.itemsizes[key] = storage.itemsize
        if len(parts) == 6 and parts[5] is not None:
            return Inert("a view of a storage as PyTorch before 0.4 wrote it")
        return storage


def _object_of(kind: object) -> Inert:
    """What stands for an object of a class that is not built."""
    return kind if type(kind) is Inert else _refuse(_expect(kind, Global).name)


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
        # no tensor has another key; hashing a tuple can take forever, and huge integers can be chosen to collide
        if type(key) is str or (type(key) is int and abs(key) < 2**31):
            target[key] = value


def _known(module: str, name: str) -> Global | Inert:
    return _KNOWN.get((module, name)) or _refuse(f"{module}.{name}")


def _build(name: str, arguments: tuple[Any, ...]) -> Any:
    if name.startswith("torch._utils.") and arguments and type(arguments[0]) is Inert:
        return arguments[0]  # a tensor of a storage that is not read
    try:
        match name, arguments:
            case "torch._utils._rebuild_tensor_v2", (storage, offset, shape, stride, _, _, *rest):
                # the optional seventh argument is metadata, such as a negative bit: only empty metadata is accepted
                if len(rest) <= 1 and all(item is None or (type(item) is dict and not item) for item in rest):
                    return _tensor(storage, offset, shape, stride)
            case "torch._utils._rebuild_tensor", (storage, offset, shape, stride):
                return _tensor(storage, offset, shape, stride)
            case "torch._utils._rebuild_parameter", (tensor, _, _):
                return _expect(tensor, Tensor)
            case "torch._utils._rebuild_parameter_with_state", (tensor, _, _, _):
                return _expect(tensor, Tensor)
            case "torch.Size", (sizes,):
                return tuple(_whole(size) for size in _expect(sizes, tuple))
            case ("collections.OrderedDict", ()) | ("collections.defaultdict", (_,)):
                return {}
    except ValueError as error:
        return Inert(f"{name} with arguments that torch.save does not write: {error}")
    return Inert(f"{name} with arguments that torch.save does not write")


def _tensor(storage: object, offset: object, shape: object, stride: object) -> Tensor:
    sizes = tuple(_whole(size) for size in _expect(shape, tuple))
    steps = tuple(_whole(step) for step in _expect(stride, tuple))
    if len(sizes) != len(steps) or len(sizes) > 32:
        raise ValueError(f"{len(sizes)} sizes and {len(steps)} strides")
    if math.prod(size for size in sizes if size) >= 2**40:
        raise ValueError(f"shape {list(sizes)} is too large")
    return Tensor(_expect(storage, Storage), _whole(offset), sizes, steps)
