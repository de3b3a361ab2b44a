"""Untrusted files: nothing in them is executed, and what they ask for is named."""

import copyreg
import os
import pickle

import pytest

from refvt.model.checkpoints import read_checkpoint
from tests.support.checkpoint_files import (
    ORDERED_DICT,
    dict_of,
    refused,
    storage,
    tensor,
    text,
    torch_file,
    tuple_of,
    whole,
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.pth"


def payloads(canary):
    """Opcodes that make pickle create the canary, and the name that the refusal must contain, by test name."""
    touch, python = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    system = b"cos\nsystem\n" + touch + b"\x85R"
    inner = b"\x80\x02" + system + b"."
    return {
        "reduce": (system, "os.system"),
        "eval": (b"cbuiltins\neval\n" + python + b"\x85R", "builtins.eval"),
        "getattr": (
            b"cbuiltins\ngetattr\n"
            + b"cimportlib\nimport_module\n"
            + text("os")
            + b"\x85R"
            + text("system")
            + b"\x86R",
            "builtins.getattr",
        ),
        "loads": (b"cpickle\nloads\nC" + bytes([len(inner)]) + inner + b"\x85R", "pickle.loads"),
        "inst": (b"(" + touch + b"ios\nsystem\n", "os.system"),
        "inst-text": (b"(V" + f"touch {canary}".encode() + b"\nios\nsystem\n", "os.system"),
        "obj": (b"(cos\nsystem\n" + touch + b"o", "os.system"),
        "stack-global": (text("os") + text("system") + b"\x93" + touch + b"\x85R", "os.system"),
        "dotted": (b"\x80\x04" + text("shutil") + text("os.system") + b"\x93" + touch + b"\x85R", "shutil.os.system"),
        "memo": (b"cos\nsystem\nq\x00" + touch + b"\x85q\x010h\x00h\x01R", "os.system"),
        "extension": (b"\x82\xf0" + touch + b"\x85R", "opcode EXT1 240"),
        "setstate": (
            b"ctypes\nSimpleNamespace\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + touch + b"b",
            "types.SimpleNamespace",
        ),
        "inside": (b"}" + text("state_dict") + dict_of(x=tensor()) + b"s" + text("meta") + system + b"s", "os.system"),
    }


@pytest.fixture
def extension():
    """Extension code 240 means os.system and is cached, as if a library had registered and used it."""
    copyreg.add_extension("os", "system", 240)
    copyreg._extension_cache[240] = os.system
    yield
    copyreg.remove_extension("os", "system", 240)
    copyreg._extension_cache.pop(240, None)


PAYLOADS = sorted(payloads(""))


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("kind", ["zip", "plain"])
@pytest.mark.usefixtures("extension")
def test_nothing_runs(file, name, kind):
    canary = file.with_name("canary")
    opcodes, culprit = payloads(canary)[name]
    if kind == "zip":
        torch_file(file, opcodes)
    else:
        file.write_bytes(b"\x80\x02" + opcodes + b".")
    if name == "inside" and kind == "zip":  # no tensor depends on it
        assert list(read_checkpoint(file)) == ["x"]
    elif name == "inside":
        refused(file, "bare pickle")
    else:
        refused(file, f"refused: the file asks for {culprit}; refvt reads tensors and plain containers and never runs")
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(set(PAYLOADS) - {"memo"}))  # which leaves two values on the stack
@pytest.mark.usefixtures("extension")
def test_nothing_beside_the_weights_runs_either(file, name):
    canary = file.with_name("canary")
    opcodes, culprit = payloads(canary)[name]
    torch_file(file, dict_of(state_dict=dict_of(x=tensor()), beside=opcodes, last=b"](" + opcodes + b"e"))
    assert list(read_checkpoint(file)) == ["x"]
    torch_file(file, dict_of(state_dict=dict_of(x=tensor(), needed=opcodes)))
    found = read_checkpoint(file)
    assert list(found) == ["x"]
    if name != "inside":
        assert culprit in found.passed_over["needed"]
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(set(PAYLOADS) - {"getattr", "inside"}))
@pytest.mark.usefixtures("extension")
def test_the_payloads_do_run_in_pickle(tmp_path, name):
    canary = tmp_path / "canary"
    pickle.loads(b"\x80\x02" + payloads(canary)[name][0] + b".")
    assert canary.exists()


