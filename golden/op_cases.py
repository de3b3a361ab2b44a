"""The operation cases: arguments for each operation, chosen so that common mistakes show.

Sizes are not multiples of 16, 32 or 64, so that tiled implementations have incomplete tiles. The generator rounds
floats to float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arguments = dict[str, np.ndarray]


@dataclass(frozen=True)
class OpCase:
    """One call of one operation; ``make`` draws the arguments, ``settings`` are passed unchanged."""

    operation: str
    variant: str
    describes: str
    make: Callable[[np.random.Generator], Arguments]
    settings: dict[str, Any] = field(default_factory=dict)
    tiny: bool = False
    halts_in: tuple[int, ...] | None = None  # exactly the layers in which tokens must halt
    exact_ties: bool = False  # some sums are exactly 1 - ε in every dtype; they count for no margin

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return f"{'tiny-' if self.tiny else ''}op-{self.operation}-{self.variant}"


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal(shape)


def _offsets(*lengths: int) -> np.ndarray:
    return np.cumsum([0, *lengths])


def _embed(batch: int, channels: int, frames: int, grid: tuple[int, int], side: int, dim: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        rows, columns = grid
        return {
            "clips": rng.uniform(-1, 1, (batch, channels, frames, rows * side, columns * side)),
            "weight": _normal(rng, dim, channels, side, side, scale=0.3),
            "bias": _normal(rng, dim),
            "cls_token": _normal(rng, 1, 1, dim),
            "pos_embed": _normal(rng, 1, 1 + rows * columns, dim),
            "time_embed": _normal(rng, 1, frames, dim),
        }

    return make


def _layernorm(rows: int, dim: int, mean: float = 0.0, scale: float = 1.0, zero_rows: int = 0) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        x = mean + scale * _normal(rng, rows, dim)
        x[:zero_rows] = 0
        return {"x": x, "weight": 1 + _normal(rng, dim, scale=0.3), "bias": _normal(rng, dim, scale=0.3)}

    return make


def _gain(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Scales of stochastic depth (DropPath) for each row: 0, or 1 / 0.75."""
    gain = (rng.random(rows) < 0.6) / 0.75
    gain[:2] = 0, 1 / 0.75
    return gain


def _linear(rows: int, inputs: int, outputs: int, residual: bool = False, gain: bool = False) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        arguments = {
            "x": _normal(rng, rows, inputs),
            "weight": _normal(rng, outputs, inputs, scale=0.3),
            "bias": _normal(rng, outputs),
        }
        if residual:
            arguments["residual"] = _normal(rng, rows, outputs)
        if gain:
            arguments["gain"] = _gain(rng, rows)
        return arguments

    return make


def _mlp(rows: int, dim: int, hidden: int, residual: bool = False, gain: bool = False) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        arguments = {
            "x": _normal(rng, rows, dim),
            "fc1_weight": _normal(rng, hidden, dim, scale=0.4),
            "fc1_bias": _normal(rng, hidden),
            "fc2_weight": _normal(rng, dim, hidden, scale=0.3),
            "fc2_bias": _normal(rng, dim),
        }
        if residual:
            arguments["residual"] = _normal(rng, rows, dim)
        if gain:
            arguments["gain"] = _gain(rng, rows)
        return arguments

    return make


