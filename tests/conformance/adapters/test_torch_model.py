"""``torch_model``: tensors are recognised in modules of two styles, and the first wrong one is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refvt.array import Array
from refvt.conformance import check
from refvt.conformance.candidates import collected_warnings
from refvt.conformance.cases import Truth, model_case, truth_of
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.judgement import judge

torch = pytest.importorskip("torch")

from refvt.conformance import adapters  # noqa: E402
from tests.support.torch_style import Blocks  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module class."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs" / "examples"))
    from torch_port import HaltingVT

    return HaltingVT


def answer(candidate: Callable[..., dict[str, Array]], name: str, dtype: str = "float32") -> tuple[Truth, dict]:
    """The truth of a case, and what a candidate gives for it."""
    case = load_manifest()[name]
    arrays = load_arrays(case)
    return truth_of(case, arrays), candidate(model_case(case, arrays, dtype))


def wrong_ones(truth: Truth, given: dict[str, Array], dtype: str = "float32") -> list[str]:
    """The names that differ, in the order of computation."""
    return [name for name in truth if name in given and judge(truth, name, given[name], dtype).status != "agrees"]


CASES = ("model-zero", "model-unequal-masked", "model-fuse-then-prune", "model-one-frame", "model-no-glimpser")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_of_a_right_module_is_called_wrong(case: str, dtype: str, port: Any) -> None:
    for build in (Blocks, lambda config, parameters: port(config)):
        truth, given = answer(adapters.torch_model(build), case, dtype)
        assert wrong_ones(truth, given, dtype) == []
        assert len(given) > 0.95 * len(truth)  # nearly all tensors are found, with their gradients


@pytest.mark.parametrize(
    ("wrong", "case", "first"),
    [
        ("norm", "model-zero", "blocks.0.temporal_norm1"),
        ("norm", "model-no-glimpser", "blocks.0.norm1"),
        ("no scale", "model-zero", "blocks.0.temporal_attn.y"),
        ("no scale", "model-no-glimpser", "blocks.0.attn.y"),
        ("skip", "model-prune-two-zero", "blocks.0.selected"),
        ("remainder", "model-prune-two-zero", "joint.1.weight"),
    ],
)
def test_the_first_wrong_tensor_is_named_where_nothing_has_a_name(wrong: str, case: str, first: str) -> None:
    build = lambda config, parameters: Blocks(config, parameters, wrong)  # noqa: E731
    truth, given = answer(adapters.torch_model(build), case)
    assert wrong_ones(truth, given)[0] == first


@pytest.mark.parametrize(
    ("bug", "first"),
    [
        ("eps", "blocks.0.temporal_norm1"),
        ("tanh", "blocks.0.mlp"),
        ("index order", "blocks.0.selected"),
        ("floor", "blocks.0.selected"),
        ("remainder detached", "d(blocks.3.mlp)"),
    ],
)
def test_the_first_wrong_tensor_is_named_in_the_example(bug: str, first: str, port: Any) -> None:
    truth, given = answer(adapters.torch_model(lambda config, parameters: port(config, bug)), "model-prune-two-zero")
    assert wrong_ones(truth, given)[0] == first


def test_a_tensor_of_other_size_is_given_as_it_is(port: Any) -> None:
    _, given = answer(adapters.torch_model(lambda config, parameters: port(config, "floor")), "model-prune-two-zero")
    assert given["blocks.0.selected"].shape == (1, 17, 8)  # 8 patches of 12, and not 9


def test_parameters_are_recognised_by_value_in_any_shape() -> None:
    truth, given = answer(adapters.torch_model(Blocks), "model-zero")
    parameters = {name for name in truth if truth[name].layout == "parameter"}
    assert parameters <= set(given)  # q, k and v apart and transposed; the patch weight as it is


@pytest.mark.parametrize("wrap", ["model", "compiled and parallel"])
def test_parameters_of_a_model_inside_another_module_are_loaded_by_name(port: Any, wrap: str) -> None:
    """Beside the model there may be a buffer, of the pixels' mean for example; wrappers put words before the names."""

    class Around(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.model = port(config)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, clips: Any) -> Any:
            return self.model(clips)

    class Wrapped(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.module = torch.nn.Module()
            self.module._orig_mod = port(config)

        def forward(self, clips: Any) -> Any:
            return self.module._orig_mod(clips)

    kind = Around if wrap == "model" else Wrapped
    truth, given = answer(adapters.torch_model(lambda config, parameters: kind(config)), "tiny-model-zero")
    assert not wrong_ones(truth, given)
    assert "d(head.weight)" in given


def test_parameters_that_build_has_loaded_are_left_as_they_are(port: Any) -> None:
    def build(config: Any, parameters: dict[str, Array]) -> Any:
        module = port(config)
        module.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
        with torch.no_grad():
            module.head.bias += 1
        return module

    truth, given = answer(adapters.torch_model(build), "tiny-model-zero")
    assert wrong_ones(truth, given)[0] == "logits"


def test_names_map(port: Any) -> None:
    names = {"blocks.{i}.norm2": "blocks.{i}.norm2", "blocks.0.attn.proj:input": "blocks.0.attn.y"}
    build = lambda config, parameters: port(config)  # noqa: E731
    truth, given = answer(adapters.torch_model(build, names), "tiny-model-zero")
    assert wrong_ones(truth, given) == []
    # a map that names another tensor is believed where the module itself is wrong
    broken = lambda config, parameters: port(config, "tanh")  # noqa: E731
    truth, given = answer(adapters.torch_model(broken, {"blocks.0.norm1": "blocks.0.attn.q"}), "tiny-model-zero")
    assert wrong_ones(truth, given)[0] == "blocks.0.attn.q"
    with pytest.raises(ValueError, match=r"names: expected paths of modules, got 'blocks.9.norm9'"):
        answer(adapters.torch_model(build, {"blocks.9.norm9": "norm"}), "tiny-model-zero")


def test_drop_path_is_not_given_to_a_module_without_it(port: Any) -> None:
    _, given = answer(adapters.torch_model(lambda config, parameters: port(config)), "model-drop-path")
    assert given == {}


def test_messages(port: Any) -> None:
    with pytest.raises(TypeError, match=r"build: expected it to return a torch.nn.Module, got int"):
        answer(adapters.torch_model(lambda config, parameters: 3), "tiny-model-zero")

    class Pair(port):  # type: ignore[misc]
        def forward(self, clips: Any) -> Any:
            return super().forward(clips)[:2]

    with pytest.raises(TypeError, match=r"forward: expected \(logits, motion_logits, ponder\).*got tuple of 2"):
        answer(adapters.torch_model(lambda config, parameters: Pair(config)), "tiny-model-zero")


def test_decisions_within_rounding_are_read_from_a_module_in_bfloat16(port: Any) -> None:
    truth, given = answer(
        adapters.torch_model(lambda config, parameters: port(config)), "model-unequal-masked", "bfloat16"
    )
    assert given["decisions.kept.0"].shape == truth["decisions.kept.0"].value.shape
    assert np.any(given["decisions.kept.0"] != truth["decisions.kept.0"].value)


def test_a_names_map_that_contradicts_the_values_is_warned_of(port: Any) -> None:
    build = lambda config, parameters: port(config)  # noqa: E731
    names = {
        "blocks.0.norm1": "blocks.0.attn.y",  # has the value of blocks.0.norm1
        "head": "blocks.1.mlp",  # has another size
        "blocks.1.norm2": "blocks.1.norm2",  # is right
    }
    with collected_warnings() as found:
        answer(adapters.torch_model(build, names), "tiny-model-zero")
    assert sorted(found) == [
        "names: what is mapped to blocks.0.attn.y has the value of blocks.0.norm1",
        "names: what is mapped to blocks.1.mlp has not its size, and is not compared",
    ]


def test_a_module_of_the_map_that_runs_twice_is_warned_of(port: Any) -> None:
    class Twice(port):  # type: ignore[misc,valid-type,unused-ignore]
        def forward(self, clips: Any) -> Any:
            super().forward(clips)
            return super().forward(clips)

    candidate = adapters.torch_model(lambda config, parameters: Twice(config), {"norm": "norm"})
    report = check(candidate, cases="tiny-model-zero")
    said = "names: norm is called more than once in a forward; its last call is compared as norm"
    assert report.warnings == (said,)
    assert report.agrees
