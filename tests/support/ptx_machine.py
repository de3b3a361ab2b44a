"""A GPU in NumPy: it runs the PTX that numba-cuda compiles, one instruction at a time for all threads of a grid.

Slow, and it says nothing about speed; but it runs the code that a GPU gets: real warps of 32 and real tiles, shuffles,
vector loads, packed arguments. And it checks what a GPU does not:

- every address must lie in allocated memory, aligned to the size of the access;
- memory that was not written may not be read;
- between two accesses of different threads to a number in shared memory, one of them a write, there must be a barrier
  of the block, or of the warp if both are in it.

It does not check for races in device memory, nor for two threads that write one number by the same instruction. Where a
GPU's instructions are approximations (2^x, log₂ x, 1/x), their errors here are as large as a GPU's may be. Threads that
are furthest behind run first, so that threads that diverged at a branch meet again behind it.
"""

import re
from types import SimpleNamespace

import numpy as np

from refvt.backends.cuda.memory import CallRecorder, NoFreeList

WARP = 32
BASE = 0x10000000  # of the device's memory
CLASSES = {"rd": np.uint64, "r": np.uint32, "rs": np.uint16, "f": np.float32, "fd": np.float64, "p": np.bool_}
CODES = {"u": "u", "s": "i", "b": "u"}  # letters of PTX and of NumPy; bits are numbers without a sign
TYPES = {f"{name}{8 * size}": np.dtype(f"{code}{size}") for name, code in CODES.items() for size in (1, 2, 4, 8)}
TYPES |= {"f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}


class Fault(RuntimeError):  # noqa: N818 - it reads as what happened
    """An error that a GPU would not report, or that would end the process."""


class Machine(CallRecorder):
    """In the place of ``refvt.backends.cuda.driver.Driver``."""

    capability = (9, 0)

    def __init__(self, size=1 << 26):
        super().__init__()
        self.bytes = np.zeros(size, np.uint8)
        self.owned = np.zeros(size // 4, bool)  # words that belong to an array
        self.written = np.zeros(size // 4, bool)
        self.free_at, self.sizes, self.programs = {}, {}, {}
        self.top = 256
        self.state = SimpleNamespace(addresses=0)
        self.instructions = 0

    # ---- the methods of a driver

    def free_list(self, size):
        return NoFreeList(size, self.free)

    def allocate(self, free_list):
        """Behind each block is a gap that belongs to no array."""
        size = free_list.size
        length = -(-size // 256) * 256 + 256
        pieces = self.free_at.get(length)
        start = pieces.pop() if pieces else self.top
        self.top = max(self.top, start + length)
        if self.top > len(self.bytes):
            raise Fault("the machine's memory is full")
        self.sizes[start] = size, length
        words = slice(start // 4, -(-(start + size) // 4))
        self.owned[words], self.written[words] = True, False
        return BASE + start

    def free_now(self, address):
        size, length = self.sizes.pop(address - BASE)
        self.owned[(address - BASE) // 4 : -(-(address - BASE + size) // 4)] = False
        self.free_at.setdefault(length, []).append(address - BASE)

    def upload(self, address, host):
        self.check_not_capturing("an upload")
        raw = np.frombuffer(np.ascontiguousarray(host).tobytes(), np.uint8)
        self._bytes(address, len(raw), True)[:] = raw

    def download(self, host, address):
        self.check_not_capturing("a download")
        host.reshape(-1).view(np.uint8)[:] = self._bytes(address, host.nbytes, False)

    def copy(self, target, source, size):
        def work():
            self._bytes(target, size, True)[:] = self._bytes(source, size, False)

        self.call_or_record(work)

    def _bytes(self, address, size, write):
        start = address - BASE
        words = slice(start // 4, -(-(start + size) // 4))
        if start < 0 or not self.owned[words].all():
            raise Fault(f"a copy of {size} bytes at {address:#x} leaves its array")
        if write:
            self.written[words] = True
        return self.bytes[start : start + size]

    def wait(self, stream=1):
        pass

    def memory(self):
        return len(self.bytes) - self.top, len(self.bytes)

    def load(self, kernel, dtype):
        from refvt.bench.registers import compiled

        return Program(compiled(kernel, np.dtype(dtype).name, self.capability), kernel.name)

    def launch(self, program, grid, block, layout, words):
        buffer = bytearray(layout.size)
        layout.pack_into(buffer, 0, *words)
        size = [*grid, *(1,) * (3 - len(grid))], [*block, *(1,) * (3 - len(block))]
        self.call_or_record(lambda: Run(self, program, *size, bytes(buffer)).go())


class Program:
    """A program: instructions [(guard, operation, operands)], positions of labels, and addresses of shared arrays."""

    def __init__(self, ptx, name):
        self.name, self.code, self.labels, self.shared, self.shared_size = name, [], {}, {}, 0
        for align, symbol, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", ptx):
            self.shared_size = -(-self.shared_size // int(align)) * int(align)
            self.shared[symbol] = self.shared_size
            self.shared_size += int(size)
        body = re.sub(r"//[^\n]*", "", ptx[ptx.index("{", ptx.index(".entry")) + 1 :])
        for statement in body.split(";"):
            text = statement.strip()
            while True:
                label = re.match(r"(\$\w+):\s*|[{}]\s*", text)
                if not label:
                    break
                if label[1]:
                    self.labels[label[1]] = len(self.code)
                text = text[label.end() :]
            if not text or text.startswith("."):
                continue
            guard, operation, rest = re.match(r"(?:@(!?%p\d+)\s+)?([\w.]+)\s*(.*)", text, re.S).groups()
            parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest)
            operands = [part.strip() for part in parts if part.strip()]
            self.code.append((guard, operation.split("."), operands))


class Run:
    """One launch of a program."""

    def __init__(self, machine, program, grid, block, words):
        self.machine, self.program, self.words = machine, program, words
        threads, blocks = int(np.prod(block)), int(np.prod(grid))
        self.count = threads * blocks
        thread, at = np.tile(np.arange(threads), blocks), np.repeat(np.arange(blocks), threads)
        self.block, self.warp = at, at * -(-threads // WARP) + thread // WARP
        self.lane = thread % WARP
        self.special = {}
        for name, index, shape in (("tid", thread, block), ("ctaid", at, grid)):
            x, y, _ = shape
            for axis, value in zip("xyz", (index % x, index // x % y, index // (x * y)), strict=True):
                self.special[f"%{name}.{axis}"] = value.astype(np.uint32)
        for name, shape in (("ntid", block), ("nctaid", grid)):
            for axis, value in zip("xyz", shape, strict=True):
                self.special[f"%{name}.{axis}"] = np.full(self.count, value, np.uint32)
        self.registers = {}
        self.shared = np.zeros(blocks * max(program.shared_size, 4), np.uint8)
        shared_words = len(self.shared) // 4
        self.shared_written = np.zeros(shared_words, bool)
        # the last writer and reader of each shared word, and the number of barriers its block and warp had passed
        self.writer, self.write_time = np.full(shared_words, -1), np.zeros((shared_words, 2), int)
        self.reader, self.read_time = np.full(shared_words, -1), np.zeros((shared_words, 2), int)
        self.read_by_several = np.zeros(shared_words, bool)
        self.time = np.zeros((self.count, 2), int)
        self.pc = np.zeros(self.count, int)
        self.waits = np.zeros(self.count, bool)
        self.gone = np.zeros(self.count, bool)

    def go(self):
        with np.errstate(all="ignore"):
            while not self.gone.all():
                running = ~(self.waits | self.gone)
                if not running.any():
                    raise Fault(f"{self.program.name}: threads wait for others that never arrive")
                pc = self.pc[running].min()
                here = running & (self.pc == pc)
                others = self.pc[running & ~here]
                self._straight(int(pc), np.flatnonzero(here), int(others.min()) if len(others) else 1 << 60)

    def _straight(self, pc, threads, until):
        """Run these threads up to a branch or a barrier, or to where other threads wait."""
        every = len(threads) == self.count
        self.threads = slice(None) if every else threads
        while pc < until:
            guard, operation, operands = self.program.code[pc]
            self.machine.instructions += 1
            name = operation[0]
            if name in ("bra", "ret", "bar", "shfl"):
                self.pc[threads] = pc
                self._branch(pc, threads, guard, operation, operands)
                return
            if guard is not None:
                raise Fault(f"{name}: only branches are expected to be guarded")
            self._do(operation, operands)
            pc += 1
        self.pc[threads] = pc

    def _branch(self, pc, threads, guard, operation, operands):
        if operation[0] == "ret":
            self.gone[threads] = True
            self._release(pc)
        elif operation[0] == "bra":
            taken = np.ones(len(threads), bool)
            if guard is not None:
                holds = np.broadcast_to(self.registers[guard.lstrip("!")][threads], len(threads))
                taken = holds != guard.startswith("!")
            self.pc[threads] = np.where(taken, self.program.labels[operands[0]], pc + 1)
        elif operation[0] == "bar" and operation[1] == "sync":
            self.waits[threads] = True
            self._release(pc)
        else:  # a barrier of the warp
            self.waits[threads] = True
            there = self.waits & (self.pc == pc)
            wanted = np.bincount(self.warp, ~self.gone, minlength=self.warp[-1] + 1)
            complete = np.bincount(self.warp, there, minlength=len(wanted)) == wanted
            ready = np.flatnonzero(there & complete[self.warp])
            if operation[0] == "shfl" and len(ready):
                self._shuffle(ready, operation, operands)
            self.time[ready, 1] += 1
            self.waits[ready] = False
            self.pc[ready] = pc + 1

    def _release(self, pc):
        """Release the blocks whose remaining threads all wait at a barrier."""
        at_barrier = self.waits & np.array([self.program.code[p][1][:2] == ["bar", "sync"] for p in self.pc])
        wanted = np.bincount(self.block, ~self.gone, minlength=self.block[-1] + 1)
        complete = (np.bincount(self.block, at_barrier, minlength=len(wanted)) == wanted) & (wanted > 0)
        ready = at_barrier & complete[self.block]
        for block in np.unique(self.block[ready]):
            if len(np.unique(self.pc[ready & (self.block == block)])) > 1:
                raise Fault(f"{self.program.name}: threads of a block wait at different barriers")
        self.time[ready] += 1
        self.waits[ready] = False
        self.pc[ready] += 1

    # ---- operands

    def _read(self, operand, kind):
        """The operand of the active threads as an array of this type (the same bits), or a number."""
        if operand.startswith("%"):
            found = self.special[operand] if operand in self.special else self.registers.get(operand)
            if found is None:
                raise Fault(f"{self.program.name}: {operand} is read before it is written")
            found = found[self.threads]
            return found.view(kind) if found.dtype != kind and found.dtype.itemsize == kind.itemsize else found
        if operand.startswith(("0f", "0d")):
            kind_of = "<f4" if operand[1] == "f" else "<f8"
            return np.frombuffer(bytes.fromhex(operand[2:])[::-1], kind_of)[0]
        if operand in self.program.shared:
            return np.uint64(self.program.shared[operand])
        value = int(operand, 0)
        if kind.kind == "b":
            return np.bool_(value)
        return np.array(value & (1 << 8 * kind.itemsize) - 1, f"u{kind.itemsize}").view(kind)[()]

    def _write(self, operand, value):
        letters = re.match(r"%([a-z]+)", operand)[1]
        kind = np.dtype(np.uint32 if letters == "temp" else CLASSES[letters])
        if operand not in self.registers:
            self.registers[operand] = np.zeros(self.count, kind)
        value = np.asarray(value)
        if value.dtype != kind:
            value = value.view(kind) if value.dtype.itemsize == kind.itemsize else value.astype(kind)
        self.registers[operand][self.threads] = value

    # ---- memory

    def _places(self, operand, size):
        """Addresses of the active threads, each a multiple of ``size`` bytes."""
        inside = operand.strip("[]")
        name, _, offset = inside.partition("+")
        address = np.broadcast_to(self._read(name, TYPES["u64"]), self._many()).astype(np.int64) + int(offset or 0)
        if (address % size).any():
            raise Fault(f"{self.program.name}: [{inside}] is no multiple of {size} bytes")
        return address

    def _many(self):
        return self.count if isinstance(self.threads, slice) else len(self.threads)

    def _words(self, operation, operand, count, write):
        """The words of ``count`` numbers of the type [threads, words]; a Fault if the access is not allowed."""
        kind = TYPES[operation[-1]]
        size = kind.itemsize * count
        address = self._places(operand, size)
        shared = operation[1] == "shared"
        if shared:
            if (address < 0).any() or (address + size > self.program.shared_size).any():
                raise Fault(f"{self.program.name}: {operand} lies outside of shared memory")
            address = address + self.block[self.threads] * max(self.program.shared_size, 4)
        else:
            address = address - BASE
        words = address[:, None] // 4 + np.arange(max(size // 4, 1))
        if shared:
            self._look_for_races(words, write)
            written = self.shared_written
        else:
            if (address < 0).any() or (address >= len(self.machine.bytes)).any() or not self.machine.owned[words].all():
                raise Fault(f"{self.program.name}: {operand} lies in no array")
            written = self.machine.written
        if write:
            written[words] = True
        elif not written[words].all():
            raise Fault(f"{self.program.name}: {operand} is read, and was never written")
        return address, kind, self.shared if shared else self.machine.bytes

    def _look_for_races(self, words, write):
        me = np.arange(self.count)[self.threads][:, None] + np.zeros_like(words)
        now = self.time[me]

        def clash(other, time):
            same_warp = self.warp[other] == self.warp[me]
            unseen = np.where(same_warp, (time == now).all(axis=-1), time[..., 0] == now[..., 0])
            return (other >= 0) & (other != me) & unseen

        bad = clash(self.writer[words], self.write_time[words])
        if write:
            several = self.read_by_several[words] & (self.read_time[words, 0] == now[..., 0])
            several &= (self.warp[self.reader[words]] != self.warp[me]) | (self.read_time[words] == now).all(axis=-1)
            bad |= clash(self.reader[words], self.read_time[words]) | several
        if bad.any():
            raise Fault(f"{self.program.name}: a race for shared memory, without a barrier in between")
        if write:
            self.writer[words], self.write_time[words] = me, now
            self.read_by_several[words], self.reader[words] = False, -1
        else:
            fresh = (self.read_time[words] != now).any(axis=-1) | (self.reader[words] < 0)
            self.read_by_several[words] = ~fresh & (self.read_by_several[words] | (self.reader[words] != me))
            self.reader[words], self.read_time[words] = me, now
            several = np.bincount(words.ravel(), minlength=len(self.reader)) > 1
            self.read_by_several |= several

    def _load(self, operation, operands):
        if operation[1] == "param":
            number = int(re.search(r"_param_(\d+)\]$", operands[1])[1])
            kind = TYPES[operation[-1]]
            self._write(operands[0], np.frombuffer(self.words, kind, 1, 8 * number)[0])
            return
        targets = [name.strip() for name in operands[0].strip("{}").split(",")]
        address, kind, memory = self._words(operation, operands[1], len(targets), False)
        numbers = memory[address[:, None] + np.arange(kind.itemsize * len(targets))].view(kind)
        for target, column in zip(targets, numbers.T, strict=True):
            self._write(target, np.ascontiguousarray(column))

    def _store(self, operation, operands):
        sources = [name.strip() for name in operands[1].strip("{}").split(",")]
        address, kind, memory = self._words(operation, operands[0], len(sources), True)
        numbers = [np.broadcast_to(self._read(source, kind), self._many()).astype(kind) for source in sources]
        raw = np.ascontiguousarray(np.stack(numbers, axis=1)).view(np.uint8)
        memory[address[:, None] + np.arange(kind.itemsize * len(sources))] = raw

    def _exchange(self, operation, operands):
        """atom.exch: each thread writes a number and gets the previous one, in a random order."""
        if operation[1:3] != ["global", "exch"]:
            raise Fault(f"{operation}: not expected")
        address, kind, memory = self._words(operation, operands[1], 1, False)
        given = np.broadcast_to(self._read(operands[2], kind), self._many())
        found = np.zeros(self._many(), kind)
        for i in np.random.default_rng(0).permutation(self._many()):
            place = memory[address[i] : address[i] + kind.itemsize].view(kind)
            found[i], place[0] = place[0], given[i]
        self._write(operands[0], found)

    def _shuffle(self, ready, operation, operands):
        """shfl.sync.bfly: every thread gets the number of the one whose lane differs from its own by a bit mask."""
        if operation[2] != "bfly":
            raise Fault(f"{operation}: not expected")
        target, source, distance, *_ = operands
        self.threads = ready
        values = np.zeros(self.count, np.uint32)
        values[ready] = self._read(source, TYPES["u32"])
        place = {(w, lane): i for i, w, lane in zip(ready, self.warp[ready], self.lane[ready], strict=True)}
        steps = np.broadcast_to(self._read(distance, TYPES["u32"]), len(ready))
        other = [place[w, lane ^ int(s)] for w, lane, s in zip(self.warp[ready], self.lane[ready], steps, strict=True)]
        self._write(target.split("|")[0], values[np.array(other)])

    # ---- arithmetic

    def _do(self, operation, operands):
        name, last = operation[0], operation[-1]
        if name == "ld":
            return self._load(operation, operands)
        if name == "st":
            return self._store(operation, operands)
        if name == "atom":
            return self._exchange(operation, operands)
        if name == "mov" and last in ("b32", "b64") and "{" in "".join(operands):
            return self._pack(operands)
        kind = TYPES[last]
        if name == "cvt":
            return self._convert(operation, operands)
        if name == "setp":
            a, b = (self._read(operand, kind) for operand in operands[1:])
            return self._write(operands[0], _compare(operation[1], a, b))
        if name == "selp":
            a, b = (self._read(operand, kind) for operand in operands[1:3])
            return self._write(operands[0], np.where(self._read(operands[3], TYPES["pred"]), a, b).astype(kind))
        if name in ("shl", "shr"):
            a, n = self._read(operands[1], kind), np.asarray(self._read(operands[2], TYPES["u32"])).astype(np.int64)
            width = 8 * kind.itemsize
            within = np.minimum(n, width - 1).astype(kind)
            shifted = np.left_shift(a, within) if name == "shl" else np.right_shift(a, within)
            if name == "shl" or kind.kind == "u":
                shifted = np.where(n >= width, kind.type(0), shifted)
            return self._write(operands[0], np.asarray(shifted, kind))
        values = [self._read(operand, kind) for operand in operands[1:]]
        return self._write(operands[0], _arithmetic(operation, kind, values))

    def _pack(self, operands):
        """A number of 64 bits from two halves, or into two."""
        target, source = operands
        names = [name.strip() for name in (source + target).partition("{")[2].partition("}")[0].split(",")]
        if target.startswith("{"):
            value = np.ascontiguousarray(np.broadcast_to(self._read(source, TYPES["u64"]), self._many()))
            for name, half in zip(names, value.view(np.uint32).reshape(-1, 2).T, strict=True):
                self._write(name, np.ascontiguousarray(half))
        else:
            halves = [np.broadcast_to(self._read(name, TYPES["u32"]), self._many()) for name in names]
            self._write(target, np.ascontiguousarray(np.stack(halves, axis=1)).view(np.uint64).ravel())

    def _convert(self, operation, operands):
        to, of = TYPES[operation[-2]], TYPES[operation[-1]]
        value = self._read(operands[1], of)
        if np.asarray(value).dtype != of:
            value = np.asarray(value).astype(of)
        if "rzi" in operation:
            value = np.trunc(value)
        if "sat" in operation:
            value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
        self._write(operands[0], np.asarray(value).astype(to))


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _compare(how, a, b):
    """``equ``, ``ltu`` and so on hold where either is no number, the plain ones do not."""
    unordered = (a != a) | (b != b)
    if how in ("nan", "num"):
        return unordered == (how == "nan")
    if how in COMPARISONS:
        return COMPARISONS[how](a, b) & ~unordered
    return COMPARISONS[how[:2]](a, b) | unordered


def _arithmetic(operation, kind, values):
    name = operation[0]
    a = np.asarray(values[0])
    b = np.asarray(values[1]) if len(values) > 1 else None
    wide = {"f4": np.float64, "f8": np.longdouble}.get(kind.str[1:])
    if name == "mul" and operation[1] == "wide":
        big = np.dtype(f"{kind.kind}8")
        return a.astype(big) * b.astype(big)
    if name == "fma":
        exact = a.astype(wide) * b.astype(wide) + np.asarray(values[2]).astype(wide)
        near = exact.astype(kind)
        return np.where(near > exact, np.nextafter(near, kind.type(-np.inf)), near) if operation[1] == "rm" else near
    if name == "bfi":
        source, start, length = np.asarray(values[1]), int(values[2]), int(values[3])
        mask = kind.type(((1 << length) - 1) << start)
        return (source & ~mask) | ((a << kind.type(start)) & mask)
    if name == "div" and kind.kind in "iu":
        return _quotient(a, b).astype(kind)
    if name == "rem":
        return (a - _quotient(a, b).astype(kind) * b).astype(kind)
    if name in ("max", "min") and kind.kind == "f":
        return (np.fmax if name == "max" else np.fmin)(a, b)
    simple = {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "mad": lambda: a * b + values[2],
        "div": lambda: a / b,
        "max": lambda: np.maximum(a, b),
        "min": lambda: np.minimum(a, b),
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "not": lambda: ~a,
        "neg": lambda: -a,
        "abs": lambda: np.abs(a),
        "mov": lambda: a,
        "cvta": lambda: a,
        "copysign": lambda: np.copysign(b, a),
        "ex2": lambda: np.where(a == 0, np.exp2(a), _roughly(np.exp2(a), -22)),  # 2^0 is 1: PTX ISA, ex2
        "lg2": lambda: _roughly(np.log2(a), -22),
        "rcp": lambda: kind.type(1) / a if "rn" in operation else _roughly(kind.type(1) / a, -23),
        "sqrt": lambda: np.sqrt(a),
    }
    if name not in simple:
        raise Fault(f"{'.'.join(operation)}: this operation is not implemented")
    return np.asarray(simple[name]()).astype(kind, copy=False)


def _roughly(x, exponent):
    """Too large and too small in turn, by a factor of 1 ± 2^exponent."""
    turns = np.arange(x.size).reshape(x.shape) % 2 * 2 - 1
    return (x * (1 + turns * 2.0**exponent)).astype(x.dtype)


def _quotient(a, b):
    """Rounded towards zero."""
    if a.dtype.kind == "u":
        return a // np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.where(b == 0, 1, np.abs(b)))
