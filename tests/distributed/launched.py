"""The program's own main with weights divided on CPUs, for ``accelerate launch``; see ``on_cpus.py``."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import on_cpus

from onpolicy_sdft.cli.main import main

if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        on_cpus.deepspeed(timedelta(seconds=60))
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true":
        on_cpus.fsdp2(timedelta(seconds=60), by_file=True)
    sys.exit(main())
