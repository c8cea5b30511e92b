"""Which steps are sampled, by one engine and by several that sample together."""

import pytest

from lynx_moe.control.sampling import Turns


@pytest.mark.parametrize("share", [1, 1 / 4, 1 / 256, 0.3])
def test_so_many_steps_are_due_as_the_share_says(share: float) -> None:
    turns = Turns()
    due = [turns.due(share) for _ in range(1024)]
    assert sum(due) == pytest.approx(1024 * share, abs=1)
    assert Turns(credit=1.0).due(share)


@pytest.mark.parametrize("ranks", [1, 2, 16])
def test_engines_that_sample_together_take_no_more_steps_than_the_one_that_wants_most(ranks: int) -> None:
    """Each has begun at another time, and its steps do not all count."""
    shares = [1 / (64 * (1 + rank % 3)) for rank in range(ranks)]
    all_turns = [Turns(credit=rank / ranks) for rank in range(ranks)]
    sampled = 0
    for step in range(6400):
        due = [
            turns.due(share) if (step + rank) % 5 or not rank else False
            for rank, (turns, share) in enumerate(zip(all_turns, shares, strict=True))
        ]
        if any(due):
            sampled += 1
            for turns, was_due in zip(all_turns, due, strict=True):
                if not was_due:
                    turns.taken()
    assert 99 <= sampled <= 102
