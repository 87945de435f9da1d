"""Attention of one new token over a KV cache, in a row or in pages: tuned, default and torch side by side.

    python -m benchmarks.decode [--list llama4-tp8] [--limit 4] [--tune 50 --db FILE] [--output FILE.jsonl]
    python -m benchmarks.decode --scaled --limit 1          a dry run, in seconds and without a GPU

Columns as in benchmarks/attention.py, all of them with the mask that sequences of unequal lengths need;
``unmasked`` attends to all there is room for, which is right for a full cache alone. The rate that matters here is
GB/s.
"""

from __future__ import annotations

from benchmarks._operators import command, main
from benchmarks.shapes import DECODE

COMMAND = command("decode_attention", DECODE, "Tuned, default and torch's SDPA side by side.")


if __name__ == "__main__":
    main(COMMAND)
