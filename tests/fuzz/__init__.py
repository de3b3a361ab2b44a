"""Mutated files for every reader: ``python -m tests.fuzz --help``. CI replays a small part (``test_fuzz.py``)."""
