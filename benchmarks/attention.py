"""Attention forward: tuned, default and torch's scaled_dot_product_attention side by side.

    python -m benchmarks.attention [--list fa3] [--limit 4] [--tune 50 --db FILE] [--output FILE.jsonl]
    python -m benchmarks.attention --scaled --limit 1          a dry run, in seconds and without a GPU

Column ``torch`` is the backend that torch picks, the others are held to one each; a dash where it does not run
here, with its reason in the JSON. Timed as in benchmarks/matmul.py.
"""

from __future__ import annotations

from benchmarks._operators import command, main
from benchmarks.shapes import ATTENTION

COMMAND = command("attention", ATTENTION, "Tuned, default and torch's SDPA side by side.")


if __name__ == "__main__":
    main(COMMAND)
