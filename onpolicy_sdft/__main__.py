"""``python -m onpolicy_sdft`` is ``sdft``."""

import sys

from onpolicy_sdft.cli.main import main

sys.exit(main())
