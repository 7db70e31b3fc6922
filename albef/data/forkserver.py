"""Imported only by the server process that loader workers are forked from: takes it, and so them, out of our group.

A terminal's Ctrl-C and torchrun's SIGTERM go to a whole process group; whoever trains answers them by saving, for which
its workers and their server must live on. Ignoring the signals instead would make DataLoader's own `terminate` hang.
"""

import os

os.setpgid(0, 0)
