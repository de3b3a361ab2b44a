"""``torch_operation`` and ``jax_operation``: the contract of an operation, and the budgets of the golden cases."""

from typing import Any

import numpy as np
import pytest

from refvt.backends import get
from refvt.conformance import adapters
from refvt.conformance.checking import check

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def attention(
    q: Any, k: Any, v: Any, query_offsets: Any, key_offsets: Any, num_heads: int, key_bias: Any = None
) -> Any:
    """Attention inside segments, one after another."""
    parts = []
    for i in range(len(query_offsets) - 1):
        keys = slice(int(key_offsets[i]), int(key_offsets[i + 1]))
        heads = [x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (k[keys], v[keys])]
        queries = q[int(query_offsets[i]) : int(query_offsets[i + 1])].unflatten(-1, (num_heads, -1)).transpose(0, 1)
        logits = queries @ heads[0].mT / queries.shape[-1] ** 0.5
        logits = logits if key_bias is None else logits + key_bias[keys]
        none = (logits == -torch.inf).all(-1, keepdim=True)  # no key at all: the answer is zero
        weights = torch.where(none, 0.0, torch.where(none, 0.0, logits).softmax(-1))
        parts.append((weights @ heads[1]).transpose(0, 1).flatten(1))
    return torch.cat(parts)


class Mine:
    attention = adapters.torch_operation(attention)
    layernorm = adapters.torch_operation(
        lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, 1e-6)  # other names: called in order
    )
    gather = adapters.torch_operation(lambda x, index: torch.cat([x, torch.zeros_like(x[:1])])[index])


def test_operations_of_pytorch_agree_forward_and_backward() -> None:
    report = check(Mine, cases="*op-[alg]*")
    agreeing = [case for case in report.cases if case.status == "agrees"]
    assert report.agrees, report.sentence
    assert {"op-attention-key-bias", "op-layernorm-plain", "op-gather-rows"} <= {case.name for case in agreeing}
    assert all(case.compared == case.total for case in agreeing)


def test_contract_of_an_operation() -> None:
    x, weight, bias = (np.random.default_rng(0).standard_normal(s) for s in ((5, 8), 8, 8))
    op, reference = Mine.layernorm, get("reference").layernorm
    y, cache = op.forward(x, weight, bias)
    assert op.forward(x, weight, bias, keep=False)[1] is None
    np.testing.assert_allclose(y, reference.forward(x, weight, bias)[0], rtol=1e-12)
    gradients = op.backward(np.ones_like(y), cache)
    again = op.backward(np.ones_like(y), cache)  # the cache is not used up
    assert [g.shape for g in gradients] == [(5, 8), (8,), (8,)]
    assert all(np.array_equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_name_of_the_operation() -> None:
    assert adapters.torch_operation(attention).name == "attention"
    assert Mine.layernorm.name == "layernorm"
    assert adapters.torch_operation(lambda x: x, name="gelu").name == "gelu"
    with pytest.raises(ValueError, match="name: expected an operation of the table"):
        adapters.torch_operation(lambda x: x, name="softmax")
    with pytest.raises(TypeError, match="operation: expected a name of the table"):
        adapters.torch_operation(lambda x: x).forward(np.ones(3))
    with pytest.raises(TypeError, match=r"halt_tokens: expected 3 results \(y, ponder, halting_layer\), got 1"):
        adapters.torch_operation(lambda *given: given[0], name="halt_tokens").forward(np.ones((1, 2, 3)), 1.0, 0.0, 0.1)


def test_an_optional_argument_without_the_one_before_it() -> None:
    """Called in order, a gain without a residual must not land in the residual's place."""
    linear = adapters.torch_operation(
        lambda a, w, b, r=None, g=None: (0 if r is None else r) + (1 if g is None else g[:, None]) * (a @ w.T + b),
        name="linear",
    )
    rng = np.random.default_rng(0)
    x, weight, bias, gain = (rng.standard_normal(shape) for shape in ((5, 4), (3, 4), 3, 5))
    y, _ = linear.forward(x, weight, bias, gain=gain)
    np.testing.assert_allclose(y, gain[:, None] * (x @ weight.T + bias), rtol=1e-12)
