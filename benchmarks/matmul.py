"""Matrix products: tuned, default and torch.matmul (cuBLAS) side by side, over the layers of large models.

    python -m benchmarks.matmul [--list llama3-8b-decode] [--limit 4] [--tune 50 --db FILE] [--output FILE.jsonl]
    python -m benchmarks.matmul --scaled --limit 1          a dry run, in seconds and without a GPU

All are timed in turns on the same inputs: on a GPU by replays of CUDA graphs that find their inputs out of the
cache. The lists are those of benchmarks/shapes.py.
"""

from __future__ import annotations

from benchmarks._operators import command, main
from benchmarks.shapes import MATMUL

COMMAND = command("gemm", MATMUL, "Tuned, default and torch.matmul side by side.")


if __name__ == "__main__":
    main(COMMAND)
