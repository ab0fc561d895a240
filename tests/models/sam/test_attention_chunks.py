"""Chunks of an encoder attention cover it once, and fit."""

import pytest
import torch

from saqsam.models.attention_chunks import MAX_CHUNK_LOGITS, max_chunk_logits, split_attention


@pytest.mark.parametrize(
    ("heads", "height", "width", "most"),
    [(3, 4, 5, 2**20), (3, 4, 5, 400), (3, 4, 5, 1000), (3, 4, 5, 200), (3, 4, 5, 1), (1, 7, 3, 130)],
)
def test_chunks_cover_an_attention_once_and_fit(heads: int, height: int, width: int, most: int) -> None:
    tokens = height * width
    covered = torch.zeros(heads, tokens, dtype=torch.int64)
    chunks = split_attention(heads, height, width, most)
    for chunk in chunks:
        size = covered[chunk].numel() * tokens
        assert size <= max(most, width * tokens)  # at least one row of the grid
        covered[chunk] += 1
    assert (covered == 1).all()
    assert len(chunks) > 1 or most >= heads * tokens**2
    # In the order of memory, so that a random draw per chunk does not depend on how the output is put together.
    starts = [(heads.start, queries.start or 0) for heads, queries in chunks]
    assert starts == sorted(starts)


def test_other_devices_take_the_chunks_of_gpus() -> None:
    assert max_chunk_logits(torch.device("meta"), is_fused=False) == MAX_CHUNK_LOGITS["cuda"]


def test_fused_attention_computes_all_heads_at_once_on_a_gpu() -> None:
    most = max_chunk_logits(torch.device("cuda"), is_fused=True)
    assert len(split_attention(16, 64, 64, most)) == 1
    assert max_chunk_logits(torch.device("cpu"), is_fused=True) == MAX_CHUNK_LOGITS["cpu"]
