"""The known variants: what each changes, and who does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refvt.conformance.variants import changes as do
from refvt.conformance.variants import operations as forms
from refvt.conformance.variants import training
from refvt.conformance.variants.changes import Change, both, configure, halt_by, layernorm, operation
from refvt.conformance.variants.parameters import (
    Places,
    embed_at,
    identity_layer,
    last_joint_block,
    read_from,
    swap,
)
from refvt.conformance.variants.training import weigh

__all__ = ["VARIANTS", "Variant", "markdown_table"]


@dataclass(frozen=True)
class Variant:
    """One known way in which implementations differ.

    name: short, as a report says it. differs: what is different, in one sentence. who: who does it. change: edits a
    ``Recipe``. part: the part that it replaces; two variants of one part do not go together.
    """

    name: str
    part: str
    differs: str
    who: str
    change: Change


PAPER = "the paper's text"
RELEASED = "the released model"
AVIT = "A-ViT"
EVIT = "EViT"
OTHERS = "other transformers"
MISTAKE = "a common mistake"
CHOICE = "a choice of this specification"


def _ponder_sum(recipe: object, B: int, N: int) -> np.ndarray:
    return np.full((B, N), 1 / B)


def _transposed(p: Places, rows: int, columns: int, T: int) -> Places:
    r, c = np.divmod(p.positions - 1, columns)
    return p._replace(positions=1 + c * rows + r)


def _flipped(rows_too: bool, columns_too: bool) -> Change:
    def rule(p: Places, rows: int, columns: int, T: int) -> Places:
        r, c = np.divmod(p.positions - 1, columns)
        return p._replace(positions=1 + (rows - 1 - r if rows_too else r) * columns + (
            columns - 1 - c if columns_too else c))  # fmt: skip

    return embed_at(rule)


def _in_order(p: Places) -> np.ndarray:
    return np.arange(p.frames.size).reshape(p.frames.shape)


_ALL = (
    # embedding
    Variant("time_embed reversed", "time_embed", "Frame t gets time_embed[T − 1 − t].", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(frames=T - 1 - p.frames))),
    Variant("time_embed repeated, not tiled", "time_embed", "Token 1 + j gets time_embed[⌊j / S⌋] for time_embed[j mod "
            "T]: right only for frame-major tokens.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(frames=_in_order(p) // (rows * columns)))),
    Variant("time_embed not added", "time_embed", "The tokens get no time_embed.", "image transformers",
            embed_at(lambda p, rows, columns, T: p._replace(frames=np.full_like(p.frames, -1)))),
    Variant("time_embed of frame 0 for all", "time_embed", "Every frame gets time_embed[0].", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(frames=0 * p.frames))),
    Variant("time_embed on CLS too", "time_embed of CLS", "CLS gets time_embed[0].", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(cls_frame=0))),
    Variant("pos_embed tiled, not repeated", "pos_embed", "Token 1 + j gets pos_embed[1 + j mod S] for pos_embed[1 + "
            "⌊j / T⌋]: right only for frame-major tokens.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(positions=1 + _in_order(p) % (rows * columns)))),
    Variant("pos_embed column by column", "pos_embed", "The rows and columns of the patches' positions are exchanged.",
            MISTAKE, embed_at(_transposed)),
    Variant("pos_embed reversed", "pos_embed", "Patch s gets pos_embed[S − s].", MISTAKE, _flipped(True, True)),
    Variant("pos_embed upside down", "pos_embed", "The positions of the patch rows are reversed.", MISTAKE,
            _flipped(True, False)),
    Variant("pos_embed mirrored", "pos_embed", "The positions of the patch columns are reversed.", MISTAKE,
            _flipped(False, True)),
    Variant("pos_embed with CLS last", "pos_embed", "CLS gets the last row of pos_embed, patch s row s.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(cls=rows * columns, positions=p.positions - 1))),
    Variant("pos_embed of the patches not added", "pos_embed", "The patches get no pos_embed.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(positions=np.full_like(p.positions, -1)))),
    Variant("pos_embed of CLS not added", "pos_embed of CLS", "CLS gets no pos_embed.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(cls=-1))),
    Variant("pos_embed not added", "pos_embed", "No token gets a pos_embed.", MISTAKE,
            embed_at(lambda p, rows, columns, T: p._replace(cls=-1, positions=np.full_like(p.positions, -1)))),
    # a layer used for another one
    *(Variant(f"{source} used for {target}", f"layer {target}", f"In every block {source} is used where {target} "
              "belongs.", MISTAKE, read_from(source, target))
      for source, target in (("norm1", "norm2"), ("norm2", "norm1"), ("norm1", "temporal_norm1"),
                             ("temporal_norm1", "norm1"), ("attn", "temporal_attn"), ("temporal_attn", "attn"))),
    Variant("norm1, norm2 swapped", "layer norm1", "Each of the two norms is used where the other one belongs.",
            MISTAKE, swap("norm1", "norm2")),
    Variant("attn, temporal_attn swapped", "layer attn", "Each of the two attentions is used where the other one "
            "belongs.", MISTAKE, swap("attn", "temporal_attn")),
    Variant("temporal_fc left out", "temporal_fc", "The result of temporal_attn is added without temporal_fc.",
            "other video transformers", identity_layer("temporal_fc")),
    Variant("last block in all joint layers", "joint blocks", "All joint layers use the parameters of the last one.",
            MISTAKE, last_joint_block),
    # halted tokens
    Variant("halted_keys=zero", "halted keys", "Halted tokens stay keys, as zero states.", RELEASED,
            configure(halted_keys="zero")),
    Variant("halted_keys=masked", "halted keys", "Halted tokens are no keys.", f"{AVIT}; {PAPER}",
            configure(halted_keys="masked")),
    Variant("halted keys go on", "halted keys", "Halted tokens are neither set to zero nor masked: the others go on "
            "seeing their later states.", MISTAKE, do.dense_masks("goes-on")),
    Variant("ghost without log m", "halted keys", "One key stands for all m halted tokens of a clip, and its logit is "
            "not raised by log m.", MISTAKE, do.dense_masks("ghost-without-log-m")),
    # halting
    Variant("halting at ≥", "comparison", "A token halts where Σh ≥ 1 − ε; here only where Σh > 1 − ε.", MISTAKE,
            halt_by(strict=False)),
    Variant("epsilon=0", "epsilon", "ε = 0: no token can halt after one layer.", MISTAKE, halt_by(epsilon=0.0)),
    Variant("epsilon=0.01", "epsilon", "ε = 0.01, whatever the configuration says.", MISTAKE, configure(epsilon=0.01)),
    Variant("halting score σ(γ(x − β))", "centre", "The centre is subtracted before the scale: h = σ(γ · (x[0] − β)).",
            MISTAKE, do.center_of(lambda scale, center: scale * center)),
    Variant("halting score σ(γx + β)", "centre", "The centre is added: h = σ(γ · x[0] + β).", f"{AVIT}'s text, whose β "
            "is negative", do.center_of(lambda scale, center: -center)),
    Variant("A-ViT halting (γ=10, β=30, masked)", "A-ViT", "A-ViT's own scale 10 and centre 30, halted tokens are no "
            "keys, the mean ponder of all tokens as loss.", f"{AVIT}'s code",
            both(configure(halting_scale=10.0, halting_center=30.0, epsilon=0.01, halted_keys="masked"))),
    Variant("A-ViT halting (γ=5, β=10, masked)", "A-ViT", "A-ViT's own scale 5 and centre 10, halted tokens are no "
            "keys, the mean ponder of all tokens as loss.", f"{AVIT}'s text",
            both(configure(halting_scale=5.0, halting_center=10.0, epsilon=0.01, halted_keys="masked"))),
    Variant("remainder detached", "remainder", "The remainder r is a constant for the gradient.", MISTAKE,
            halt_by(remainder="detached")),
    Variant("no remainder", "remainder", "A token that halts weighs its own score h, not 1 − Σh: its weights do not "
            "sum to one.", MISTAKE, halt_by(remainder="score")),
    Variant("no remainder in y", "remainder", "A token that halts weighs its own score h in y, and 1 − Σh in ρ alone.",
            MISTAKE, halt_by(remainder="score", rest="remainder")),
    Variant("no remainder in ρ", "remainder", "ρ = N + h, with the score h of the halting layer; y has the remainder "
            "1 − Σh.", MISTAKE, halt_by(rest="score")),
    Variant("halting layers from 0", "number of the first layer", "The halting layers that are returned are counted "
            "from 0; ρ is as it should be.", MISTAKE, halt_by(first_layer=0)),
    Variant("output is the last state", "output", "y is the state at which a token halts, not the mean of its states.",
            OTHERS, halt_by(output="last")),
    Variant("CLS never halts", "CLS", "CLS has no halting score: y of CLS is its state after the last layer.", OTHERS,
            halt_by(cls="never")),
    Variant("CLS held to the last layer", "CLS", "The scores of CLS count, but it does not halt before the last layer, "
            "where it gets 1 − Σh.", MISTAKE, halt_by(cls="held")),
    Variant("score before the block", "score", "The score of a layer is read from the state that enters its block, not "
            "from the one that leaves it.", MISTAKE, do.score_before_block),
    Variant("logits before masking", "logits", "The logit of a token that halted before is channel 0 of its unused "
            "state; here it is zero.", AVIT, do.unmask_logits),
    # ponder
    Variant("ponder=N", "ponder", "ρ = N alone, which has no gradient.", MISTAKE, halt_by(ponder="N")),
    Variant("ponder=N−1+r", "ponder", "ρ = N − 1 + r: layers are counted from 0.", MISTAKE, halt_by(ponder="N-1+r")),
    Variant("ponder=r", "ponder", "ρ = r: the layers are not counted.", MISTAKE, halt_by(ponder="r")),
    Variant("ponder detached", "ponder gradient", "ρ is a constant for the gradient.", MISTAKE,
            halt_by(ponder_gradient=False)),
    Variant("ponder loss per layer", "ponder loss", "The ponder loss is the mean of ρ / L.", OTHERS,
            training.mean_per_layer),
    Variant("ponder loss summed over tokens", "ponder loss", "The ponder loss is the sum of ρ over the tokens of a "
            "clip, and the mean over clips.", MISTAKE, training.ponder_loss(_ponder_sum)),
    Variant("ponder loss without CLS", "ponder loss", "The ponder loss is the mean of ρ over the patches.", MISTAKE,
            training.ponder_loss(training.patches_only)),
    # Glimpser
    Variant("cls_skip=True", "skip input of CLS", "CLS keeps its skip input in a block that selects.", PAPER,
            do.only_with_selection(configure(cls_skip=True))),
    Variant("cls_skip=False", "skip input of CLS", "CLS loses its skip input in a block that selects.", RELEASED,
            do.only_with_selection(configure(cls_skip=False))),
    Variant("CLS summed over frames", "CLS mean", "The T results at CLS are added up, not averaged.", MISTAKE,
            operation("segment_mean", by=forms.sum_segments)),
    Variant("CLS of the last frame", "CLS mean", "CLS is its result in the last frame, not the mean over frames.",
            MISTAKE, operation("segment_mean", by=forms.one_of_segment, last=True)),
    Variant("CLS of the first frame", "CLS mean", "CLS is its result in the first frame, not the mean over frames.",
            MISTAKE, operation("segment_mean", by=forms.one_of_segment, last=False)),
    Variant("fuse=False", "fuse", "The dropped patches are not fused.", RELEASED,
            do.only_with_selection(configure(fuse_dropped=False))),
    Variant("fuse=True", "fuse", "The dropped patches are fused into one more token.", EVIT,
            do.only_with_selection(configure(fuse_dropped=True))),
    Variant("fuse normalised", "fuse weights", "The scores of the dropped patches are divided by their sum.", OTHERS,
            do.only_with_fuse(operation("fuse_dropped", by=forms.weigh_dropped))),
    Variant("fuse by plain mean", "fuse weights", "The fused token is the plain mean of the dropped patches.", OTHERS,
            do.only_with_fuse(operation("fuse_dropped", by=forms.weigh_dropped, uniform=True))),
    Variant("fuse with detached scores", "fuse gradient", "No gradient reaches the scores of the dropped patches.",
            MISTAKE, do.only_with_fuse(operation("fuse_dropped", by=forms.without_score_gradient))),
    Variant("kept patches in index order", "order of kept patches", "The kept patches stay in the order of their "
            "indices, not of their scores.", MISTAKE, do.choose(do.by_index)),
    Variant("ties to the higher index", "order of kept patches", "Of equal scores the patch with the higher index "
            "comes first.", "some devices", do.choose(do.higher_index_first)),
    Variant("lowest scores kept", "order of kept patches", "The patches with the lowest scores are kept.", MISTAKE,
            do.choose(do.lowest)),
    Variant("same patches in all frames", "order of kept patches", "All frames of a clip keep the patches with the "
            "highest mean score over frames.", OTHERS, do.same_in_all_frames),
    Variant("scores from one head", "scores", "A score is the weight in the first head, not the mean over heads.",
            MISTAKE, do.only_with_selection(operation("cls_scores", by=forms.restrict_scores, heads=slice(1)))),
    Variant("scores from the highest head", "scores", "A score is the highest weight of all heads, not their mean.",
            OTHERS, do.only_with_selection(operation("cls_scores", by=forms.restrict_scores, highest=True))),
    Variant("scores over patches alone", "scores", "The softmax of the scores leaves CLS out.", MISTAKE,
            do.only_with_selection(operation("cls_scores", by=forms.restrict_scores, patches_alone=True))),
    Variant("k by floor", "k", "k = ⌊R · S⌋.", MISTAKE, do.count_by("floor")),
    Variant("k by round", "k", "k = R · S, rounded to the nearest.", MISTAKE, do.count_by("round")),
    Variant("k without rounding error", "k", "k = ⌈R · S⌉ of the decimal product, without the rounding of the double "
            "product.", CHOICE, do.count_by("exact")),
    Variant("k of all tokens", "k", "k = ⌈R · (1 + S)⌉: CLS is counted as a patch.", MISTAKE,
            do.count_by("with-cls")),
    # operations
    Variant("gelu=tanh", "activation", "GELU by its tanh formula.", "BERT, GPT-2, JAX's default",
            do.activation("tanh")),
    Variant("gelu=sigmoid", "activation", "x · σ(1.702 x) in the place of GELU.", "CLIP", do.activation("sigmoid")),
    Variant("activation=silu", "activation", "SiLU in the place of GELU.", OTHERS, do.activation("silu")),
    Variant("activation=relu", "activation", "ReLU in the place of GELU.", OTHERS, do.activation("relu")),
    Variant("layernorm eps=1e-5", "LayerNorm", "LayerNorm with eps 1e-5.", "PyTorch's default", layernorm(eps=1e-5)),
    Variant("layernorm eps=1e-12", "LayerNorm", "LayerNorm with eps 1e-12.", "BERT and DeiT in other libraries",
            layernorm(eps=1e-12)),
    Variant("layernorm unbiased", "LayerNorm", "LayerNorm divides the variance by D − 1.", MISTAKE, layernorm(ddof=1)),
    Variant("layernorm eps outside the root", "LayerNorm", "LayerNorm divides by deviation + eps.", MISTAKE,
            layernorm(eps_inside=False)),
    Variant("no 1/√d", "scale of logits", "Attention without the factor 1/√d.", MISTAKE,
            do.scale_logits(lambda D, A: (D / A) ** 0.5)),
    Variant("1/√D for 1/√d", "scale of logits", "Attention scaled by the whole width, 1/√D.", MISTAKE,
            do.scale_logits(lambda D, A: A**-0.5)),
    Variant("1/d for 1/√d", "scale of logits", "Attention scaled by 1/d.", MISTAKE,
            do.scale_logits(lambda D, A: (D / A) ** -0.5)),
    *(Variant(f"qkv order {', '.join(order)}", "qkv", f"The rows of qkv are read as {', '.join(order)}.", MISTAKE,
              do.qkv_rows(order)) for order in ("qvk", "kqv", "kvq", "vqk", "vkq")),
    Variant("qkv by heads", "qkv", "The rows of qkv are read head by head: q, k and v of head 0, then of head 1.",
            OTHERS, do.qkv_rows("heads")),
    Variant("pixels channels last", "pixels", "A patch is flattened as (row, column, channel).", OTHERS,
            do.pixels_channels_last),
    Variant("frame-major tokens", "tokens", "Token 1 + t·S + s is patch s of frame t, in states and outputs; the "
            "results are the same.", "other video transformers", do.frame_major(mixed=False)),
    Variant("frame-major tokens read as patch-major", "tokens", "The embedding writes the tokens frame by frame, the "
            "blocks read them patch by patch.", MISTAKE, do.frame_major(mixed=True)),
    # losses
    Variant("label smoothing over K−1", "smoothing", "Smoothing gives s/(K − 1) to the other classes and nothing to "
            "the true one.", "some libraries",
            training.with_smoothing(training.loss_rows("cross_entropy", training.smooth_others))),
    Variant("no label smoothing", "smoothing", "Labels are not smoothed.", MISTAKE, weigh("label_smoothing", 0.0)),
    Variant("motion labels smoothed", "motion smoothing", "The motion labels are smoothed as the classes are.", MISTAKE,
            lambda recipe: training.with_smoothing(training.loss_rows(
                "motion_loss", lambda r, rows, s: training.smooth(rows, r.settings["label_smoothing"])))(recipe)
            if recipe.batch else False),
    Variant("recognition summed over clips", "recognition", "The recognition loss is a sum over clips.", MISTAKE,
            training.loss_rows("cross_entropy", lambda r, rows, s: training.smooth(rows, s) * len(rows))),
    Variant("twins without class loss", "recognition", "Static clips have no recognition loss; its mean is over the "
            "moving ones.", OTHERS, training.moving_only(mean=True)),
    Variant("twins without class loss, mean over all", "recognition", "Static clips have no recognition loss; it is "
            "divided by the number of all clips.", OTHERS, training.moving_only(mean=False)),
    Variant("motion labels swapped", "motion labels", "1 means static and 0 moving.", MISTAKE,
            training.swap_motion_labels),
    Variant("motion weight 0.001", "motion weight", "The motion loss is weighted with 0.001.",
            "the released configurations, whose value the released loss does not read", weigh("motion_weight", 0.001)),
    Variant("motion weight 1", "motion weight", "The motion loss has weight 1, whatever the settings say.", RELEASED,
            weigh("motion_weight", 1.0)),
    Variant("no motion loss", "motion weight", "The motion loss is not in the total.", AVIT,
            weigh("motion_weight", 0.0)),
    Variant("ponder weight 0.0005", "ponder weight", "The ponder loss has weight 5e-4, whatever the settings say.",
            RELEASED, weigh("ponder_weight", 5e-4)),
    Variant("ponder weight 1", "ponder weight", "The ponder loss has weight 1.", MISTAKE, weigh("ponder_weight", 1.0)),
    Variant("no ponder loss", "ponder weight", "The ponder loss is not in the total.", OTHERS,
            weigh("ponder_weight", 0.0)),
    # stochastic depth
    Variant("no DropPath", "DropPath", "No branch drops.", OTHERS, training.drop_path(None)),
    Variant("DropPath not rescaled", "DropPath", "Branches that survive are not divided by the keep probability.",
            MISTAKE, training.drop_path(lambda scales: (scales > 0).astype(scales.dtype))),
)  # fmt: skip


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""All known variants by name."""


def markdown_table() -> str:
    """All variants as the Markdown table of docs/variants.md."""
    rows = [f"| `{v.name}` | {v.differs} | {v.who} |" for v in VARIANTS.values()]
    return "\n".join(["| variant | what differs | who does it |", "| --- | --- | --- |", *rows])
