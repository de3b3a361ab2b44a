"""What the notebooks share: the worked example, and exercises that check themselves.

``worked_example()`` is the small example that every notebook comes back to. ``check_exercise(name, answer)`` compares a
reader's answer with refvt and says what is wrong with it; ``EXERCISES`` lists them.
"""

from refvt.notebooks.example import WorkedExample, worked_example
from refvt.notebooks.exercises import EXERCISES, check_exercise, solution

__all__ = ["EXERCISES", "WorkedExample", "check_exercise", "solution", "worked_example"]
