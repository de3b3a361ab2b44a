"""Whether two data sets fit the recipe of a run."""

from __future__ import annotations

from refvt.data.dataset import Dataset, MakesTwins, UnreadableClipError
from refvt.training.errors import TrainingError
from refvt.training.recipe import Recipe

__all__ = ["check_data"]


def check_data(recipe: Recipe, train_set: Dataset, test_set: Dataset, processes: int) -> None:
    """Check that both sets fit the model, and that there are micro-batches for all processes; TrainingError if not."""
    c = recipe.config
    expected = [c.channels, c.num_frames, *c.image_size]
    for name, data in (("training set", train_set), ("test set", test_set)):
        if len(data) == 0:
            raise TrainingError(f"{name}: expected at least one clip, got none")
        if data.num_classes != c.num_classes:
            raise TrainingError(
                f"{name}: expected the {c.num_classes} classes of config.num_classes, got {data.num_classes}"
            )
        shape = _shape(data, name)
        if shape != expected:
            raise TrainingError(f"{name}: expected clips {expected} (C, T, height, width) by config, got {shape}")
    if recipe.static_twins and recipe.twins_from == "video" and not isinstance(train_set, MakesTwins):
        raise TrainingError(
            f"twins_from: 'video' needs a training set that makes twins from its videos, got {type(train_set).__name__}"
        )
    number = recipe.batch // recipe.micro_batch
    if processes > number:
        raise TrainingError(
            f"micro_batch: expected at least one micro-batch for each of {processes} processes, got {number} "
            f"(batch {recipe.batch}, micro_batch {recipe.micro_batch})"
        )


def _shape(data: Dataset, name: str) -> list[int]:
    """Return the shape of a set's first readable clip."""
    for index in range(len(data)):
        try:
            return list(data.clip(index).shape)
        except UnreadableClipError:
            continue
    raise TrainingError(f"{name}: none of its {len(data)} clips can be read")
