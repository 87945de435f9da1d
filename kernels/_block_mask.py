"""Which blocks of an attention matrix are computed, and what is hidden inside of them.

A mask lists blocks by row, for the forward pass and the gradient of queries, and the same blocks by column, for the
gradients of keys and values. In each list blocks that are seen whole come first, so that a kernel takes them in a
loop without a mask, and then those that rules hide a part of. Rules are evaluated on the device, from positions:

- a key exists (the last block of keys may reach past the end),
- causal: key j <= query i (top-left, as torch does); window: abs(i - j) < window,
- documents: queries and keys of equal number see each other.

The lists are made once, when the mask is, from the extents of blocks: no (SQ, SK) matrix exists at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from autotune.kernels._block_mask_lists import BlockLists, Extents, candidates, decoded, grid_of, listed

#: Rows, or columns, that a block may have.
BLOCKS = (16, 32, 64, 128)

_INTEGERS = (torch.int32, torch.int64)

Block = int | tuple[int, int]


class BlockMask(NamedTuple):
    """A block mask in parts, which pass through ``torch.compile``. Made by its class methods.

    It has ``batches * heads`` planes: of batch b, query head h has plane ``b % batches * heads + h % heads``, so
    ``batches`` is 1 or the batch size, and ``heads`` 1 or the number of query heads.
    """

    #: Rows are those of each plane, one plane after the other.
    by_row: BlockLists
    #: The transpose: rows are block columns of a plane.
    by_column: BlockLists
    #: (batches, SQ) and (batches, SK) int32, ascending in each batch; None without documents.
    q_documents: torch.Tensor | None
    k_documents: torch.Tensor | None
    #: (SQ, SK), in elements, no need to be multiples of ``block``.
    shape: tuple[int, int]
    #: (queries, keys) of a block, powers of two from 16 to 128.
    block: tuple[int, int]
    batches: int
    heads: int
    is_causal: bool
    #: 0 for none.
    window: int

    @property
    def grid(self) -> tuple[int, int]:
        """(block rows, block columns) of a plane."""
        return grid_of(self.shape, self.block)

    @classmethod
    def causal(cls, SQ: int, SK: int, block: Block = 128, *, device: torch.device | str | None = None) -> BlockMask:
        """Query i sees keys 0 to i.

        :param block: size of blocks, or (queries, keys) of one: powers of two from 16 to 128
        :raises ValueError: if a size is negative or the block no such size.
        """
        return _ruled((SQ, SK), block, True, None, device=device)

    @classmethod
    def sliding_window(
        cls,
        SQ: int,
        SK: int,
        window: int,
        block: Block = 128,
        *,
        causal: bool = True,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """Query i sees keys j with abs(i - j) < window, ``window`` of ``attention``; and none after i, but for
        ``causal=False``.

        :raises ValueError: if the window is under 1, or as :meth:`causal`.
        """
        return _ruled((SQ, SK), block, causal, window, device=device)

    @classmethod
    def document(
        cls,
        document_ids: torch.Tensor | None = None,
        block: Block = 128,
        *,
        cu_seqlens: torch.Tensor | None = None,
        k_document_ids: torch.Tensor | None = None,
        causal: bool = False,
        window: int | None = None,
    ) -> BlockMask:
        """Queries see the keys of their document only.

        With documents of keys that are not the queries', a block may be listed of which no pair is of one document.

        :param document_ids: (S,) or (batch, S) of integers that ascend: the document of each query
        :param cu_seqlens: in its place: (documents + 1,), where each document starts, and last where it all ends
        :param k_document_ids: the document of each key, where they are not the queries'
        :raises ValueError: if not one of the first two is given, the numbers descend, or as :meth:`causal`.
        """
        if (document_ids is None) == (cu_seqlens is None):
            raise ValueError("give either document_ids or cu_seqlens")
        if cu_seqlens is not None:
            document_ids = _from_offsets(cu_seqlens)
        assert document_ids is not None
        q_documents = _documents("document_ids", document_ids)
        k_documents = q_documents if k_document_ids is None else _documents("k_document_ids", k_document_ids)
        if k_documents.shape[0] != q_documents.shape[0] or k_documents.device != q_documents.device:
            raise ValueError(
                f"document_ids are of {q_documents.shape[0]} batches on {q_documents.device} and k_document_ids of "
                f"{k_documents.shape[0]} on {k_documents.device}; both must be equal"
            )
        shape = q_documents.shape[1], k_documents.shape[1]
        return _ruled(shape, block, causal, window, q_documents, k_documents, device=q_documents.device)

    @classmethod
    def from_blocks(
        cls,
        blocks: torch.Tensor,
        SQ: int,
        SK: int,
        block: Block = 128,
        *,
        causal: bool = False,
        window: int | None = None,
    ) -> BlockMask:
        """What a boolean matrix keeps: ([batch,] [heads,] ceil(SQ / block), ceil(SK / block)).

        Kept blocks are seen whole, but for what ``causal`` and ``window`` hide; blocks they hide whole are dropped.

        :raises ValueError: if ``blocks`` is not boolean or has other sizes, or as :meth:`causal`.
        """
        shape, sizes = _checked((SQ, SK), block, window)
        grid = grid_of(shape, sizes)
        is_boolean = isinstance(blocks, torch.Tensor) and blocks.dtype == torch.bool
        if not is_boolean or blocks.dim() not in (2, 3, 4) or tuple(blocks.shape[-2:]) != grid:
            raise ValueError(
                f"blocks is {_kind(blocks)}; {SQ} x {SK} elements in blocks of {sizes} take "
                f"a boolean matrix of {grid}, with batch and heads before it or without"
            )
        heads = blocks.shape[-3] if blocks.dim() > 2 else 1
        batches = blocks.shape[0] if blocks.dim() == 4 else 1
        row, column = blocks.reshape(batches * heads * grid[0], grid[1]).nonzero().unbind(1)
        extents = Extents(shape, sizes, causal, window or 0)
        kept, whole = extents.classify(row, column)
        lists = listed(row[kept], column[kept], whole[kept], batches * heads, grid)
        return cls(*lists, None, None, shape, sizes, batches, heads, causal, window or 0)

    def and_causal(self) -> BlockMask:
        """This mask without keys after the query; itself if it has none."""
        if self.is_causal:
            return self
        row, column, whole = decoded(self.by_row)
        kept, below = Extents(self.shape, self.block, True, 0).classify(row, column)
        lists = listed(row[kept], column[kept], (whole & below)[kept], self.batches * self.heads, self.grid)
        return self._replace(by_row=lists[0], by_column=lists[1], is_causal=True)

    def dense(self, first: int = 0, end: int | None = None) -> torch.Tensor:
        """(batches, heads, queries, SK) bool: what queries ``first`` to ``end`` see. Reads no device."""
        rows, columns = self.grid
        row, column, whole = decoded(self.by_row)
        listed = torch.zeros(self.batches * self.heads * rows, columns, dtype=torch.int8, device=row.device)
        listed[row, column] = 1 + whole.to(torch.int8)
        queries = torch.arange(first, self.shape[0] if end is None else end, device=row.device)
        keys = torch.arange(self.shape[1], device=row.device)
        kinds = listed.view(self.batches, self.heads, rows, columns)
        kinds = kinds[:, :, queries // self.block[0]][..., keys // self.block[1]]
        seen = torch.ones(len(queries), len(keys), dtype=torch.bool, device=row.device)
        distance = queries[:, None] - keys
        if self.is_causal:
            seen &= distance >= 0
        if self.window:
            seen &= distance.abs() < self.window
        if self.q_documents is not None and self.k_documents is not None:
            same = self.q_documents[:, queries, None] == self.k_documents[:, None]
            seen = seen & same[:, None]
        return (kinds == 2) | (kinds == 1) & seen


def _ruled(
    shape: tuple[int, int],
    block: Block,
    causal: bool,
    window: int | None,
    q_documents: torch.Tensor | None = None,
    k_documents: torch.Tensor | None = None,
    *,
    device: torch.device | str | None,
) -> BlockMask:
    """The blocks that hold a pair the rules let see each other."""
    shape, sizes = _checked(shape, block, window)
    extents = Extents(shape, sizes, causal, window or 0, q_documents, k_documents)
    row, column = candidates(extents, device)
    kept, whole = extents.classify(row, column)
    batches = 1 if q_documents is None else q_documents.shape[0]
    lists = listed(row[kept], column[kept], whole[kept], batches, grid_of(shape, sizes))
    return BlockMask(*lists, q_documents, k_documents, shape, sizes, batches, 1, causal, window or 0)


def _checked(shape: tuple[int, int], block: Block, window: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(shape, block as a pair).

    :raises ValueError: if a size is negative, the block no such size, or the window under 1.
    """
    for name, size in zip(("SQ", "SK"), shape, strict=True):
        if not isinstance(size, int) or not 0 <= size < 2**31 - 512:
            raise ValueError(f"{name} is {size}; it must be an integer from 0 to {2**31 - 513}")
    sizes = tuple(block) if isinstance(block, tuple | list) else (block, block)
    if len(sizes) != 2 or not all(isinstance(size, int) and size in BLOCKS for size in sizes):
        raise ValueError(f"block is {block}; it must be one or two of {', '.join(map(str, BLOCKS))}")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window is {window}; it must be an integer from 1 up, or None")
    return shape, (sizes[0], sizes[1])


