"""Processes that share a run: what they exchange, and how all end when one fails."""

import pytest

from saqsam.utils import ranks
from support.torchrun import torchrun

SETUP = """
import torch
from saqsam.utils import ranks
from saqsam.utils.errors import PeerError
"""


def test_a_process_alone_exchanges_nothing() -> None:
    assert (ranks.rank(), ranks.world_size(), ranks.launched_rank()) == (0, 1, 0)
    assert list(ranks.share(3)) == [0, 1, 2]
    assert ranks.gather("a") == ranks.all_gather("a") == ["a"]
    assert ranks.on_first(lambda: "b") == "b"
    with pytest.raises(ValueError, match="mine"), ranks.agreement():
        raise ValueError("mine")


@pytest.mark.slow
def test_ranks_exchange_values() -> None:
    code = SETUP + (
        "with ranks.process_group():\n"
        "    own = ranks.rank()\n"
        "    assert list(ranks.share(5)) == ([0, 2, 4], [1, 3])[own]\n"
        "    assert ranks.all_gather(own * 10) == [0, 10]\n"
        "    assert ranks.gather(own) == ([0, 1], None)[own]\n"
        "    assert ranks.on_first(lambda: f'of {own}') == 'of 0'\n"
        "    sent = (torch.arange(6.).reshape(2, 3).T, torch.zeros(0, 2), torch.tensor(True))\n"
        "    if own:\n"
        "        ranks.send_to_first(sent)\n"
        "        ranks.send_to_first(())\n"
        "    else:\n"
        "        for a, b in zip(ranks.receive(1), sent, strict=True):\n"
        "            assert torch.equal(a, b) and a.dtype == b.dtype\n"
        "        assert ranks.receive(1) == ()\n"
    )
    assert torchrun(2, code=code) == [(0, "", "")] * 2


@pytest.mark.slow
def test_an_error_of_one_rank_ends_all() -> None:
    code = SETUP + (
        "class Odd(Exception):\n"
        "    def __init__(self, a, b): super().__init__(a)\n"
        "with ranks.process_group():\n"
        "    own = ranks.rank()\n"
        "    with ranks.agreement(): pass\n"
        "    for failing in ({0}, {1}, {2}, {1, 2}, {0, 1, 2}):\n"
        "        for make in (ValueError, lambda text: Odd(text, 1)):\n"
        "            try:\n"
        "                with ranks.agreement():\n"
        "                    if own in failing: raise make(f'rank {own}')\n"
        "            except PeerError as error:\n"
        "                assert own > 0 and f'rank {min(failing)} has failed' in str(error), error\n"
        "            except (ValueError, Odd, RuntimeError) as error:\n"
        "                assert own == 0 and f'rank {min(failing)}' in str(error), error\n"
        "            else:\n"
        "                raise SystemExit('no error')\n"
        "    assert ranks.all_gather(own) == [0, 1, 2]\n"
    )
    assert torchrun(3, code=code) == [(0, "", "")] * 3


@pytest.mark.slow
def test_the_end_of_one_process_ends_the_wait_of_the_others() -> None:
    code = SETUP + (
        "import os\n"
        "with ranks.process_group():\n"
        "    ranks.all_gather(0)\n"
        "    if ranks.rank(): os._exit(3)\n"
        "    try:\n"
        "        ranks.all_gather(0)\n"
        "    except PeerError as error:\n"
        "        print(error)\n"
    )
    (first, text, _), (second, *_) = torchrun(2, code=code)
    assert (first, second) == (0, 3)
    assert text == "another process of this run has ended: see its own message\n"
