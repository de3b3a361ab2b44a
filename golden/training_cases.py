"""The training cases: twenty steps of an optimiser on one batch, from stored parameters."""

from dataclasses import dataclass, replace

from golden.model_cases import TINY, ModelCase, distinct_layers


@dataclass(frozen=True)
class TrainingCase:
    """Steps of one optimiser on all clips of a model case; ``model`` gives the random draw and the loss weights."""

    model: ModelCase
    optimiser: str  # "sgd", plain gradient descent, or "adamw"
    rate: float
    weight_decay: float = 0.0
    # the gradients of key biases are zero up to rounding; with the usual 1e-8 Adam would turn them into steps
    adam_epsilon: float = 1e-3
    steps: int = 20

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return f"training-{self.model.name}"


TRAINING_CASES = [
    TrainingCase(
        ModelCase(
            "sgd",
            "plain gradient descent of a selecting, halting model on two clips and their static twins",
            replace(TINY, keep_rates=(0.5,), depth=4),
            distinct_layers(2),
            batch=4,
            twins=True,
        ),
        "sgd",
        rate=0.05,
    ),
    TrainingCase(
        ModelCase(
            "adamw",
            "AdamW on two clips; halted tokens are no keys",
            replace(TINY, halted_keys="masked"),
            distinct_layers(2),
            batch=2,
        ),
        "adamw",
        rate=0.01,
        weight_decay=0.05,
    ),
]
