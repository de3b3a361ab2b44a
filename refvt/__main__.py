"""``python -m refvt`` is ``refvt``."""

import sys

from refvt.cli import main

sys.exit(main())
