"""Captured tensors: within the budget in memory, beyond it on disk, and the same wherever they are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saqsam.ptq.tensor_store import MemoryBudget, TensorStore

CPU = torch.device("cpu")
ITEM = 4 * (6 + 12)  # bytes of one `item`


Budgets = Callable[[int], MemoryBudget]


@pytest.fixture
def budgets(tmp_path: Path) -> Iterator[Budgets]:
    """Make budgets of a limit in bytes, and close their files when the test ends."""
    with ExitStack() as stack:
        yield lambda limit: stack.enter_context(MemoryBudget(limit, tmp_path))


def item(seed: int) -> tuple[Tensor, Tensor]:
    """What all prompts share [1, 6] and what each of 4 prompts has [4, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 6, generator=generator), torch.randn(4, 3, generator=generator)


def filled(budget: MemoryBudget, count: int, first: int = 0) -> TensorStore:
    store = TensorStore(budget, "the tests")
    for seed in range(first, first + count):
        store.append(item(seed))
    return store


def assert_holds(store: TensorStore, count: int, first: int = 0) -> None:
    assert len(store) == count
    for index in range(count):
        found, expected = store.get(index, CPU), item(first + index)
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("held", range(5))
def test_what_the_budget_does_not_hold_goes_to_disk_and_comes_back_equal(
    budgets: Budgets, tmp_path: Path, held: int
) -> None:
    budget = budgets(max(held * ITEM, ITEM))
    if held == 0:
        assert budget.take(1)  # what little is taken elsewhere leaves room for no item
    store = filled(budget, 4)
    assert_holds(store, 4)
    assert budget.used <= budget.limit
    assert budget.used == (held * ITEM or 1)
    assert budget.spilled == (4 - held) * ITEM
    assert list(tmp_path.iterdir()) == []  # files without a name, which a killed process does not leave


@pytest.mark.parametrize("limit", [ITEM, 100 * ITEM])
def test_some_prompts_alone_can_be_read(budgets: Budgets, limit: int) -> None:
    budget = budgets(limit)
    store = filled(budget, 2)
    assert budget.spilled == (ITEM if limit == ITEM else 0)
    for index in range(2):
        shared, each = item(index)
        for chosen in (torch.tensor([2]), torch.tensor([0, 3]), torch.tensor([3, 1]), torch.arange(4)):
            found = store.get(index, CPU, chosen)
            # What has one entry belongs to all prompts.
            assert torch.equal(found[0], shared)
            assert torch.equal(found[1], each[chosen])


def test_what_is_read_from_disk_can_be_changed_and_read_again(budgets: Budgets) -> None:
    store = filled(budgets(ITEM), 2)
    store.get(1, CPU)[1].zero_()
    assert_holds(store, 2)


def test_stores_share_a_budget_and_give_it_back(budgets: Budgets) -> None:
    budget = budgets(3 * ITEM)
    first, second = filled(budget, 2), filled(budget, 3, first=10)
    assert budget.used == 3 * ITEM
    assert budget.spilled == 2 * ITEM
    assert_holds(second, 3, first=10)
    first.clear()
    assert len(first) == 0
    assert budget.used == ITEM
    assert budget.spilled == 2 * ITEM
    assert_holds(second, 3, first=10)
    third = filled(budget, 3, first=20)
    assert budget.used == 3 * ITEM
    assert_holds(second, 3, first=10)
    assert_holds(third, 3, first=20)
    for store in (second, third, third):
        store.clear()
    assert budget.used == budget.spilled == 0


def test_a_cleared_store_can_be_filled_again(budgets: Budgets) -> None:
    budget = budgets(ITEM)
    store = filled(budget, 3)
    store.clear()
    for seed in range(3):
        store.append(item(seed))
    assert_holds(store, 3)
    assert budget.used == ITEM


def test_an_item_larger_than_the_budget_is_refused(budgets: Budgets) -> None:
    budget = budgets(ITEM - 1)
    store = TensorStore(budget, "the targets of encoder stage 2")
    with pytest.raises(
        ValueError,
        match=r"memory of 0\.0 MiB is too little for the targets of encoder stage 2: one image needs",
    ):
        store.append(item(0))
    assert len(store) == budget.used == budget.spilled == 0
    large = torch.zeros(1).expand(3 * 2**29)  # no memory behind it
    with pytest.raises(ValueError, match=r"memory of 512\.0 MiB is too little .* needs 6\.00 GiB"):
        TensorStore(budgets(2**29), "the tests").append((large,))


def test_gradients_and_strides_are_not_kept(budgets: Budgets) -> None:
    # What is computed from it must be the same to the last bit, wherever it was.
    for limit in (96, 1000):
        budget = budgets(limit)
        store = TensorStore(budget, "the tests")
        values = torch.randn(2, 3, 4, requires_grad=True).transpose(0, 2)
        store.append((torch.zeros(1),))
        store.append((values,))
        (found,) = store.get(1, CPU)
        assert not found.requires_grad
        assert found.is_contiguous()
        assert torch.equal(found, values.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_types_survive_the_disk(budgets: Budgets, dtype: torch.dtype) -> None:
    budget = budgets(64)
    assert budget.take(64)
    store = TensorStore(budget, "the tests")
    values = torch.arange(8).to(dtype)
    store.append((values,))
    assert budget.spilled == values.numel() * values.element_size()
    assert torch.equal(store.get(0, CPU)[0], values)


@pytest.mark.parametrize("limit", [2 * ITEM, ITEM])
def test_an_empty_item_is_filled_later_in_memory_or_on_disk(budgets: Budgets, limit: int) -> None:
    budget = budgets(limit)
    store = TensorStore(budget, "the tests")
    store.append(())
    store.append(item(1))
    store.fill(0, item(0))
    assert_holds(store, 2)
    assert (budget.used, budget.spilled) == (limit, 2 * ITEM - limit)
    with pytest.raises(AssertionError, match="empty"):
        store.fill(0, item(0))
    store.clear()
    assert (budget.used, budget.spilled) == (0, 0)
