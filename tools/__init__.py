"""Command-line tools."""

import os

# Read when torch loads its OpenMP runtime, so set before. Threads that spin at barriers take the
# cores from data workers and from other processes: a training step on two cores with one worker
# beside it was measured ten times slower with spinning threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
