"""One thread for BLAS and OpenMP in a process of tests, as a worker of the engine has. Imported before numpy is.

Their threads spin for a while after each product, on the core that the other test process needs: fitting took more than
twice the CPU time. Programs that tests start are free to take what they take anywhere (tests/engine_fixture.py).
"""

from __future__ import annotations

import os

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ.update(ONE_THREAD)
