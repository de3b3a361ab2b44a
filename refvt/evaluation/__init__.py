"""Running a model on labelled clips: one record per clip (``records``), the figures made of them (``metrics``), and
the file in which an interrupted evaluation goes on (``journal``)."""

from refvt.evaluation.journal import Record
from refvt.evaluation.metrics import Evaluation, average_precision, summarise
from refvt.evaluation.records import evaluate, records

__all__ = ["Evaluation", "Record", "average_precision", "evaluate", "records", "summarise"]
