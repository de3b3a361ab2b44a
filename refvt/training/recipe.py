"""Everything that the result of a training run depends on, in one frozen record that is stored as JSON.

Two runs of one recipe on the same data give the same parameters. Settings that do not change them (how often to log or
to write a checkpoint, the folder) are not part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from refvt.checks import at_most, brief, words_of
from refvt.data.annotations import RELEASED_VIDEOS
from refvt.data.moving_digits import MovingDigits
from refvt.files import read_json
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.model.parameters import parameter_shapes
from refvt.training.recipe_fields import DATA, check_fields

__all__ = ["DATA", "RECIPES", "Recipe", "difference", "find_recipe", "make_moving_digits", "paper_recipe"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run.

    Data: config is the model. data is "digits" (moving digits) or "videos" (annotation lists); data_settings are more
    settings of that data set. batch is the number of clips of a step, static twins not counted; micro_batch the number
    of clips computed at once, the unit of accumulation within a step and of distribution over processes.

    Optimiser: optimiser is "adamw" (decoupled decay) or "adam" (L2, as in the paper), with betas, adam_epsilon and
    weight_decay. Weights decay; LayerNorms and biases do if decay_norms_and_biases; cls_token, pos_embed and time_embed
    if decay_embeddings. max_grad_norm is the largest global norm of the gradients, None for no limit; larger ones are
    scaled by max_grad_norm / (norm + clip_epsilon). learning_rate is the base rate: a linear warm-up from warmup_start
    times it over warmup_epochs and a cosine, joined as lr_schedule says ("product" or "consecutive", see
    refvt/training/schedule.py), and set once per "epoch" or per "step" (lr_per).

    Loss: ponder_weight, motion_weight, label_smoothing and drop_path are those of ``loss_and_gradients``; the ponder
    weight grows linearly to its value over ponder_warmup_epochs. changing_ponder is the weight, in the ponder loss, of
    a patch that changes by more than change_threshold grey levels between neighbouring frames (the mean over its
    pixels); it is 1 in the paper, as for all other tokens. divide_labels: whether the target of a clip with m classes
    is 1/m at each of them, else 1. static_twins: whether every clip is accompanied by its static twin; without twins
    there is no motion loss. twins_from: a twin is made from its "clip", of which it repeats one frame, or from the
    "video", sampled and augmented anew.

    Start: backbone is the recipe of a run that is done first and whose parameters this one starts from, as the paper
    fine-tunes a trained model; it sees clips of the same size, and moving digits of its own data_settings. None: init
    is the "paper"'s initialisation or one for training from "scratch" (see refvt/training/scratch.py).
    halting_start is added to channel 0 of pos_embed, so that every token enters the first block with this much in its
    halting channel; 0 leaves the initialisation as it is. seed: of the initialisation and of all random draws.

    Raises TypeError or ValueError that names the field for any other value.
    """

    config: HaltingVTConfig
    data: str
    data_settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch: int = 16
    micro_batch: int = 4
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.05
    decay_norms_and_biases: bool = False
    decay_embeddings: bool = False
    max_grad_norm: float | None = None
    clip_epsilon: float = 0.0
    learning_rate: float = 1e-3
    warmup_epochs: float = 0.0
    warmup_start: float = 0.1
    lr_schedule: str = "product"
    lr_per: str = "step"
    ponder_weight: float = 5e-4
    ponder_warmup_epochs: float = 0.0
    motion_weight: float = 1.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    changing_ponder: float = 1.0
    change_threshold: float = 6.0
    divide_labels: bool = True
    static_twins: bool = True
    twins_from: str = "clip"
    init: str = "paper"
    halting_start: float = 0.0
    backbone: Recipe | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, expected in (
            ("config", HaltingVTConfig, "a HaltingVTConfig"),
            ("backbone", Recipe | None, "a recipe or null"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}: expected {expected}, got {brief(getattr(self, name))}")
        check_fields(vars(self))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.backbone is not None:
            self._check_backbone(self.backbone)

    def _check_backbone(self, backbone: Recipe) -> None:
        """Check that this run's model can hold the backbone's parameters, and that both see clips of one kind.

        The embeddings of position and time may have other sizes: they are resized like those of a checkpoint.
        """
        here, there = parameter_shapes(self.config), parameter_shapes(backbone.config)
        others = sorted({*here, *there} - {"pos_embed", "time_embed"})
        name = next((n for n in others if here.get(n) != there.get(n)), None)
        if name is not None:
            raise ValueError(f"backbone.config: expected a model of the same shapes, got another {name}")
        if self.data != backbone.data:
            raise ValueError(f"backbone.data: expected {self.data!r} as in the recipe itself, got {backbone.data!r}")
        if self.data != "digits" and self.data_settings != backbone.data_settings:
            raise ValueError("backbone.data_settings: expected those of the recipe itself, which sees the same videos")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        # through JSON, which has no tuples: recipes are compared in the form in which they are read again
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe with the given fields; ``config`` and ``data`` are required, others have defaults.

        Raises ValueError that lists unknown and missing fields, and the errors of a wrong value.
        """
        known = {f.name for f in fields(cls)}
        _refuse_unknown("", values, known)
        missing = [name for name in ("config", "data") if name not in values]
        if missing:
            raise ValueError(f"recipe: missing: {', '.join(missing)}")
        backbone = values.get("backbone")
        if backbone is not None and not isinstance(backbone, Recipe):
            if not isinstance(backbone, Mapping):
                raise TypeError(f"backbone: expected the fields of a recipe or null, got {brief(backbone)}")
            try:
                backbone = cls.from_dict(backbone)
            except (ValueError, TypeError) as error:
                raise type(error)(f"backbone: {error}") from None
        return cls(**{**values, "config": _config(values["config"]), "backbone": backbone})

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Return a copy with some fields changed.

        A dot selects a setting of the model, the data or the backbone: ``config.width``, ``data_settings.noise``,
        ``backbone.epochs``. Raises the errors of ``from_dict``.
        """
        changes: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            outer, dot, rest = name.partition(".")
            if dot and outer in ("config", "data_settings", "backbone"):
                inner.setdefault(outer, {})[rest] = value
            else:
                changes[name] = value
        _refuse_unknown("", changes, {f.name for f in fields(self)})
        if "config" in changes:
            changes["config"] = _config(changes["config"])
        if "config" in inner:
            changes["config"] = _config({**changes.get("config", self.config).as_dict(), **inner["config"]})
        if "data_settings" in inner:
            changes["data_settings"] = {**changes.get("data_settings", self.data_settings), **inner["data_settings"]}
        backbone = changes.get("backbone", self.backbone)
        if isinstance(backbone, Mapping):
            backbone = type(self).from_dict(backbone)
        if backbone is not None:
            changes["backbone"] = backbone.changed(inner.get("backbone", {}))
        elif "backbone" in inner:
            raise ValueError("backbone: the recipe has none, so nothing of it can be changed")
        return replace(self, **changes)


def _refuse_unknown(prefix: str, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = [brief(name)[1:-1] for name in sorted(set(values) - known)]
    if unknown:
        named = ", ".join(at_most(prefix + name for name in unknown))
        raise ValueError(f"recipe: unknown: {named}; expected some of {', '.join(sorted(prefix + k for k in known))}")


def _config(values: Any) -> HaltingVTConfig:
    if not isinstance(values, Mapping):
        raise TypeError(f"config: expected an object of the model's fields, got {brief(values)}")
    _refuse_unknown("config.", values, {f.name for f in fields(HaltingVTConfig)})
    try:
        return HaltingVTConfig(**values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"config.{error}") from None


def difference(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the fields in which two recipes, given as dicts, differ."""
    found: list[str] = []
    for name in sorted(set(one) | set(other)):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(prefix + name)
    return found


# ---- named recipes


def paper_recipe(preset: str) -> Recipe:
    """Return the recipe of one of the paper's configurations, which starts from DeiT-S weights.

    Where the paper's text and the released configurations differ, or the framework does something else than they ask
    for, it does what running them does: see docs/released-pipeline.md. Its batch of 16 is that of one device. The paper
    does not state the number of devices, so the learning rate is used as given.
    """
    config = HaltingVTConfig.preset(preset)
    activitynet = preset.startswith("anet")
    return Recipe(
        config=config,
        data="videos",
        data_settings={"stride": 64 if activitynet else 32, "multi_label": activitynet, **RELEASED_VIDEOS},
        epochs=50 if activitynet else 20,
        batch=16,
        micro_batch=4,
        optimiser="adam",
        weight_decay=1e-5,
        decay_norms_and_biases=True,
        decay_embeddings=True,
        max_grad_norm=40.0,
        clip_epsilon=1e-6,
        learning_rate=1e-5,
        warmup_epochs=5,
        warmup_start=0.1,
        lr_schedule="consecutive",
        lr_per="epoch",
        drop_path=0.1,
        divide_labels=False,
        twins_from="video",
    )


def digits_recipe() -> Recipe:
    """Return the recipe for moving digits, trained from scratch in twelve minutes on two cores.

    The init is "scratch": from the paper's initialisation nothing is learnt in that time. The model learns early along
    which axis a digit moves and much later in which direction, so the learning rate stays high for long. Tokens must
    not halt before the model has learnt anything, because a halted token gets no gradient that could bring it back:
    with γ = 1 and β = 5 an untrained token scores 0.007 in every layer, and the ponder loss is phased in slowly
    (docs/training.md). There are no static twins: on digits the label *is* the motion, so a twin with its clip's label
    would teach noise.
    """
    return Recipe(
        config=HaltingVTConfig(
            image_size=(32, 32),
            patch_size=8,
            channels=1,
            num_frames=8,
            width=64,
            num_heads=4,
            glimpser_depth=2,
            depth=6,
            keep_rates=(1.0, 0.5),
            cls_skip=True,
            halting_scale=1.0,
            halting_center=5.0,
            num_classes=8,
        ),
        data="digits",
        data_settings={"train_clips": 16384, "test_clips": 1024},
        epochs=18,
        batch=32,
        micro_batch=32,
        weight_decay=0.05,
        max_grad_norm=1.0,
        learning_rate=1e-3,
        warmup_epochs=0.2,
        ponder_weight=1.6e-4,
        ponder_warmup_epochs=8,
        static_twins=False,
        init="scratch",
    )


def photographs_recipe() -> Recipe:
    """Return the recipe for moving digits over photographs, in which halting becomes selective.

    Three stages, each the backbone of the next. Digits on black teach what motion is; over photographs nothing is
    learnt from scratch, because the static background is most of what the model sees. Then the same without halting
    over photographs. Then halting and the Glimpser, by fine-tuning at a small rate. changing_ponder is below zero,
    because the paper's ponder loss pushes every patch to halt with the same force (docs/training.md). γ is small:
    channel 0 of the backbone is a feature like any other, and with a larger γ it would halt tokens at random from the
    start.
    """
    dense = HaltingVTConfig(
        image_size=(48, 48),
        patch_size=12,
        channels=1,
        num_frames=8,
        width=64,
        num_heads=4,
        glimpser_depth=2,
        depth=6,
        keep_rates=(1.0, 1.0),
        cls_skip=True,
        halting_scale=0.0,  # every score is σ(−50): nothing halts
        halting_center=50.0,
        num_classes=8,
    )
    clips = {"train_clips": 16384, "test_clips": 1024, "digit_size": 16, "noise": 4}
    on_black = Recipe(
        config=dense,
        data="digits",
        data_settings={**clips, "background": "black"},
        epochs=2,
        batch=32,
        micro_batch=32,
        max_grad_norm=1.0,
        learning_rate=1e-3,
        warmup_epochs=0.2,
        ponder_weight=0.0,
        static_twins=False,
        init="scratch",
    )
    over_photographs = {"data_settings": {**clips, "background": "photographs"}}
    backbone = on_black.changed({**over_photographs, "epochs": 14, "init": "paper", "backbone": on_black})
    halting = {"config.halting_scale": 0.5, "config.halting_center": 5.0, "config.keep_rates": (1.0, 0.75)}
    return backbone.changed(
        {
            **halting,
            "data_settings.train_clips": 8192,
            "epochs": 28,
            "learning_rate": 7e-4,
            "ponder_weight": 0.065,
            "ponder_warmup_epochs": 0.5,
            "changing_ponder": -2.0,
            "backbone": backbone,
        }
    )


RECIPES: dict[str, Recipe] = {
    "digits": digits_recipe(),
    "photographs": photographs_recipe(),
    **{f"paper-{name}": paper_recipe(name) for name in PRESETS},
}
"""The recipes by name: ``digits``, ``photographs`` and ``paper-<preset>`` for every configuration of the paper."""


def find_recipe(name_or_file: str) -> Recipe:
    """Return a recipe by its name in ``RECIPES``, or from a JSON file. ValueError that names what is wrong with it."""
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".json":
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)} or a .json file, got {brief(name_or_file)}")
    values = read_json(path, "a recipe", constants=True)
    try:
        return Recipe.from_dict(values)
    except RecursionError:
        raise ValueError(f"{path}: backbone: expected a few in one another, got too many") from None
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {words_of(error)}") from None


def make_moving_digits(recipe: Recipe) -> tuple[MovingDigits, MovingDigits]:
    """Return training and test set of moving digits, in the sizes of the recipe's model.

    Raises ValueError or TypeError if the sizes or ``data_settings`` do not fit.
    """
    c, settings = recipe.config, dict(recipe.data_settings)
    if c.image_size[0] != c.image_size[1]:
        raise ValueError(f"config.image_size: expected a square for moving digits, got {c.image_size}")
    train_clips, test_clips = settings.pop("train_clips", 4096), settings.pop("test_clips", 1024)
    sizes: dict[str, Any] = {"frames": c.num_frames, "size": c.image_size[0], "channels": c.channels}
    train_set = MovingDigits("train", clips=train_clips, **sizes, **settings)
    test_set = MovingDigits("test", clips=test_clips, **sizes, **settings)
    return train_set, test_set
