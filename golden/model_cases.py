"""The model cases: small models in which halting and selection do what the name of the case says.

``wanted`` of a case is the property that it must show; seeds are tried until the property holds (see ``seeds``). Biases
of channel 0, the halting logit, control where tokens halt: ``start`` is the mean of γ·x[0] - β in the first joint layer
and ``step`` is its growth from layer to layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from golden.torch_model import Config, Output

Wanted = Callable[[Output], bool]


@dataclass(frozen=True)
class ModelCase:
    """One training step of one model."""

    name: str
    describes: str
    config: Config
    wanted: Wanted
    batch: int = 1
    start: float = -1.5
    step: float = 1.0
    cls_shift: float = 0.0  # added to the logit of CLS
    clip_shift: tuple[float, ...] = ()  # added to the logits of the patches of each clip
    twins: bool = False
    soft_labels: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    named: bool = True  # whether the named tensors are stored
    tiny: bool = False

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return f"{'tiny-' if self.tiny else ''}model-{self.name}"

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss weights of the case; by default every part of the loss matters."""
        weights = {"ponder_weight": 0.3, "motion_weight": 0.7, "label_smoothing": 0.0}
        return weights | {name: value for name, value in self.settings.items() if name in weights}


def distinct_layers(number: int) -> Wanted:
    """Tokens halt in at least this many different layers, and at least a third of them before the last layer."""

    def wanted(output: Output) -> bool:
        layers, last = output.halting_layer, output.alive.shape[1]
        return len(layers.unique()) >= number and 3 * int((layers < last).sum()) >= layers.numel()

    return wanted


def all_halt_at(layer: int) -> Wanted:
    """All tokens halt in this layer."""
    return lambda output: bool((output.halting_layer == layer).all())


def never_before_the_end(output: Output) -> bool:
    """All tokens halt in the last layer, CLS with a remainder between 0.2 and 0.8."""
    last = output.alive.shape[1]
    return all_halt_at(last)(output) and bool((output.ponder[:, 0] - last - 0.5).abs().max() < 0.3)


def cls_halts_first(output: Output) -> bool:
    """CLS halts in layer 1 and all patches later."""
    return bool((output.halting_layer[:, 0] == 1).all() and (output.halting_layer[:, 1:] > 1).all())


def one_clip_gone(output: Output) -> bool:
    """All tokens of the first clip halt two layers before the end or earlier; the second clip and its CLS go on."""
    layers, last = output.halting_layer, output.alive.shape[1]
    early = bool(layers[0].max() <= last - 2 and len(layers[0].unique()) > 1)
    return early and bool((layers[1] == last).any() and layers[1, 0] > layers[0, 0] and len(layers[1].unique()) > 1)


def very_unequal(output: Output) -> bool:
    """From clip to clip, the total number of layers of its tokens grows by a factor of at least 1.4."""
    first, second, third = output.alive.sum((1, 2)).tolist()
    return second >= 1.4 * first and third >= 1.4 * second and len(output.halting_layer.unique()) >= 4


def fused_survives(output: Output) -> bool:
    """The second selection keeps the fused token of the first in some frame, and drops it in another."""
    inside = (output.kept[1][..., :-1] == -1).any(-1)
    return bool(inside.any() and not inside.all()) and distinct_layers(3)(output)


def eight_are_kept(output: Output) -> bool:
    """The last selection leaves eight patches per frame."""
    return len(output.kept[-1][0, 0]) == 8


def both(first: Wanted, second: Wanted) -> Wanted:
    """Both properties hold."""
    return lambda output: first(output) and second(output)


def frames_differ(output: Output) -> bool:
    """The kept patches differ between frames and are not in the order of their indices."""
    kept = output.kept[-1]
    return not bool((kept[:, :1] == kept).all()) and not bool((kept.diff(dim=-1) > 0).all())


BASE = Config(
    image_size=(6, 8),
    patch_size=2,
    channels=3,
    num_frames=2,
    width=8,
    num_heads=2,
    mlp_ratio=4.0,
    glimpser_depth=1,
    depth=5,
    keep_rates=(1.0,),
    num_classes=5,
)


