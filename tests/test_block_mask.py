"""Block masks against the dense matrices they stand for, and what is refused of masks put together by hand."""

import copy
import io
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.kernels._block_mask import BLOCKS, BlockMask
from autotune.kernels._block_mask_kept import check_lists, of_blocks, with_causal

SIZES = st.integers(0, 150)


def seen(SQ, SK, causal=False, window=None, q_ids=None, k_ids=None):
    """(batches, 1, SQ, SK), from the rules."""
    distance = torch.arange(SQ)[:, None] - torch.arange(SK)
    visible = torch.ones(SQ, SK, dtype=torch.bool)
    if causal:
        visible &= distance >= 0
    if window:
        visible &= distance.abs() < window
    if q_ids is None:
        return visible[None, None]
    return (visible & (q_ids[:, :, None] == k_ids[:, None]))[:, None]


def cut(mask, dense):
    """(batches, heads, row blocks, key blocks): how many pairs each block of a dense mask sees, and has."""
    (rows, columns), (high, wide) = mask.grid, mask.block

    def counted(matrix):
        padded = torch.zeros(*matrix.shape[:-2], rows * high, columns * wide)
        padded[..., : matrix.shape[-2], : matrix.shape[-1]] = matrix.float()
        return padded.unflatten(-2, (rows, high)).unflatten(-1, (columns, wide)).sum((-3, -1))

    return counted(dense), counted(torch.ones_like(dense))


def listed(lists, planes, rows, across):
    """0 where a block is not listed, 1 where it is partial, 2 where it is whole; one after the other, in order."""
    found = torch.zeros(planes * rows, across)
    for row in range(planes * rows):
        first, edge, last = int(lists.offsets[row]), int(lists.partial[row]), int(lists.offsets[row + 1])
        for start, end, kind in ((first, edge, 2), (edge, last, 1)):
            blocks = lists.blocks[start:end].tolist()
            assert blocks == sorted(set(blocks))
            assert not found[row, blocks].any()
            found[row, blocks] = kind
    return found.view(planes, rows, across)


def assert_mask(mask, dense, tight=True):
    """It sees what ``dense`` does, and lists blocks that do, whole ones apart; if ``tight`` no others."""
    assert torch.equal(mask.dense(), dense)
    (rows, columns), planes = mask.grid, mask.batches * mask.heads
    sees, has = cut(mask, dense)
    # The last block of keys may reach past the end, so it is none without a mask.
    whole = (sees == has) & (torch.arange(1, columns + 1) * mask.block[1] <= mask.shape[1])
    kinds = ((sees > 0).int() + (whole & (sees > 0)).int()).float().view(planes, rows, columns)
    found = listed(mask.by_row, planes, rows, columns)
    assert torch.equal(found, kinds) if tight else ((found == kinds) | (found == 1) & (kinds == 0)).all()
    kinds = found
    assert torch.equal(listed(mask.by_column, planes, columns, rows), kinds.mT)
    for lists, length in ((mask.by_row, rows), (mask.by_column, columns)):
        order, counts = lists.longest_first.view(planes, length).long(), lists.offsets.diff().view(planes, length)
        assert torch.equal(order.sort(1).values, torch.arange(length).expand(planes, -1))
        assert torch.equal(counts.gather(1, order), counts.sort(1, descending=True).values)
    check_lists(mask)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.tuples(*[st.sampled_from(BLOCKS)] * 2), st.sampled_from([1, 7, 33, 200]), st.booleans())
