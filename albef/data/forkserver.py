"""Imported by the server process that loader workers are forked from: takes it, and so them, out of our process group.

A terminal's Ctrl-C and torchrun's SIGTERM go to a whole process group. Whoever trains answers them by saving, and for
that its workers and their server must live on. Ignoring the signals instead would make DataLoader's own `terminate`
hang. Imported by any other process, this does nothing.
"""

import os

SERVER_OF = "ALBEF_FORKSERVER_OF"  # the process that starts a server writes its own id there; the server is its child

if os.environ.get(SERVER_OF) == str(os.getppid()):
    os.setpgid(0, 0)
