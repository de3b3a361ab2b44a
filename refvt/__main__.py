"""``python -m refvt`` runs the command ``refvt``."""

import sys

from refvt.cli import main

sys.exit(main())
