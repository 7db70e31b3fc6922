"""Time, memory and arithmetic of ours beside the textbook's."""

import os

# before PyTorch is imported: threads that spin while others are not scheduled would be counted as work
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
