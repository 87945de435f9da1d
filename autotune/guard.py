"""Memory between guard zones: what a candidate writes outside of its tensors shows afterwards.

Works on any device, under Triton's interpreter too, since a guarded tensor is an ordinary one: of the same sizes,
strides and alignment, on a storage with some known bytes in front of it and behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

#: On each side. A multiple of the 512 bytes that torch aligns CUDA memory to (64 on a CPU), so that a guarded
#: tensor is aligned as an unguarded one is.
ZONE_BYTES = 4096
#: Fresh tensors' zones are numbered from here on, inputs' from 0.
FIRST_FRESH = 64


@dataclass(frozen=True)
class Block:
    """Guarded memory of one storage."""

    #: What it holds, for messages.
    name: str
    #: uint8, zones included.
    memory: torch.Tensor
    #: uint8, ZONE_BYTES: what both zones must hold.
    zone: torch.Tensor

    @classmethod
    def within(cls, memory: torch.Tensor, name: str, number: int) -> Block:
        """Write the zones at both ends of ``memory`` (uint8)."""
        # -1 to -127 in 16 bits are NaN as float16, bfloat16, float32 and float64: a value read from a zone shows
        # in the result. By number, so that a value copied from one zone to another shows there.
        pattern = torch.full((ZONE_BYTES // 2,), -1 - number % 127, dtype=torch.int16, device=memory.device)
        block = cls(name, memory, pattern.view(torch.uint8))
        memory[:ZONE_BYTES] = memory[-ZONE_BYTES:] = block.zone
        return block

    @property
    def content(self) -> torch.Tensor:
        """uint8: the memory without its zones."""
        return self.memory[ZONE_BYTES:-ZONE_BYTES]

    def holding(self, like: torch.Tensor) -> torch.Tensor:
        """The tensor that lies in this memory as ``like`` does in its own storage."""
        offset = ZONE_BYTES // like.element_size() + like.storage_offset()
        tensor = torch.empty(0, dtype=like.dtype, device=like.device)
        return tensor.set_(self.memory.untyped_storage(), offset, like.size(), like.stride())

    def breach(self) -> str | None:
        """None if both zones are as they were, else which one is not."""
        for side, zone in (("before", self.memory[:ZONE_BYTES]), ("after", self.memory[-ZONE_BYTES:])):
            if not torch.equal(zone, self.zone):
                changed = (zone != self.zone).nonzero()
                distance = int(changed[0]) + 1 if side == "after" else ZONE_BYTES - int(changed[-1])
                return f"it wrote outside its output, {distance} bytes {side} {self.name}"
        return None


class Arena:
    """Guarded copies of a call's arguments, always in the same memory, whichever arguments are loaded."""

    def __init__(self, *sets: tuple[Any, ...]) -> None:
        """:param sets: the arguments that will be loaded, storage for storage on the same devices."""
        self._memory = []
        for place in zip_longest(*(storages(args).values() for args in sets)):
            held = [storage for storage in place if storage is not None]
            size = 2 * ZONE_BYTES + max(storage.nbytes() for storage in held)
            self._memory.append(torch.empty(size, dtype=torch.uint8, device=held[0].device))
        #: By the number of the first tensor in it.
        self._blocks: dict[int, Block] = {}
        self._originals: dict[int, torch.Tensor] = {}

    def load(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Copy ``args`` in and give out the copies; what was given out before holds other data now.

        Dense tensors are copied with the whole of their storage, which those that share one go on sharing;
        everything else is passed on as it is.
        """
        held = storages(args)
        self._originals = {number: _bytes(storage) for number, storage in held.items()}
        self._blocks = {
            number: Block.within(
                memory[: 2 * ZONE_BYTES + storage.nbytes()], f"input tensor number {number}", number
            )
            for memory, (number, storage) in zip(self._memory, held.items(), strict=False)
        }
        for number, block in self._blocks.items():
            block.content.copy_(self._originals[number])
        at = {storage.data_ptr(): self._blocks[number] for number, storage in held.items()}

        def moved(leaf: Any) -> Any:
            return at[leaf.untyped_storage().data_ptr()].holding(leaf) if _is_dense(leaf) else leaf

        copies: tuple[Any, ...] = tree_map(moved, args)
        return copies

    def fault(self) -> str | None:
        """None if the copies and the memory around them are as loaded, else what is not."""
        for number, block in self._blocks.items():
            if not torch.equal(block.content, self._originals[number]):
                return f"it changed its input tensor number {number}"
        return breach(self._blocks.values())


@contextmanager
def fresh_memory() -> Iterator[list[Block]]:
    """Within, what torch.empty and its relatives return is NaN, and fresh tensors lie between guard zones.

    Gives the blocks of those tensors, which hold their memory until the list is dropped.
    """
    with _Fresh() as mode:
        yield mode.blocks


def breach(blocks: Iterable[Block]) -> str | None:
    """The first breach of any, or None."""
    return next((found for block in blocks if (found := block.breach()) is not None), None)


class _Fresh(TorchDispatchMode):
    _EMPTY = (
        *(aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted),
        *(aten.new_empty, aten.new_empty_strided),
    )
    #: A kernel that adds up atomically starts from these.
    _FILLED = (
        *(aten.zeros, aten.zeros_like, aten.new_zeros, aten.ones, aten.ones_like, aten.new_ones),
        *(aten.full, aten.full_like, aten.new_full),
    )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping imports torch._dynamo: 2.7 s in each new worker. Nothing here is ever compiled.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocks: list[Block] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = func.overloadpacket in self._EMPTY or func.overloadpacket in self._FILLED
        if not made or "out" in (kwargs or {}) or not _is_dense(result) or result.numel() == 0 or result.is_meta:
            return result
        guarded = self._guarded(result)
        if func.overloadpacket in self._FILLED:
            guarded.copy_(result)
        elif result.is_floating_point() or result.is_complex():
            guarded.fill_(float("nan"))
        elif result.dtype != torch.bool:
            guarded.fill_(torch.iinfo(result.dtype).max // 2)
        return guarded

    def _guarded(self, like: torch.Tensor) -> torch.Tensor:
        size = 2 * ZONE_BYTES + like.untyped_storage().nbytes()
        memory = torch.empty(size, dtype=torch.uint8, device=like.device)
        name = f"its {tuple(like.shape)} {like.dtype} tensor"
        self.blocks.append(Block.within(memory, name, FIRST_FRESH + len(self.blocks)))
        return self.blocks[-1].holding(like)


def storages(args: Any) -> dict[int, torch.UntypedStorage]:
    """Of the dense tensors among ``args``, in order, each once, by the number of the first tensor in it."""
    found: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for number, tensor in enumerate(leaf for leaf in tree_leaves(args) if _is_dense(leaf)):
        storage = tensor.untyped_storage()
        found.setdefault(storage.data_ptr(), (number, storage))
    return dict(found.values())


def copied(args: Any) -> Any:
    """The arguments with each dense tensor on a copy of its storage: same strides, same place in it."""

    def copy(leaf: Any) -> Any:
        if not _is_dense(leaf):
            return leaf
        storage = leaf.untyped_storage().clone()
        fresh = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
        return fresh.set_(storage, leaf.storage_offset(), leaf.size(), leaf.stride())

    return tree_map(copy, args)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
