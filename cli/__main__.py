"""`python -m cli` is `flowkin`."""

import sys

from cli.main import main

sys.exit(main())
