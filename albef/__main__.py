"""`python -m albef`, and what `torchrun -m albef` starts."""

import os
import sys

from albef.cli import main

try:
    main()
    ended = None
except SystemExit as stop:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise
    ended = stop.code
if "TORCHELASTIC_RUN_ID" in os.environ:
    # gloo's threads may outlive the interpreter and then abort it ("terminate called without an active exception"),
    # by which torchrun would take a finished run for a failed one
    if isinstance(ended, str):
        print(ended, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended if isinstance(ended, int) else int(ended is not None))
