"""`python -m albef`, and what `torchrun -m albef` starts."""

import os
import sys

from albef.cli import main

main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # gloo's threads may outlive the interpreter and then abort it ("terminate called without an active exception"),
    # by which torchrun would take a finished run for a failed one
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
