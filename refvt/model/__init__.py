"""HaltingVT, written once against the table of operations.

Read in this order: ``config`` (the sizes), ``parameters`` (names, shapes, initialisation), ``blocks`` (pre-norm
attention and MLP), ``glimpser`` and ``joint`` (the two kinds of layer), ``network`` (the whole), ``haltingvt`` (what
users call).
"""