@torch.inference_mode(False)
def _documents(name: str, ids: torch.Tensor) -> torch.Tensor:
    """(batches, S) int32, contiguous. A copy, since lists don't follow what the caller writes to theirs later."""
    if not isinstance(ids, torch.Tensor) or ids.dim() not in (1, 2) or ids.dtype not in _INTEGERS:
        raise ValueError(f"{name} is {_kind(ids)}; it must be int32 or int64, ([batch,] length)")
    if ids.numel() and bool((ids.diff() < 0).any()):
        raise ValueError(f"{name} descends; documents follow one another, so number them in their order")
    if ids.numel() and max(-int(ids.min()), int(ids.max())) >= 2**31:
        raise ValueError(f"{name} goes up to {int(ids.max())}; numbers must fit 32 bits")
    numbers = ids if ids.dim() == 2 else ids[None]
    return numbers.to(torch.int32, copy=True, memory_format=torch.contiguous_format)


def _from_offsets(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """(S,): the document of each of the elements that offsets divide."""
    is_tensor = isinstance(cu_seqlens, torch.Tensor)
    if not is_tensor or cu_seqlens.dim() != 1 or cu_seqlens.dtype not in _INTEGERS or not len(cu_seqlens):
        raise ValueError(f"cu_seqlens is {_kind(cu_seqlens)}; it must be int32 or int64, (documents + 1,)")
    lengths = cu_seqlens.diff()
    if int(cu_seqlens[0]) != 0 or bool((lengths < 0).any()):
        raise ValueError("cu_seqlens must ascend from 0")
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
