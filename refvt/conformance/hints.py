"""What a porter may try next: hints that follow from what was given and from what differs, in plain sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from refvt.array import Array
from refvt.conformance.cases import Truth
from refvt.model.config import HaltingVTConfig

__all__ = ["advice", "embedding_places", "unused_parameters"]


def advice(truth: Truth, given: Mapping[str, Array]) -> str:
    """Which tensors to give too, if only outputs, losses and parameters' gradients were given; else an empty text."""
    if truth.kind != "model" or truth.config is None:
        return ""
    named = [name for name in given if re.match(r"(d\()?(embed|blocks\.\d+\..*|joint\..*|y|norm)\)?$", name)]
    if any(truth[name].layout != "parameter" for name in named if name in truth):
        return ""
    wanted = [name for name in _telling(truth.config) if name in truth and name not in given]
    if not wanted:
        return ""
    return f"give more named tensors and the first difference is nearer to the mistake: {', '.join(wanted)}"


def _telling(config: HaltingVTConfig) -> list[str]:
    """The state after every part of the model, and the halting weights: few names that divide the model."""
    blocks = [f"blocks.{i}.mlp" for i in range(config.depth)]
    layers = [f"joint.{layer}.weight" for layer in range(1, config.joint_depth + 1)]
    return ["embed", *blocks[:3], *layers[:2], "y"]


def unused_parameters(truth: Truth, given: Mapping[str, Array]) -> str:
    """Parameters without a gradient although most of the others have one; an empty text if there are none.

    ``narrow_down`` names those whose gradient is zero.
    """
    parameters = [name for name in truth if name.startswith("d(") and truth[name].layout == "parameter"]
    matter = [name for name in parameters if np.linalg.norm(truth[name].value) > 0]
    missing = [name[2:-1] for name in matter if name not in given]
    if not missing or 2 * len(missing) > len(matter):
        return ""
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    return f"no gradient was given for {', '.join(missing[:4])}{more}: perhaps never used"


# ---- the embeddings


def embedding_places(truth: Truth, parameters: Mapping[str, Array], given: Array) -> str:
    """Which rows of pos_embed and time_embed a wrong ``embed`` holds, if that is all that is wrong; else an empty text.

    The rest of each token (the projected patch, the class token) is the truth without its embeddings. given: in the
    layout of the truth, [B·N, D].
    """
    config, expected = truth.config, truth["embed"].value
    if config is None or given.shape != expected.shape or not np.isfinite(given).all():
        return ""
    T, S = config.num_frames, config.patches_per_frame
    pos, time = (np.asarray(parameters[name], np.float64)[0] for name in ("pos_embed", "time_embed"))
    usual = [(0, -1), *((1 + s, t) for s in range(S) for t in range(T))]
    padded_pos, padded_time = np.vstack([pos, 0 * pos[:1]]), np.vstack([time, 0 * time[:1]])
    pairs = [(p, t) for p in range(-1, 1 + S) for t in range(-1, T)]
    sums = np.array([padded_pos[p] + padded_time[t] for p, t in pairs])
    found = []
    for token, (p, t) in enumerate(usual):  # clip 0 is enough to find them
        held = given[token] - expected[token] + padded_pos[p] + padded_time[t]
        distances = np.linalg.norm(sums - held, axis=1)
        best = int(distances.argmin())
        if distances[best] > 1e-3 * (np.linalg.norm(held) + 1e-3):
            return ""
        found.append((token, pairs[best]))
    parts = []
    for table, axis in (("pos_embed", 0), ("time_embed", 1)):
        wrong = [(token, pair[axis]) for token, pair in found if pair[axis] != usual[token][axis]]
        if wrong and all(row == -1 for _, row in wrong):
            everyone = len(wrong) == (len(usual) if axis == 0 else S * T)
            parts.append(f"no token gets {table}" if everyone else f"{table} is missing at {_tokens(wrong, T)}")
        elif wrong:
            listed = ", ".join(f"{_token(token, T)}: row {row}" for token, row in wrong[:4])
            parts.append(f"{table} is added in another order ({listed}{', …' if len(wrong) > 4 else ''})")
    return "; ".join(parts)


def _token(token: int, T: int) -> str:
    return "CLS" if token == 0 else f"patch {(token - 1) // T} of frame {(token - 1) % T}"


def _tokens(wrong: list[tuple[int, int]], T: int) -> str:
    listed = ", ".join(_token(token, T) for token, _ in wrong[:4])
    return listed + (", …" if len(wrong) > 4 else "")
