from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, TCPStore

from spatext.tools import torchrun
from spatext.tools.torchrun import Launch, answer_all, join

NUM_RANKS = 3


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True)


def attempt(server: TCPStore, number: int) -> list[Launch]:
    """What each rank comes to know; a client each, as processes have."""

    def one(rank: int) -> Launch:
        client = TCPStore("127.0.0.1", server.port, is_master=False)
        return join(PrefixStore("test", client), rank, NUM_RANKS, f"stamp-{number}-{rank}")

    with ThreadPoolExecutor(NUM_RANKS) as pool:
        return list(pool.map(one, range(NUM_RANKS)))


def test_all_ranks_of_all_attempts_have_the_first_stamp(server: TCPStore) -> None:
    for number in range(3):
        assert attempt(server, number) == [Launch("stamp-0-0", number)] * NUM_RANKS


def test_questions_of_an_attempt_that_broke_off_are_not_taken_for_new_ones(
    server: TCPStore,
) -> None:
    store = PrefixStore("test", server)
    store.set("ask/1", "one who has gone")
    assert attempt(server, 0) == [Launch("stamp-0-0", 0)] * NUM_RANKS


def test_a_rank_that_does_not_come(server: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "TIMEOUT", timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match="torchrun: rank 1 did not start within"):
        answer_all(server, 2, Launch("a", 0))
