"""What the notebooks share: the worked example, exercises that check themselves, and sliders.

``worked_example()`` is the small example that every notebook comes back to. ``check_exercise(name, answer)`` compares a
reader's answer with refvt and says what is wrong with it; ``EXERCISES`` lists them. ``explore_life`` and
``explore_scene`` show pictures with sliders.
"""

from refvt.notebooks.example import WorkedExample, worked_example
from refvt.notebooks.exercises import EXERCISES, check_exercise, solution
from refvt.notebooks.sliders import explore_life, explore_scene

__all__ = [
    "EXERCISES",
    "WorkedExample",
    "check_exercise",
    "explore_life",
    "explore_scene",
    "solution",
    "worked_example",
]
