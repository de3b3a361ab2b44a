"""The known variants of HaltingVT: "this is not a bug, it agrees with A-ViT's masked keys".

Where the paper, the released model, its parents and other transformers differ, and where people often differ from all
of them, a name is better than a number. ``VARIANTS`` is the list (docs/variants.md is the same list as a table).
``compute`` gives every tensor of a case under one or more of them. ``Finder`` says, from what a candidate returned,
which variant it is, or which two.

A variant is never claimed for what it does not change: somewhere what was given must differ from the truth and agree
with the variant, and nowhere may it differ from the variant. Where two variants do so alike, both are named.
"""

from refvt.conformance.variants.search import Finder, find, meaning
from refvt.conformance.variants.table import VARIANTS, Variant
from refvt.conformance.variants.trials import Evidence, Judge, compute, evidence_of

__all__ = ["VARIANTS", "Evidence", "Finder", "Judge", "Variant", "compute", "evidence_of", "find", "meaning"]
