"""Faults and load: ``python -m tests.load`` prints the table. CI runs five of each (``test_load.py``)."""