def _gelu(rows: int, columns: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        x = 3 * _normal(rng, rows, columns)
        x[0] = np.linspace(-12, 12, columns)
        x[1, :3] = 0, 1e-4, -1e-4
        return {"x": x}

    return make


def _attention(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    dim: int,
    scale: float = 1.0,
    bias: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Any:
    """``bias(key_bias, key_offsets)`` changes a key_bias of zeros in place."""

    def make(rng: np.random.Generator) -> Arguments:
        arguments: Arguments = {
            "q": _normal(rng, sum(queries), dim, scale=scale),
            "k": _normal(rng, sum(keys), dim, scale=scale),
            "v": _normal(rng, sum(keys), dim),
            "query_offsets": _offsets(*queries),
            "key_offsets": _offsets(*keys),
        }
        if bias is not None:
            arguments["key_bias"] = np.zeros(sum(keys))
            bias(arguments["key_bias"], arguments["key_offsets"])
        return arguments

    return make


def _ghosts(key_bias: np.ndarray, offsets: np.ndarray) -> None:
    """The last key of segment i is a ghost for 2 + i tokens; the second key of every other segment is masked."""
    key_bias[offsets[1:] - 1] = np.log(2.0 + np.arange(len(offsets) - 1))
    key_bias[offsets[:-1:2] + 1] = -np.inf


def _one_segment_off(key_bias: np.ndarray, offsets: np.ndarray) -> None:
    """All keys of segment 1 are masked, and one key of segment 0."""
    key_bias[offsets[1] : offsets[2]] = -np.inf
    key_bias[0] = -np.inf


def _gather(shape: tuple[int, ...], index: list[int]) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        return {"x": _normal(rng, *shape), "index": np.array(index)}

    return make


def _segment_mean(dim: int, *lengths: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        return {"x": _normal(rng, sum(lengths), dim), "offsets": _offsets(*lengths)}

    return make


def _cls_scores(segments: int, rows: int, dim: int, scale: float = 1.0) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        q, k = (_normal(rng, segments * rows, dim, scale=scale) for _ in range(2))
        return {"q": q, "k": k, "offsets": np.arange(segments + 1) * rows}

    return make


def _scores(segments: int, patches: int, levels: int = 0) -> Any:
    """Scores in (0, 1); with ``levels`` they are multiples of 1 / levels, so that many are exactly equal."""

    def make(rng: np.random.Generator) -> Arguments:
        scores = rng.random((segments, patches))
        return {"scores": np.ceil(scores * levels) / levels if levels else scores}

    return make


def _fuse(segments: int, patches: int, k: int, dim: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        scores = rng.random((segments, patches)) / patches
        kept = np.argsort(-scores, axis=1)[:, :k]
        return {"x": _normal(rng, segments * patches, dim), "scores": scores, "kept": kept}

    return make


def _halt(rows: int, forced: bool = False) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        used = 0.95 * rng.random(rows)
        used[::3] = 0
        logit = 1 + 0.4 * _normal(rng, rows)
        arguments: Arguments = {"logit": logit, "used": used}
        if forced:
            arguments["forced"] = rng.random(rows) < 0.5
        return arguments

    return make


def _halt_ties(rng: np.random.Generator) -> Arguments:
    """Logits and sums around an exact tie: σ(10 · 1 - 10) = 1/2, and 1 - ε = 3/4, in every dtype.

    The sum of rows 0 and 5 is exactly 3/4; those of rows 1 and 2 are a little more and a little less.
    """
    step = 1 / 64
    used = np.array([0.25, 0.25 + step, 0.25 - step, 0.0, 0.5, 0.25])
    return {"logit": np.ones(len(used)), "used": used}


def _accumulate(rows: int, dim: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        weight = rng.random(rows)
        weight[:2] = 0, 1
        return {"y": _normal(rng, rows, dim), "x": _normal(rng, rows, dim), "weight": weight}

    return make


def _states(layers: int, tokens: int, dim: int, mean: float, spread: float = 0.25) -> Any:
    """States whose channel 0, the halting logit, is normal around ``mean``."""

    def make(rng: np.random.Generator) -> Arguments:
        states = _normal(rng, layers, tokens, dim)
        states[..., 0] = mean + spread * states[..., 0]
        return {"states": states}

    return make


def _classes(batch: int, classes: int, soft: bool = False, scale: float = 2.0) -> Any:
    """Logits and labels; soft labels are multiples of 1/64, so that they sum to exactly one, even in float32."""

    def make(rng: np.random.Generator) -> Arguments:
        targets = rng.integers(0, classes, batch)
        logits = _normal(rng, batch, classes, scale=scale)
        if not soft:
            return {"logits": logits, "targets": targets}
        return {"logits": logits, "targets": rng.multinomial(64, np.full(classes, 1 / classes), batch) / 64}

    return make


def _motion(batch: int) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        return {"logits": _normal(rng, batch, 2, scale=2.0), "moving": np.arange(batch) % 2}

    return make


def _ponder(batch: int, tokens: int, weights: bool = False) -> Any:
    def make(rng: np.random.Generator) -> Arguments:
        arguments = {"ponder": rng.uniform(2, 11, (batch, tokens))}
        if weights:
            arguments["weights"] = rng.uniform(0, 3, (batch, tokens))
            arguments["weights"][0, :2] = 0, 1
        return arguments

    return make


def _halting(scale: float, center: float, **more: Any) -> dict[str, Any]:
    return {"scale": scale, "center": center, "epsilon": 0.01, **more}


def _halt_tokens(
    variant: str, describes: str, make: Any, center: float, halts_in: tuple[int, ...], tiny: bool = False
) -> OpCase:
    return OpCase("halt_tokens", variant, describes, make, _halting(10.0, center), tiny, halts_in)


HEADS = {"num_heads": 3}
TINY = {"num_heads": 2}
LARGE_QUERIES, LARGE_KEYS = (70, 3, 20), (45, 37, 21)

OP_CASES = [
    OpCase("embed", "square", "square frames of square grids", _embed(2, 3, 2, (3, 3), 4, 24)),
    OpCase("embed", "wide", "frames wider than high, one channel", _embed(1, 1, 3, (2, 5), 3, 18)),
    OpCase("embed", "basic", "one clip of two frames", _embed(1, 1, 2, (1, 2), 2, 8), tiny=True),
    OpCase("layernorm", "plain", "rows of unit scale", _layernorm(37, 50)),
    OpCase("layernorm", "offset", "mean a hundred times the deviation", _layernorm(19, 40, mean=100.0)),
    OpCase(
        "layernorm",
        "small",
        "variance near the 1e-6 under the root, and rows of zeros, as halted tokens are",
        _layernorm(21, 24, scale=1e-3, zero_rows=4),
    ),
    OpCase("layernorm", "basic", "one row is zero", _layernorm(5, 8, zero_rows=1), tiny=True),
    OpCase("linear", "plain", "x Wᵀ + b, beyond one tile in every direction", _linear(67, 70, 45)),
    OpCase("linear", "residual", "with a residual", _linear(37, 24, 40, residual=True)),
    OpCase("linear", "gain", "a gain per row, some zero", _linear(37, 24, 40, True, True)),
    OpCase("linear", "one-row", "a single row", _linear(1, 33, 20, residual=True)),
    OpCase("linear", "basic", "with residual and gain", _linear(5, 8, 12, True, True), tiny=True),
    OpCase("gelu", "wide-range", "values from -12 to 12, zero and nearly zero", _gelu(6, 49)),
    OpCase("gelu", "basic", "values from -12 to 12", _gelu(3, 8), tiny=True),
    OpCase("mlp", "plain", "fc2(GELU(fc1(x)))", _mlp(37, 24, 90)),
    OpCase("mlp", "residual", "with a residual", _mlp(19, 24, 50, residual=True)),
    OpCase("mlp", "gain", "with residual and a gain per row, some zero", _mlp(23, 18, 40, True, True)),
    OpCase("mlp", "basic", "with residual and gain", _mlp(4, 8, 16, True, True), tiny=True),
    OpCase("attention", "equal", "equal segments", _attention((7,) * 4, (7,) * 4, 24), HEADS),
    OpCase(
        "attention",
        "ragged",
        "segments of unequal lengths, queries and keys differing in number, longer than one tile",
        _attention(LARGE_QUERIES, LARGE_KEYS, 24),
        HEADS,
    ),
    OpCase(
        "attention",
        "key-bias",
        "ghost keys raised by log m, some keys at -inf",
        _attention((5, 9, 17, 4), (6, 10, 18, 3), 24, bias=_ghosts),
        HEADS,
    ),
    OpCase(
        "attention",
        "large-logits",
        "logits to beyond ±60: exp would overflow float32 but for the maximum taken out",
        _attention((12, 20), (15, 33), 24, scale=5.0),
        HEADS,
    ),
    OpCase(
        "attention",
        "empty",
        "a segment without a query, and one whose keys are all at -inf: y = 0 there, no gradient",
        _attention((4, 6, 0, 5), (5, 7, 3, 6), 24, bias=_one_segment_off),
        HEADS,
    ),
    OpCase("attention", "single-head", "one head of all channels", _attention((9, 3), (9, 3), 20), {"num_heads": 1}),
    OpCase("attention", "basic", "two segments", _attention((2, 4), (3, 4), 8), TINY, tiny=True),
    OpCase(
        "attention",
        "key-bias",
        "ghost keys and masked keys",
        _attention((2, 3), (4, 3), 8, bias=_ghosts),
        TINY,
        tiny=True,
    ),
    OpCase(
        "attention",
        "empty",
        "a segment without a query, and one whose keys are all at -inf",
        _attention((2, 2, 0), (3, 2, 2), 8, bias=_one_segment_off),
        TINY,
        tiny=True,
    ),
    OpCase(
        "gather",
        "rows",
        "repeated rows, unused rows and zero rows",
        _gather((9, 24), [3, -1, 0, 3, 3, 8, -1, 5, 0, 1, 8, 8, 8, 8]),
    ),
    OpCase("gather", "vector", "a vector of numbers", _gather((9,), [8, 8, -1, 2, 0, 2, 5])),
    OpCase("gather", "permutation", "every row once", _gather((7, 10), [3, 6, 0, 5, 1, 4, 2])),
    OpCase("gather", "basic", "repeated and zero rows", _gather((4, 8), [2, -1, 2, 0, 3]), tiny=True),
    OpCase(
        "gather",
        "last-unread",
        "zero rows, and a last row that is never read: its gradient is zero",
        _gather((4, 8), [2, -1, 0, 2, -1]),
        tiny=True,
    ),
    OpCase("segment_mean", "equal", "equal segments", _segment_mean(24, 5, 5, 5, 5)),
    OpCase("segment_mean", "ragged", "unequal segments", _segment_mean(24, 1, 9, 4, 40)),
    OpCase("segment_mean", "basic", "unequal segments", _segment_mean(8, 1, 3), tiny=True),
    OpCase("cls_scores", "plain", "CLS row of three heads", _cls_scores(5, 12, 24), HEADS),
    OpCase("cls_scores", "sharp", "heads that all but choose one key", _cls_scores(4, 40, 24, 2.5), HEADS),
    OpCase("cls_scores", "basic", "CLS row of two heads", _cls_scores(2, 5, 8), TINY, tiny=True),
    OpCase("top_k", "distinct", "distinct scores", _scores(6, 37), {"k": 11}),
    OpCase("top_k", "ties", "exactly equal scores: lower index first", _scores(6, 37, levels=4), {"k": 20}),
    OpCase("top_k", "all", "k = S: a sort", _scores(3, 9), {"k": 9}),
    OpCase("top_k", "basic", "exactly equal scores", _scores(2, 5, levels=2), {"k": 3}, tiny=True),
    OpCase("fuse_dropped", "some", "seven of twelve patches kept", _fuse(5, 12, 7, 24)),
    OpCase("fuse_dropped", "none", "k = S: nothing dropped, the zero token", _fuse(3, 9, 9, 24)),
    OpCase("fuse_dropped", "basic", "two of four patches kept", _fuse(2, 4, 2, 8), tiny=True),
    OpCase("halt", "mixed", "some halt, some go on", _halt(60), _halting(10.0, 10.0, last=False)),
    OpCase("halt", "last", "the last layer: all halt", _halt(30), _halting(10.0, 10.0, last=True)),
    OpCase("halt", "forced", "decisions of another run", _halt(40, True), _halting(5.0, 5.0, last=False)),
    OpCase("halt", "basic", "some halt, some go on", _halt(10), _halting(10.0, 10.0, last=False), tiny=True),
    OpCase(
        "halt",
        "tie",
        "sums of exactly 1 - ε, which do not halt",
        _halt_ties,
        {"scale": 10.0, "center": 10.0, "epsilon": 0.25, "last": False},
        tiny=True,
        exact_ties=True,
    ),
    OpCase("accumulate", "plain", "weights from 0 to 1", _accumulate(37, 24)),
    OpCase("accumulate", "basic", "weights from 0 to 1", _accumulate(4, 8), tiny=True),
    _halt_tokens("beta10", "halting spread over the layers", _states(6, 40, 12, 0.85), 10.0, (2, 3, 4, 5, 6)),
    _halt_tokens("beta20", "centre 20", _states(6, 40, 12, 1.85), 20.0, (2, 3, 4, 5, 6)),
    _halt_tokens("beta5", "centre 5", _states(6, 40, 12, 0.35), 5.0, (1, 2, 3, 4, 5, 6)),
    _halt_tokens("first", "all halt in layer 1", _states(4, 20, 12, 2.0, 0.1), 10.0, (1,)),
    _halt_tokens("never", "none halts before the end", _states(4, 20, 12, 0.7, 0.1), 10.0, (4,)),
    _halt_tokens("one-layer", "one layer: y is its state", _states(1, 8, 12, 1.0), 10.0, (1,)),
    _halt_tokens("basic", "four layers", _states(4, 10, 8, 0.9), 10.0, (2, 3, 4), tiny=True),
    OpCase("cross_entropy", "labels", "class labels", _classes(7, 20), {"label_smoothing": 0.0}),
    OpCase("cross_entropy", "smoothing", "label smoothing 0.1", _classes(7, 20), {"label_smoothing": 0.1}),
    OpCase("cross_entropy", "soft", "soft labels", _classes(5, 20, True), {"label_smoothing": 0.0}),
    OpCase(
        "cross_entropy",
        "soft-smoothing",
        "soft labels, smoothed",
        _classes(5, 20, True),
        {"label_smoothing": 0.1},
    ),
    OpCase(
        "cross_entropy",
        "large-logits",
        "logits beyond ±100",
        _classes(6, 20, scale=60.0),
        {"label_smoothing": 0.1},
    ),
    OpCase("cross_entropy", "basic", "smoothed labels", _classes(2, 5), {"label_smoothing": 0.1}, tiny=True),
    OpCase("ponder_loss", "plain", "three clips", _ponder(3, 37)),
    OpCase("ponder_loss", "basic", "one clip", _ponder(1, 9), tiny=True),
    OpCase("ponder_loss", "weights", "a weight for each token", _ponder(2, 9, weights=True), tiny=True),
    OpCase("motion_loss", "plain", "moving and static clips", _motion(7)),
    OpCase("motion_loss", "basic", "moving and static clips", _motion(2), tiny=True),
]