def test_causal_and_sliding_windows(SQ, SK, block, window, causal):
    assert_mask(BlockMask.causal(SQ, SK, block), seen(SQ, SK, causal=True))
    mask = BlockMask.sliding_window(SQ, SK, window, block, causal=causal)
    assert_mask(mask, seen(SQ, SK, causal, window))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_documents(data):
    batches, SQ, SK = data.draw(st.integers(1, 2)), data.draw(SIZES), data.draw(SIZES)
    block = data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([16, 64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q_ids, k_ids = (torch.randint(-2, 4, (batches, size), generator=generator).sort(1).values for size in (SQ, SK))
    mask = BlockMask.document(q_ids, block, k_document_ids=k_ids)
    # The numbers between a block's first and last may be nobody's.
    assert_mask(mask, seen(SQ, SK, q_ids=q_ids, k_ids=k_ids), tight=False)
    options = {"causal": data.draw(st.booleans()), "window": data.draw(st.sampled_from([None, 20]))}
    mask = BlockMask.document(q_ids, block, **options)
    assert_mask(mask, seen(SQ, SQ, **options, q_ids=q_ids, k_ids=q_ids))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_matrix_of_blocks(data):
    SQ, SK, block = data.draw(SIZES), data.draw(SIZES), (16, 32)
    leading = data.draw(st.sampled_from([(), (3,), (2, 1), (2, 2)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    share, window = data.draw(st.sampled_from([0, 0.3, 1])), data.draw(st.sampled_from([None, 40]))
    matrix = torch.rand(*leading, -(-SQ // 16), -(-SK // 32), generator=generator) < share
    dense = matrix.repeat_interleave(16, -2).repeat_interleave(32, -1)[..., :SQ, :SK]
    dense = dense.view(*(1,) * (2 - len(leading)), *dense.shape)
    mask = BlockMask.from_blocks(matrix, SQ, SK, block, window=window)
    assert_mask(mask, dense & seen(SQ, SK, window=window))
    causal = mask.and_causal()
    assert_mask(causal, dense & seen(SQ, SK, True, window))
    built = BlockMask.from_blocks(matrix, SQ, SK, block, causal=True, window=window)
    assert all(torch.equal(*pair) for pair in zip(built.by_row, causal.by_row, strict=True))


def test_offsets_of_documents_are_their_numbers():
    mask = BlockMask.document(cu_seqlens=torch.tensor([0, 5, 5, 40], dtype=torch.int32), block=16)
    ids = torch.tensor([0] * 5 + [2] * 35)
    assert_mask(mask, seen(40, 40, q_ids=ids[None], k_ids=ids[None]))


def test_a_long_sequence_needs_no_matrix():
    """A million positions in blocks of 128 would be 8192 x 8192 blocks: lists of a window are 9 a row."""
    mask = BlockMask.sliding_window(2**20, 2**20, 1024, 128)
    assert mask.by_row.offsets.diff().max() == 9
    # Rows 0 to 7 see 1 to 8 blocks, the other 8184 see 9.
    assert mask.by_row.blocks.numel() == 36 + 8184 * 9


def test_documents_are_the_masks_own():
    ids = torch.zeros(1, 32, dtype=torch.int32)
    mask = BlockMask.document(ids, 16)
    ids += torch.arange(32, dtype=torch.int32)
    assert mask.dense().all()


def test_what_is_worked_out_is_kept_until_the_mask_is_written_to():
    mask = BlockMask.from_blocks(torch.ones(4, 4, dtype=torch.bool), 64, 64, 16)
    causal = with_causal(mask, True)
    assert causal is with_causal(mask, True)
    assert with_causal(mask, False) is mask and with_causal(causal, True) is causal
    assert with_causal(mask._replace(window=20), True) is not causal
    mask.by_row.blocks[0] = 0
    assert with_causal(mask, True) is not causal
    matrix = torch.ones(4, 2, dtype=torch.bool)
    assert of_blocks(matrix, 64, 64) is of_blocks(matrix, 64, 64)
    for_others = of_blocks(matrix, 128, 64)
    assert for_others.block == (32, 32) and for_others is of_blocks(matrix, 128, 64)
    matrix[0, 0] = False
    assert of_blocks(matrix, 64, 64).by_row.blocks.numel() == 7
    matrix.data = torch.ones(4, 2, dtype=torch.bool)
    assert of_blocks(matrix, 64, 64).by_row.blocks.numel() == 8


def test_copies_of_a_matrix_do_not_take_its_mask_along():
    matrix = torch.ones(4, 2, dtype=torch.bool)
    matrix[0, 0] = False
    of_blocks(matrix, 64, 64)
    saved = io.BytesIO()
    torch.save(matrix, saved)
    saved.seek(0)
    for other in (copy.deepcopy(matrix), torch.load(saved, weights_only=True)):
        # Its first change, as many as the original had.
        other[0, 1] = False
        assert of_blocks(other, 64, 64).by_row.blocks.numel() == 6


def test_in_inference_mode_a_matrix_that_is_written_to_is_another():
    with torch.inference_mode():
        matrix = torch.ones(4, 2, dtype=torch.bool)
        of_blocks(matrix, 64, 64)
        matrix[0, 0] = False
        assert of_blocks(matrix, 64, 64).by_row.blocks.numel() == 7


ONES = torch.ones(2, 2, dtype=torch.bool)
REFUSED = {
    "block is 24": lambda: BlockMask.causal(64, 64, 24),
    "block is (16, 256)": lambda: BlockMask.causal(64, 64, (16, 256)),
    "block is 32.0": lambda: BlockMask.causal(64, 64, 32.0),
    "SK is 64.0": lambda: BlockMask.causal(64, 64.0),
    "window is 7.5": lambda: BlockMask.sliding_window(64, 64, 7.5),
    "document_ids is a list": lambda: BlockMask.document([0, 1]),
    "blocks is a list": lambda: BlockMask.from_blocks([[True]], 16, 16, 16),
    "SQ is -1": lambda: BlockMask.causal(-1, 64),
    "SK is 2147483648": lambda: BlockMask.causal(1, 2**31),
    "window is 0": lambda: BlockMask.sliding_window(64, 64, 0),
    "give either": lambda: BlockMask.document(),
    "document_ids descends": lambda: BlockMask.document(torch.tensor([1, 0])),
    "document_ids goes up to 2147483648": lambda: BlockMask.document(torch.tensor([0, 2**31])),
    "document_ids is torch.float32 (2,)": lambda: BlockMask.document(torch.ones(2)),
    "k_document_ids of 2": lambda: BlockMask.document(torch.ones(4).int(), k_document_ids=torch.ones(2, 4).int()),
    "cu_seqlens must ascend": lambda: BlockMask.document(cu_seqlens=torch.tensor([0, 5, 3])),
    "cu_seqlens is torch.int64 (0,)": lambda: BlockMask.document(cu_seqlens=torch.tensor([], dtype=torch.long)),
    "blocks is torch.float32": lambda: BlockMask.from_blocks(torch.ones(2, 2), 32, 32, 16),
    "take a boolean matrix of (3, 2)": lambda: BlockMask.from_blocks(ONES, 33, 32, 16),
    "2 blocks of seq_q 40": lambda: of_blocks(ONES, 40, 32),
    "2 blocks of seq_k 512": lambda: of_blocks(ONES, 32, 512),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        REFUSED[message]()


BROKEN = {
    "mask.by_row lists blocks from 0 to 9": ("blocks", [0, 1, 9]),
    "lists a block twice": ("blocks", [0, 0, 1]),
    "mask.by_row is out of order": ("blocks", [1, 0, 1]),
    "mask.by_column is out of order or not of the blocks": ("blocks", [0, 1, 0]),
    "mask.by_row has offsets that do not ascend from 0 to its 3 blocks": ("offsets", [0, 4, 3]),
    "mask.by_row has offsets": ("partial", [3, 3]),
    "mask.by_row is out": ("longest_first", [0, 0]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_lists_put_together_by_hand_are_checked(message):
    mask = BlockMask.from_blocks(torch.tensor([[True, True], [False, True]]), 32, 32, 16)
    name, values = BROKEN[message]
    rows = mask.by_row._replace(**{name: torch.tensor(values, dtype=torch.int32)})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_lists(mask._replace(by_row=rows))


def test_a_block_past_the_last_key_is_never_whole():
    mask = BlockMask.from_blocks(torch.ones(1, 2, dtype=torch.bool), 16, 30, 16)
    check_lists(mask)
    rows = mask.by_row._replace(partial=mask.by_row.offsets[1:])
    columns = mask.by_column._replace(partial=mask.by_column.offsets[1:])
    with pytest.raises(ValueError, match="lists block 1 as seen whole; it reaches past the 30 keys"):
        check_lists(mask._replace(by_row=rows, by_column=columns))
