"""Right, but scales its input in place on the way."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right

KERNEL = kernel_of(lambda a, b: launch(right, a.mul_(2), b) / 2)
