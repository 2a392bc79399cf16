"""numpy's product of two f32 matrices as they come from a linear layer, x·wᵀ: 10⁹ operations a second of the best.

usage: numpy_gemm.py SIZE THREADS SECONDS
"""

import os
import sys
import time

# Before numpy is there: its OpenBLAS reads it once.
os.environ["OPENBLAS_NUM_THREADS"] = sys.argv[2]
import numpy as np  # noqa: E402

size, seconds = int(sys.argv[1]), float(sys.argv[3])
x, w = (np.full((size, size), number, np.float32) for number in (0.5, 0.25))
y = x @ w.T
end, best = time.monotonic() + seconds, float("inf")
while True:
    before = time.perf_counter()
    np.matmul(x, w.T, out=y)
    best = min(best, time.perf_counter() - before)
    if time.monotonic() >= end:
        break
print(2 * size**3 / best / 1e9)
