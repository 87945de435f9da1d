import ctypes

import pytest
import torch

from autotune import registry
from autotune.guard import ZONE_BYTES, Arena, breach, fresh_memory
from autotune.verify import as_tuple


def test_fresh_memory_is_poisoned_only_within():
    with fresh_memory():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, 2).half()).isnan().all()
        assert (torch.empty(3, dtype=torch.int32) != 0).all()
        assert torch.zeros(3).sum() == 0 and torch.full((3,), 2.0).sum() == 6
    assert torch.zeros(3).sum() == 0


MAKERS = {
    "empty": lambda: torch.empty(5, 7),
    "channels last": lambda: torch.empty(2, 3, 4, 5, memory_format=torch.channels_last),
    "strided": lambda: torch.empty_strided((3, 4), (1, 6), dtype=torch.float16),
    "like": lambda: torch.empty_like(torch.ones(4, 6).mT),
    "new": lambda: torch.ones(2).new_empty(3, 3, dtype=torch.int8),
    "zeros": lambda: torch.zeros(9, dtype=torch.bfloat16),
    "nothing": lambda: torch.empty(0, 4),
    "scalar": lambda: torch.empty(()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_fresh_tensor_within_is_like_one_without(name):
    plain = MAKERS[name]()
    with fresh_memory():
        guarded = MAKERS[name]()

    def facts(tensor):
        layout = tensor.size(), tensor.stride(), tensor.is_contiguous(), tensor.data_ptr() % 64
        return *layout, tensor.dtype, tensor.device, tensor.requires_grad

    assert facts(guarded) == facts(plain)


def test_a_tensor_given_to_be_filled_stays_that_tensor():
    mine = torch.ones(3)
    with fresh_memory() as blocks:
        assert torch.zeros(3, out=mine) is mine
        assert torch.empty(3, out=mine).data_ptr() == mine.data_ptr()
    assert not blocks


@pytest.mark.parametrize("name", registry.entries())
def test_guarded_arguments_make_the_same_problem_and_key(name):
    kernel = registry.load(name).kernel
    for text in kernel.problems:
        args = kernel.inputs(kernel.parse(text), 0, "cpu")
        guarded = Arena(args).load(args)
        assert kernel.problem(*guarded) == kernel.problem(*args)
        assert kernel.key(*guarded) == kernel.key(*args)
        both = zip(as_tuple(kernel.reference(*guarded)), as_tuple(kernel.reference(*args)), strict=True)
        assert all(torch.equal(one, other) for one, other in both)


def poke(address, value=0):
    ctypes.c_uint8.from_address(address).value = value


@pytest.mark.parametrize(("offset", "where"), [(-1, "1 bytes before"), (-ZONE_BYTES, f"{ZONE_BYTES} bytes before")])
def test_a_byte_before_is_found(offset, where):
    with fresh_memory() as blocks:
        made = torch.empty(3, 5)
    assert breach(blocks) is None
    poke(made.data_ptr() + offset)
    assert breach(blocks) == f"it wrote outside its output, {where} its (3, 5) torch.float32 tensor"


@pytest.mark.parametrize("past", [0, 17, ZONE_BYTES - 1])
def test_a_byte_after_is_found(past):
    args = (torch.ones(3), torch.ones(7, dtype=torch.int8))
    arena = Arena(args)
    _, second = arena.load(args)
    assert arena.fault() is None
    poke(second.data_ptr() + 7 + past)
    assert arena.fault() == f"it wrote outside its output, {past + 1} bytes after input tensor number 1"


def test_a_value_copied_from_one_zone_to_another_is_found():
    args = (torch.ones(4),)
    arena = Arena(args)
    (source,) = arena.load(args)
    with fresh_memory() as blocks:
        made = torch.empty(4)
    ctypes.memmove(made.data_ptr(), source.data_ptr(), 24)  # 8 bytes too many on both sides
    assert "1 bytes after" in breach(blocks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_read_from_a_zone_is_nan(dtype):
    (guarded,) = Arena((torch.ones(4, dtype=dtype),)).load((torch.ones(4, dtype=dtype),))
    assert guarded.as_strided((8,), (1,), guarded.storage_offset() + 4).isnan().all()


def test_a_changed_input_is_told_by_the_number_of_its_first_tensor():
    both = torch.arange(8.0)
    args = (both[:4], both[4:], torch.full((2,), float("nan")))
    arena = Arena(args)
    first, second, third = arena.load(args)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert arena.fault() is None  # NaN is equal to itself here
    third[0] = 1.0
    assert arena.fault() == "it changed its input tensor number 2"
    arena.load(args)
    assert arena.fault() is None
    second[0] = -1.0
    assert arena.fault() == "it changed its input tensor number 0"
    assert both[4] == 4.0


def test_other_arguments_come_to_the_same_addresses():
    one, other = (torch.zeros(6), 3), (torch.ones(9), 4)
    arena = Arena(one, other)
    (a, three), (b, four) = arena.load(one), arena.load(other)
    assert a.data_ptr() == b.data_ptr() and (three, four) == (3, 4)
    assert b.tolist() == [1.0] * 9 and arena.fault() is None