def masked(config: Config) -> Config:
    """The same configuration in the variant in which halted tokens are no keys."""
    return replace(config, halted_keys="masked")


TWO = replace(BASE, glimpser_depth=2, keep_rates=(0.7, 0.5))
TINY = replace(BASE, image_size=(4, 4), channels=1, depth=3, num_classes=3)
SPREAD = distinct_layers(3)
PRUNED = both(SPREAD, frames_differ)

MODEL_CASES = [
    ModelCase("zero", "no selection; halted tokens stay as zero keys", BASE, SPREAD, batch=2),
    ModelCase("masked", "no selection; halted tokens are no keys", masked(BASE), SPREAD),
    ModelCase(
        "wide",
        "twelve channels in three heads, two Glimpser and four joint blocks, two clips of three frames",
        replace(
            BASE,
            image_size=(8, 12),
            num_frames=3,
            width=12,
            num_heads=3,
            glimpser_depth=2,
            depth=6,
            keep_rates=(1.0, 0.5),
        ),
        PRUNED,
        batch=2,
        named=False,
    ),
    ModelCase(
        "prune-one",
        "one selection; CLS loses its skip input there",
        replace(BASE, keep_rates=(0.5,)),
        PRUNED,
        2,
    ),
    ModelCase(
        "prune-one-cls-skip",
        "one selection; CLS keeps its skip input",
        replace(BASE, keep_rates=(0.5,), cls_skip=True),
        PRUNED,
    ),
    ModelCase("prune-two-zero", "two selections: the second sees ranks; zero keys", TWO, PRUNED),
    ModelCase("prune-two-masked", "two selections; halted tokens are no keys", masked(TWO), PRUNED),
    ModelCase(
        "prune-then-all",
        "a selection followed by a block that keeps all: temporal attention along ranks",
        replace(TWO, keep_rates=(0.5, 1.0)),
        PRUNED,
    ),
    ModelCase(
        "keep-rate-product",
        "25 patches at rate 0.28: the double product is 7.000000000000001, so 8 are kept",
        replace(BASE, image_size=(10, 10), keep_rates=(0.28,), depth=4),
        both(PRUNED, eight_are_kept),
        named=False,
    ),
    ModelCase("fuse", "the dropped patches are fused", replace(BASE, keep_rates=(0.5,), fuse_dropped=True), PRUNED),
    ModelCase(
        "fuse-then-prune",
        "fused tokens are candidates of a second fusing selection; some survive, some are fused again",
        replace(TWO, fuse_dropped=True, depth=6),
        fused_survives,
    ),
    ModelCase(
        "fuse-then-keep",
        "a fused token goes through a block that keeps all",
        masked(replace(TWO, keep_rates=(0.5, 1.0), fuse_dropped=True, cls_skip=True)),
        SPREAD,
    ),
    ModelCase(
        "fuse-none-dropped",
        "selection that keeps and reorders all: the fused token is zero",
        replace(BASE, keep_rates=(0.99,), fuse_dropped=True),
        PRUNED,
    ),
    ModelCase("reorder", "selection that keeps all and only reorders", replace(TWO, keep_rates=(0.99, 0.95)), PRUNED),
    ModelCase(
        "gamma5-beta5",
        "halting scale 5, centre 5",
        replace(BASE, halting_scale=5.0, halting_center=5.0),
        SPREAD,
        named=False,
    ),
    ModelCase("gamma5-beta10", "halting scale 5, centre 10", replace(BASE, halting_scale=5.0), SPREAD, named=False),
    ModelCase("beta5", "halting scale 10, centre 5", replace(BASE, halting_center=5.0), SPREAD, named=False),
    ModelCase("beta20", "halting scale 10, centre 20", replace(BASE, halting_center=20.0), SPREAD, named=False),
    ModelCase("epsilon", "halting slack 0.2", replace(BASE, epsilon=0.2), SPREAD, named=False),
    ModelCase("all-at-once", "every token halts in layer 1", BASE, all_halt_at(1), batch=2, start=13.0, named=False),
    ModelCase(
        "all-at-once-masked",
        "every token halts in layer 1, so that later layers have no key",
        masked(BASE),
        all_halt_at(1),
        start=13.0,
    ),
    ModelCase("never", "no token halts before the end", BASE, never_before_the_end, start=-3.5, step=0.3),
    ModelCase("cls-first", "CLS halts in layer 1, every patch later", BASE, cls_halts_first, 1, -5.0, cls_shift=15.0),
    ModelCase(
        "cls-first-masked",
        "CLS halts in layer 1 and is no key afterwards",
        masked(BASE),
        cls_halts_first,
        start=-5.0,
        cls_shift=15.0,
    ),
    ModelCase(
        "clip-gone",
        "one clip has wholly halted while the other goes on",
        BASE,
        one_clip_gone,
        2,
        -1.0,
        clip_shift=(4.0, -4.0),
    ),
    ModelCase(
        "clip-gone-masked",
        "one clip has wholly halted, and has no key, while the other goes on",
        masked(BASE),
        one_clip_gone,
        2,
        -1.0,
        clip_shift=(4.0, -4.0),
    ),
    ModelCase(
        "unequal",
        "three clips of very unequal halting",
        BASE,
        very_unequal,
        3,
        -1.0,
        clip_shift=(6.0, 1.0, -6.0),
    ),
    ModelCase(
        "unequal-masked",
        "three clips of very unequal halting, halted tokens no keys",
        masked(replace(BASE, keep_rates=(0.7,))),
        very_unequal,
        3,
        -1.0,
        clip_shift=(6.0, 1.0, -6.0),
    ),
    ModelCase(
        "twins",
        "each clip with its static twin, a frame repeated",
        replace(TWO, num_frames=3),
        PRUNED,
        4,
        twins=True,
        named=False,
    ),
    ModelCase(
        "tall",
        "frames higher than wide, one channel, patches of 3",
        replace(BASE, image_size=(15, 6), patch_size=3, channels=1, keep_rates=(0.5,)),
        PRUNED,
    ),
    ModelCase("smoothing", "label smoothing", BASE, SPREAD, 2, settings={"label_smoothing": 0.1}, named=False),
    ModelCase(
        "soft-labels",
        "soft labels, smoothed",
        BASE,
        SPREAD,
        2,
        soft_labels=True,
        settings={"label_smoothing": 0.1},
        named=False,
    ),
    ModelCase(
        "default-weights",
        "the released loss weights",
        BASE,
        SPREAD,
        2,
        settings={"ponder_weight": 5e-4, "motion_weight": 1.0},
        named=False,
    ),
    ModelCase(
        "drop-path",
        "stochastic depth without selection: every kind of unit drops and survives",
        replace(BASE, depth=6, glimpser_depth=2, keep_rates=(1.0, 1.0)),
        SPREAD,
        2,
        settings={"drop_path": 0.8, "drop_path_seed": 8124},
    ),
    ModelCase(
        "drop-path-prune",
        "stochastic depth with fusing selections, halted tokens no keys",
        masked(replace(TWO, fuse_dropped=True, depth=6)),
        SPREAD,
        2,
        settings={"drop_path": 0.8, "drop_path_seed": 5725},
    ),
    ModelCase(
        "no-glimpser",
        "no Glimpser block at all",
        replace(BASE, glimpser_depth=0, keep_rates=(), depth=4),
        SPREAD,
        2,
    ),
    ModelCase("one-joint-layer", "one joint layer: every token halts there", replace(BASE, depth=2), all_halt_at(1)),
    ModelCase("one-frame", "clips of one frame", replace(BASE, num_frames=1, keep_rates=(0.7,)), SPREAD, 2),
    ModelCase("mlp-ratio", "an MLP 2.5 times as wide, one head", replace(BASE, mlp_ratio=2.5, num_heads=1), SPREAD),
    ModelCase("zero", "nine tokens; halted ones stay as zero keys", TINY, distinct_layers(2), tiny=True),
    ModelCase(
        "masked",
        "two clips of five tokens; halted ones are no keys",
        masked(replace(TINY, num_frames=1)),
        distinct_layers(2),
        2,
        tiny=True,
    ),
    ModelCase(
        "fuse",
        "nine tokens; two of four patches kept, the others fused",
        replace(TINY, keep_rates=(0.5,), fuse_dropped=True),
        distinct_layers(2),
        tiny=True,
    ),
]
