"""The training cases: twenty steps of an optimiser from one start, on one batch."""

from dataclasses import dataclass, replace

from golden.model_cases import TINY, ModelCase, distinct_layers


@dataclass(frozen=True)
class TrainingCase:
    """Steps of one optimiser on all clips of a model case; `model` says what is drawn and how the loss is weighed."""

    model: ModelCase
    optimiser: str  # "sgd", plain gradient descent, or "adamw"
    rate: float
    weight_decay: float = 0.0
    # Keys' biases have a gradient of zero but for rounding; Adam's usual 1e-8 makes steps of that
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
