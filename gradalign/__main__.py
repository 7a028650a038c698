"""``python -m gradalign``."""

import sys

from gradalign.cli.main import main

sys.exit(main())
