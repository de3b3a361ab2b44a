"""Mutations of files: of bytes, of text, and of what is inside (JSON values, zip members, safetensors headers)."""

import json
import struct
import zlib

from tests.support.checkpoint_files import stored, zip_of

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30)
VALUES = (
    *NUMBERS,
    None,
    True,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "..",
    "../../escape",
    "\x1b[2J",
    "\ud800",
    "a" * 3000,
    [],
    {},
    [[]],
    {"a": 1},
    [1, 2],
    [0] * 40,
)


def mutate_bytes(data, rng, others=()):
    """One to four changes of bytes: flips, numbers, cuts, repeats, a piece of another file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            return bytes(rng.randrange(256) for _ in range(8))
        at, kind = rng.randrange(len(data)), rng.randrange(8)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 16, 64)))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
            data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at:at] = bytes(rng.randrange(256) for _ in range(end - at))
        elif others:
            other = rng.choice(others)
            start = rng.randrange(max(1, len(other)))
            data[at:end] = other[start : start + rng.choice((4, 16, 200))]
    return bytes(data[: 1 << 16])


def mutate_json(value, rng):
    """A JSON text in which one value, somewhere inside, is replaced, removed, repeated or nested."""
    value = json.loads(json.dumps(value))
    holder = place = None
    here = value
    while isinstance(here, (dict, list)) and here and (holder is None or rng.random() < 0.7):
        holder = here
        place = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here = here[place]
    if holder is None or rng.random() < 0.03:
        return json.dumps(rng.choice(VALUES)).encode()
    kind = rng.randrange(6)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("new", "", "..", "../x", "\x1b[31m", place + "x"))] = holder.pop(place)
    elif kind == 2 and isinstance(here, (int, float)) and not isinstance(here, bool):
        holder[place] = rng.choice((here + 1, -here, here * 1000, str(here), float(here)))
    else:
        holder[place] = rng.choice(VALUES)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        text = "[" * 100_000 + text
    if rng.random() < 0.02:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def mutate_text(data, rng):
    """Lines with words exchanged, removed, repeated or replaced."""
    lines = data.split(b"\n")
    words = lines[rng.randrange(len(lines))].split(b" ")
    at, kind = rng.randrange(len(words)), rng.randrange(5)
    strange = (b"", b"-1", b"0", b"99999999999999999999999", b"..", b"/etc/passwd", b'"', b"'", b"\xff\xfe", b"\0")
    strange += ("\u0663\u00b2\u2028\x85".encode(), b"#", b"a" * 5000, b"\x1b[2J", b"1" * 5000)
    if kind == 0:
        del words[at]
    elif kind == 1:
        words.insert(at, rng.choice(strange))
    elif kind == 2:
        words[at] = rng.choice(strange)
    elif kind == 3:
        rng.shuffle(words)
    else:
        words *= rng.choice((2, 30))
    lines[rng.randrange(len(lines))] = b" ".join(words)
    return b"\n".join(lines)


def mutate_safetensors(data, rng):
    """A safetensors file whose header is changed as JSON, with a length that fits."""
    size = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(json.loads(data[8 : 8 + size]), rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def mutate_zip(members, rng):
    """A zip file with right checksums in which the content, the name or the declared size of one member is changed."""
    members = dict(members)
    name = rng.choice(list(members))
    if rng.random() < 0.75:
        members[name] = mutate_bytes(members[name], rng, list(members.values()))
    else:
        content = members.pop(name)
        if rng.random() < 0.7:
            members[rng.choice((name + "x", "../../" + name, name[1:], name.replace("/", "\\"), ""))] = content
    rows = [stored(name, data) for name, data in members.items()]
    if rows and rng.random() < 0.2:
        at = rng.randrange(len(rows))
        member, data, size, method, crc, place, listed = rows[at]
        if rng.random() < 0.5:
            data, method = zlib.compress(data)[2:-4], 8
        rows[at] = (member, data, rng.choice((size, size + 1, 0, 2**31)), method, crc, place, listed)
    return zip_of(rows)
