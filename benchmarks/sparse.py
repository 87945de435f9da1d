"""Sparse operators: tuned, default, the dense route and torch's own sparse one side by side, on the same inputs.

    python -m benchmarks.sparse bsr_matmul [--list grid] [--limit 4] [--tune 50 --db FILE] [--output FILE.jsonl]
    python -m benchmarks.sparse bsr_matmul --scaled --limit 1          a dry run, in seconds and without a GPU

``torch`` is the call that torch has for it; the other columns are the kernel's providers (a dense product, SDPA
with a mask, cuSPARSELt) and a loop over adapters or groups. A dash is what does not run there; the JSON says why.
``balanced`` is a dense batched product of as many operations as the ragged one.
"""

from __future__ import annotations

import click

from benchmarks._operators import command, main
from benchmarks.sparse_shapes import SPARSE

COMMAND = click.Group(
    "sparse",
    {name: command(name, lists, f"{name}, and what else computes it.") for name, lists in SPARSE.items()},
    help="Sparse operators beside dense and sparse ones of torch.",
)


if __name__ == "__main__":
    main(COMMAND)
