"""The arrays that weight algebra works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
