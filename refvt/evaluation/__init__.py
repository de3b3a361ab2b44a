"""Running a model on labelled clips.

``records`` computes one record per clip, ``metrics`` the figures from all records, and ``journal`` is the file from
which an interrupted evaluation resumes.
"""

from refvt.evaluation.journal import Record
from refvt.evaluation.metrics import Evaluation, average_precision, summarise
from refvt.evaluation.records import compute_records, evaluate

__all__ = ["Evaluation", "Record", "average_precision", "compute_records", "evaluate", "summarise"]
