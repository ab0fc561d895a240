"""Packing: nothing is lost, nothing is padded, and the bytes are those of the description."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saqsam.quant.packing import pack_codes, packed_size, unpack_codes

examples = settings(max_examples=60, derandomize=True)


@examples
@given(data=st.data(), bits=st.integers(2, 8))
def test_unpack_undoes_pack(data: st.DataObject, bits: int) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
    codes = torch.from_numpy(
        np.asarray(data.draw(hnp.arrays(np.uint8, shapes, elements=st.integers(0, 2**bits - 1))))
    )
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(codes.numel(), bits),)
    assert torch.equal(unpack_codes(packed, bits, codes.numel()).reshape(codes.shape), codes)


@examples
@given(count=st.integers(1, 40), bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_bytes_are_those_of_a_little_endian_bit_stream(count: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    expected = stream.to_bytes((count * bits + 7) // 8, "little")
    assert bytes(pack_codes(torch.from_numpy(codes), bits).tolist()) == expected


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_byte_is_padding(bits: int) -> None:
    assert packed_size(8, bits) == bits
    assert packed_size(8001, bits) == 1000 * bits + 1
    assert packed_size(0, bits) == 0
    # Eight codes of ones fill all bits of their bytes.
    assert pack_codes(torch.full((16,), 2**bits - 1, dtype=torch.uint8), bits).eq(255).all()
    # Unused bits of the last byte are zero.
    last = int(pack_codes(torch.full((1,), 2**bits - 1, dtype=torch.uint8), bits)[-1])
    assert last == 2**bits - 1


def test_the_walk_through_of_the_description() -> None:
    c0, c1, c2, c3, c4, c5, c6, c7 = codes = [5, 3, 6, 1, 7, 2, 4, 5]
    assert pack_codes(torch.tensor(codes, dtype=torch.uint8), 3).tolist() == [
        (c2 & 0b11) << 6 | c1 << 3 | c0,
        (c5 & 0b1) << 7 | c4 << 4 | c3 << 1 | c2 >> 2,
        c7 << 5 | c6 << 2 | c5 >> 1,
    ]
    assert pack_codes(torch.tensor([0xA, 0xB, 0xC], dtype=torch.uint8), 4).tolist() == [0xBA, 0x0C]


def test_memory_layout_of_the_codes_does_not_matter() -> None:
    codes = torch.arange(24, dtype=torch.uint8).reshape(4, 6) % 8
    assert torch.equal(pack_codes(codes.T, 3), pack_codes(codes.T.contiguous(), 3))


def test_packing_leaves_the_codes_alone() -> None:
    for bits in (4, 8):
        codes = torch.tensor([1, 2, 3], dtype=torch.uint8)
        packed = pack_codes(codes, bits)
        packed += 1
        assert codes.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", range(2, 8))
def test_codes_that_do_not_fit_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"a code of {2**bits} does not fit into {bits} bits"):
        pack_codes(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32, torch.bool])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="codes must be uint8"):
        pack_codes(torch.zeros(4, dtype=dtype), 4)
    with pytest.raises(ValueError, match="need a vector of 2 bytes"):
        unpack_codes(torch.zeros(2, dtype=dtype), 4, 4)


@pytest.mark.parametrize(("size", "bits", "count"), [(2, 4, 5), (3, 4, 4), (3, 3, 9), (4, 8, 5), (0, 2, 1)])
def test_wrong_sizes_are_refused(size: int, bits: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} codes of {bits} bits need a vector"):
        unpack_codes(torch.zeros(size, dtype=torch.uint8), bits, count)


def test_more_than_one_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        unpack_codes(torch.zeros(2, 2, dtype=torch.uint8), 4, 8)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="from 2 to 8"):
        pack_codes(torch.zeros(4, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match="from 2 to 8"):
        unpack_codes(torch.zeros(4, dtype=torch.uint8), bits, 4)