def test_protocol_0_and_nested_pickles_are_refused(file):
    canary = file.with_name("canary")
    file.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    refused(file, "refused: the file asks for os.system;")
    inner = b"\x80\x02cos\nsystem\n" + text(f"touch {canary}") + b"\x85R."
    torch_file(file, dict_of(x=tensor(), inner=b"C" + bytes([len(inner)]) + inner))  # plain bytes, not unpickled
    assert list(read_checkpoint(file)) == ["x"]
    assert not canary.exists()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (REBUILD + b")R", "torch._utils._rebuild_tensor_v2 with arguments that torch.save does not write"),
        (REBUILD + tuple_of(*[text("x")] * 6) + b"R", "torch._utils._rebuild_tensor_v2 with arguments"),
        (REBUILD + tuple_of(storage(), *[whole(0)] * 5) + b"R", "_rebuild_tensor_v2 with arguments .*: .*got int"),
        (tensor(more=dict_of(neg=b"\x88")), "_rebuild_tensor_v2 with arguments"),
        (tensor(more=b"}N"), "_rebuild_tensor_v2 with arguments"),
        (tensor(stride=(3,)), "_rebuild_tensor_v2 with arguments .*2 sizes and 1 strides"),
        (tensor(stride=(-3, 1)), "negative"),
        (tensor(shape=(-2, -3)), "negative"),
        (tensor(offset=-1), "negative"),
        (tensor((1,) * 65, (0,) * 65), "65 sizes"),
        (tensor((0, 2**61), (1, 1)), "too large"),
        (b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(text("x"), b"\x88", b"N") + b"R", "_rebuild_parameter with"),
        (b"ctorch\nFloatStorage\n)R", "torch.FloatStorage with arguments"),
        (b"ctorch\nFloatStorage\n)\x81", "asks for torch.FloatStorage;"),
        (b"ctorch\nFloatStorage\n)}\x92", "asks for torch.FloatStorage;"),
        (b"ctorch\nSize\n" + text("ab") + b"\x85R", "torch.Size with arguments"),
        (b"ccollections\nOrderedDict\n" + tuple_of(b"](" + text("a") + b"e") + b"R", "collections.OrderedDict with"),
        (text("collections") + text("OrderedDict.fromkeys") + b"\x93", "asks for collections.OrderedDict.fromkeys;"),
        (text("torch") + text("FloatStorage.__init__.__globals__") + b"\x93", "asks for torch.FloatStorage.__init__"),
        (text("torch._utils._rebuild_tensor_v2") + text("__globals__") + b"\x93", "_rebuild_tensor_v2.__globals__;"),
        (whole(1) + text("system") + b"\x93", "expected str, got int"),
        (text("os.system") + text("x") + b"\x85R", "expected Global, got str"),
        (REBUILD + b"}b", "expected dict, got Global"),
        (REBUILD + tuple_of(b"N", dict_of(__defaults__=b")")) + b"b", "expected dict, got Global"),
        (tensor() + dict_of(__class__=text("x")) + b"b", "expected dict, got Tensor"),
        (text("0") + b"Q", "expected tuple, got str"),
        (b")Q", "persistent id"),
        (tuple_of(text("module"), *[b"N"] * 4) + b"Q", "persistent id"),
        (
            tuple_of(text("storage"), ORDERED_DICT, text("0"), text("cpu"), whole(6)) + b"Q",
            "expected Global, got dict",
        ),
        (
            tuple_of(text("storage"), b"ctorch\nSize\n", text("0"), text("cpu"), whole(6)) + b"Q",
            "torch.Size as a storage",
        ),
        (b"P0\n", "opcode PERSID"),
        (b"}" + b"))s", "got none in nothing"),
        (b"}" + whole(2**61 - 1) + b"Ns", "got none in nothing"),
        (b"\x8f(" + whole(1) + b"\x90", "a set"),
        (b"0", "damaged"),
        (b"R", "damaged"),
        (b"h\x07", "damaged"),
        (b"t", "damaged"),
        (b"}(" + text("a") + b"u", "zip"),
        (b"c\xff\n\n", "codec"),
        (b"cos\x1b[31m\nsystem\n", r"asks for os\\x1b\[31m.system"),
        (b"N", "expected a dict of tensors, got a NoneType"),
        (dict_of(a=whole(1)), "expected tensors under .* got none"),
        (dict_of(y=b"]", z=b"}"), r"got none in y \(list\), z \(dict\)"),
    ],
)
def test_odd_pickles(file, opcodes, message):
    before = read_checkpoint.__defaults__
    refused(torch_file(file, opcodes), message)
    assert read_checkpoint.__defaults__ is before


def test_build_only_drops_its_state(file):
    state = dict_of(_metadata=ORDERED_DICT, __setstate__=text("x"), __dict__=b"}", keys=b"N")
    found = read_checkpoint(torch_file(file, ORDERED_DICT + text("x") + tensor() + b"s" + state + b"b"))
    assert list(found) == ["x"]
