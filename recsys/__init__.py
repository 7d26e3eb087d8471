"""The engine: data, models, scoring, evaluation. No command line and no HTTP.

Unless the environment says otherwise, BLAS runs on one thread (the work is cut into blocks that are too
small to share out) and OpenMP threads wait asleep: with spinning ones, matrices of a request were six
times slower on two cores, and training five times as soon as anything else ran.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
