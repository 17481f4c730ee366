"""``python -m sandd``: the `sandd` command, where its script isn't on PATH."""

import sys

from sandd.cli import main

sys.exit(main())
