"""Who may ask a server that was silent a moment ago."""

from app.registry.breaker import REST, Breaker


def test_one_caller_a_second_until_one_is_answered() -> None:
    now = 100.0
    breaker = Breaker(lambda: now)
    assert breaker.admits() and breaker.admits()
    breaker.record(answered=False)
    assert not breaker.admits()
    now += REST
    assert breaker.admits()
    assert not breaker.admits()  # one tries, the others need not wait for it
    breaker.record(answered=False)
    now += REST / 2
    assert not breaker.admits()
    now += REST / 2
    assert breaker.admits()
    breaker.record(answered=True)
    assert breaker.admits() and breaker.admits()


def test_a_caller_who_never_says_what_came_of_it_blocks_nobody_for_long() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    breaker.record(answered=False)
    now += REST
    assert breaker.admits()
    now += REST
    assert breaker.admits()
