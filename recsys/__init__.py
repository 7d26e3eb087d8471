"""The engine: data, models, scoring, evaluation. No command line and no HTTP.

Unless the environment says otherwise, BLAS runs on one thread (the work is cut into blocks that are too
small to share out) and OpenMP threads wait asleep. On two cores with other work beside it, scoring the
demo's night took 7 s with one BLAS thread and 16 s with two, and a training step with spinning OpenMP
threads ran at a half to a tenth of the speed.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
