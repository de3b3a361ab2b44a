"""Plans: the index arrays that say which rows take part in a block, which are queries, and which go on.

Every switch of the model ends here, in index arrays. ``LayerPlan``, the plan of one joint block, is
declared in ``ops/compaction``. The blocks that compute (``glimpser.py``, ``joint.py``) only gather, attend and scatter;
they are the same for dense and compact execution, with and without a backward pass.

*Dense* execution keeps a row for every token and sets halted ones to zero, as the released model does. *Compact*
execution removes them. The identities that make the answers equal (exact in real arithmetic):

1. `masked`: a halted token is no key, so it can be removed.
2. `zero`: the m halted tokens of a clip enter a block as the same zero vector. One *ghost*, key and value only, with
   log m added to its logit, stands for all of them (``ops.compaction``).
3. Once CLS has halted, nothing computed later reaches the logits: at inference the clip leaves.
4. In the last block every token halts with its remainder, whatever its state is, and only the output of CLS is read:
   CLS is the only query, the other tokens are keys and values. A clip whose CLS has halted skips the block.
5. In a Glimpser block that selects, the scores need the keys and the query of CLS. Only CLS and the patches that are
   kept need to be queries: the others are dropped with their answers (unless *fuse* keeps a sum of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.backends import Backend
from refvt.model.config import HaltingVTConfig
from refvt.model.drop_path import DropPath
from refvt.ops.compaction import AnySurvivors, LayerPlan, all_alive
from refvt.packing import first_rows, frozen_copy, offsets_of

__all__ = [
    "Compact",
    "Dense",
    "Execution",
    "FrameLayout",
    "GlimpserPlan",
    "frame_layout",
    "glimpser_plan",
    "merge_pays",
    "selected_rows",
    "steps_of",
]


@dataclass(frozen=True)
class Execution:
    """How one forward pass is made: the switches of the model in one place.

    compact: compute only living tokens. leave_early: a clip leaves once its CLS has halted. every_output: form the
    output y of every token, not of CLS alone (a trace wants it). kept_places: for each Glimpser block the imposed
    places [B·T, k] of the kept patches among those that enter it (None: the block keeps all, or decides itself).
    halting_layer: int64 [B, N'], imposed. drop_path: the DropPath scales of a training step.
    """

    compact: bool = True
    leave_early: bool = False
    every_output: bool = False
    kept_places: tuple[Array | None, ...] | None = None
    halting_layer: Array | None = None
    drop_path: DropPath | None = None


# ---- Glimpser blocks


class GlimpserPlan(NamedTuple):
    """The rows of a Glimpser block that S patches per frame enter, and what the block does with them.

    The state holds B clips of N = 1 + S·T rows: CLS, then the patches, patch s of frame t at row 1 + s·T + t. After a
    selection s is a rank: patch s may be another place of the picture in every frame. *Frame
    order* holds B·T frames of 1 + S rows: a copy of CLS, then the patches of the frame.
    """

    # 1. temporal attention
    path_rows: Array  # [B·S·T] rows of the state, the T rows of one patch next to one another
    path_offsets: Array  # [B·S+1] one segment per patch
    state_paths: Array  # [B·N] for each row of the state its row among the paths, −1 at CLS
    is_patch: Array  # [B·N] 1.0 at a patch, 0.0 at CLS
    # 2. spatial attention
    frame_order: Array  # [B·T·(1+S)] the row of the state at each place of frame order
    frame_offsets: Array  # [B·T+1] one segment per frame
    residual_rows: Array  # [B·T·(1+S)] the same for the skip input: −1 at CLS where it loses its skip input
    frame_table: Array  # [B·T, 1+S] the rows of frame order, one line per frame; CLS first
    cls_rows: Array  # [B·T] those of CLS
    cls_of_row: Array  # [B·T·(1+S)] for each row its frame if the row is CLS, else −1
    patch_rows: Array  # [B·T·S] those of the patches
    # 3. selection
    num_kept: int  # patches that each frame keeps; S if the block does not select
    selects: bool
    fuses: bool  # one more token: the sum of the dropped patches
    few_queries: bool  # only CLS and the kept patches are queries
    cls_keeps_skip: bool  # the frames themselves are the skip input

    @property
    def num_queries(self) -> int:
        """Patches of each frame that are queries."""
        return self.num_kept if self.few_queries else self.frame_table.shape[1] - 1


@lru_cache(maxsize=64)
def glimpser_plan(config: HaltingVTConfig, block: int, B: int, S: int, compact: bool, dtype: Any) -> GlimpserPlan:
    """The plan of Glimpser block ``block`` for B clips of which S patches per frame enter. Its arrays are read-only."""
    T, N = config.num_frames, 1 + S * config.num_frames
    state = np.arange(B * N).reshape(B, N)
    patches = state[:, 1:].reshape(B, S, T)
    state_paths = np.full((B, N), -1)
    state_paths[:, 1:] = np.arange(B * S * T).reshape(B, S * T)
    cls = np.broadcast_to(state[:, :1, None], (B, T, 1))
    by_frame = patches.transpose(0, 2, 1)  # [B, T, S]
    frame_order = np.concatenate([cls, by_frame], axis=2).ravel()
    table = np.arange(B * T * (1 + S)).reshape(B * T, 1 + S)
    cls_of_row = np.full(table.shape, -1)
    cls_of_row[:, 0] = np.arange(B * T)

    selects = config.keep_rates[block] < 1
    fuses = selects and config.fuse_dropped
    # the released model loses the skip input of CLS where it selects
    cls_keeps_skip = not selects or config.cls_skip
    without_cls = np.concatenate([np.full_like(cls, -1), by_frame], axis=2).ravel()
    plan = GlimpserPlan(
        path_rows=patches.ravel(),
        path_offsets=np.arange(B * S + 1) * T,
        state_paths=state_paths.ravel(),
        is_patch=(state_paths >= 0).ravel().astype(dtype),
        frame_order=frame_order,
        frame_offsets=np.arange(B * T + 1) * (1 + S),
        residual_rows=frame_order if cls_keeps_skip else without_cls,
        frame_table=table,
        cls_rows=table[:, 0],
        cls_of_row=cls_of_row.ravel(),
        patch_rows=table[:, 1:].ravel(),
        num_kept=config.num_kept_patches(block, S),
        selects=selects,
        fuses=fuses,
        few_queries=compact and selects and not fuses,
        cls_keeps_skip=cls_keeps_skip,
    )
    arrays = {name: part for name, part in plan._asdict().items() if isinstance(part, np.ndarray)}
    read_only: Any = {name: frozen_copy(array) for name, array in arrays.items()}
    return plan._replace(**read_only)


class FrameLayout(NamedTuple):
    """Rows in frame order when each frame holds CLS and k patches, and the way back to the order of the state."""

    rows: Array  # [B·T, 1+k]
    offsets: Array  # [B·T+1] one segment per frame
    by_patch: Array  # [B·(1+k)·T] the rows in the order of the state: the T copies of CLS, then patch after patch
    mean_offsets: Array  # [B·(1+k·T)+1] segments of by_patch: CLS is the mean of its T copies, a patch is one row


@lru_cache(maxsize=64)
def frame_layout(B: int, T: int, k: int) -> FrameLayout:
    """The rows of B·T frames of 1 + k rows each. The arrays are read-only."""
    rows = np.arange(B * T * (1 + k)).reshape(B * T, 1 + k)
    by_patch = rows.reshape(B, T, 1 + k).transpose(0, 2, 1).ravel()
    lengths = np.ones((B, 1 + k * T), dtype=np.int64)
    lengths[:, 0] = T
    offsets = np.arange(B * T + 1) * (1 + k)
    return FrameLayout(*(frozen_copy(part) for part in (rows, offsets, by_patch, offsets_of(lengths.ravel()))))


@lru_cache(maxsize=64)
def _rows_with_fused(B: int, T: int, S: int) -> Array:
    """[B·T, 1+S+1] the rows of each frame, then its fused token. The fused tokens follow all frames."""
    frames = B * T
    fused = frames * (1 + S) + np.arange(frames)
    return frozen_copy(np.concatenate([np.arange(frames * (1 + S)).reshape(frames, 1 + S), fused[:, None]], axis=1))


def selected_rows(plan: GlimpserPlan, arrays: Any, places: Array | None, B: int, T: int) -> tuple[Array, Array]:
    """The rows that leave a Glimpser block, in the order of the state, and the segments that average CLS.

    places [B·T, k]: where the kept patches stand among the S that entered. Returns indices [B·(1+S')·T] into the rows
    in frame order, followed by the fused tokens of all frames if there are any; and mean_offsets of ``FrameLayout``.
    """
    S = plan.frame_table.shape[1] - 1
    mean_offsets = frame_layout(B, T, plan.num_kept + plan.fuses).mean_offsets
    if not plan.selects or plan.few_queries:  # every row that came out of attention goes on
        return frame_layout(B, T, plan.num_queries).by_patch, mean_offsets
    table = _rows_with_fused(B, T, S) if plan.fuses else plan.frame_table
    return arrays.frames_to_patches(arrays.take_patches(table, places, tail=int(plan.fuses)), T), mean_offsets


def merge_pays(config: HaltingVTConfig, patches: int) -> bool:
    """Whether one layer W₂ W₁ costs less than the two layers W₁ and W₂ after temporal attention.

    W₂ W₁ costs D³; each of the S·T patches of a clip then costs D² less. The choice does not depend on the batch size,
    so a clip is computed the same way alone and in a batch.
    """
    return patches * config.num_frames > config.width


# ---- joint blocks


class Dense:
    """The steps of dense execution: every token keeps its row in every joint block."""

    def __init__(self, ops: Backend, config: HaltingVTConfig, B: int, dtype: Any, execution: Execution, keep: bool):
        N = config.joint_tokens
        self.halting_layer: Array = _no_halting_layer(ops, execution, B * N)  # [B·N']
        self.survivor_rows: Array | None = None  # nothing moves between the tokens that enter two blocks
        self._ops = _deciding(ops, execution)
        self._masked, self._dtype, self._imposed = config.halted_keys == "masked", dtype, execution.halting_layer
        cls: Array | slice = slice(1) if B == 1 and not keep else first_rows(B, N)
        self._plan = LayerPlan(
            entering_rows=None,
            key_offsets=first_rows(B + 1, N),
            key_bias=None,
            query_rows=None,
            query_offsets=None,
            query_counts=np.full(B, N),
            cls_tokens=cls,
            cls_rows=cls,
        )

    def plan(self, layer: int) -> LayerPlan | None:
        """The rows of joint block ``layer``."""
        return self._plan

    def all_halted(self) -> bool:
        """Always False: dense execution computes all layers, as the released model does."""
        return False

    def imposed(self, layer: int) -> Array | None:
        """bool [B·N'], the tokens that have halted in this layer or before, if decisions are imposed; else None.

        Tokens that have halted before are included, because here they keep their row and halt again.
        """
        return None if self._imposed is None else np.asarray(self._imposed.ravel() <= layer)

    def advance(self, halted: Array, layer: int) -> None:
        """Go on to the next block; halted bool [B·N']."""
        entering, key_bias = self._ops.mask_halted(halted, self.halting_layer, layer, self._masked, self._dtype)
        self._plan = self._plan._replace(entering_rows=entering, key_bias=key_bias)


class Compact:
    """The steps of compact execution: only living tokens have a row.

    `zero`: one ghost per clip that has both living and halted tokens. `masked`: no ghost.
    """

    def __init__(
        self, ops: Backend, config: HaltingVTConfig, B: int, dtype: Any, execution: Execution, keep: bool, tracing: bool
    ):
        self._N, self._L = config.joint_tokens, config.joint_depth
        self.halting_layer: Array = _no_halting_layer(ops, execution, B * self._N)  # [B·N']
        self._ops = _deciding(ops, execution)
        self._ghosts, self._dtype, self._views = config.halted_keys == "zero", dtype, not keep
        self._execution = execution
        # a gradient, a trace or imposed decisions need the number of survivors on the host
        on_host = keep or tracing or execution.every_output
        self._device_dtype = None if on_host else dtype
        self._survivors: AnySurvivors = all_alive(B, self._N, self._cls_only(1))

    def _cls_only(self, layer: int) -> bool:
        return layer == self._L and not self._execution.every_output

    @property
    def survivor_rows(self) -> Array | None:
        """[n] the rows that this block's tokens had among those that entered the block before; None: nothing moved."""
        return self._survivors.survivor_rows

    def plan(self, layer: int) -> LayerPlan | None:
        """The rows of joint block ``layer``; None if nothing is to be computed."""
        return self._survivors.layer_plan(self._N, self._ghosts, self._cls_only(layer), self._dtype, self._views)

    def all_halted(self) -> bool:
        """Whether every token of every clip has halted."""
        return self._survivors.all_halted()

    def imposed(self, layer: int) -> Array | None:
        """bool [n], which of the living tokens halt in this layer, if decisions are imposed; else None."""
        layers = self._execution.halting_layer
        # imposed decisions are on the host, and so are the living tokens that ``compact`` found with them
        return None if layers is None else np.asarray(layers.ravel()[self._survivors.tokens] == layer)

    def advance(self, halted: Array, layer: int) -> None:
        """Go on to the next block; halted bool [n]."""
        self._survivors = self._ops.compact(
            halted,
            self._survivors.tokens,
            self._survivors.backend_counts,
            self.halting_layer,
            layer,
            self._N,
            ghosts=self._ghosts,
            leave_early=self._execution.leave_early,
            cls_only=self._cls_only(layer + 1),
            device_dtype=self._device_dtype,
        )


def steps_of(
    ops: Backend, config: HaltingVTConfig, B: int, dtype: Any, execution: Execution, keep: bool, tracing: bool
) -> Dense | Compact:
    """What goes from joint block to joint block: the plan of each, and which tokens have halted."""
    if execution.compact:
        return Compact(ops, config, B, dtype, execution, keep, tracing)
    return Dense(ops, config, B, dtype, execution, keep)


def _no_halting_layer(ops: Backend, execution: Execution, size: int) -> Array:
    """int64 [size] of zeros, where it is written to: on the host if the decisions are imposed."""
    return ops.arrays.zeros(size, np.int64) if execution.halting_layer is None else np.zeros(size, np.int64)


def _deciding(ops: Backend, execution: Execution) -> Backend:
    """The backend that compacts: imposed decisions are known on the host, so NumPy does it there."""
    on_host = execution.halting_layer is None or ops.arrays.IN_MAIN_MEMORY
    return ops if on_host else backends.get("reference")
