"""What is remembered serves for its time, is looked up again beside those who use it, and is forgotten at once."""

import asyncio
import threading
import time

import pytest

from app.core.remembered import SIZE, Remembered

FRESH, KEEP = 1.0, 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("app.core.remembered.monotonic", lambda: now[0])
    return now


async def until_idle() -> None:
    """What `get` sent to the loop's threads is done."""
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_one_use_has_it_looked_up_again_and_none_waits(clock: list[float]) -> None:
    asked: list[tuple[str, str]] = []
    going_on = threading.Event()

    def again(name: str, value: str) -> str:
        going_on.wait(10)
        asked.append((name, value))
        return "new"

    memory = Remembered(again, fresh=FRESH, keep=KEEP)
    assert memory.get("a") is None
    assert memory.look("a", lambda: "old") == "old"
    assert memory.look("a", lambda: pytest.fail("found a moment ago")) == "old"
    assert memory.get("a") == "old" and not asked
    clock[0] += FRESH
    assert [memory.get("a") for _ in range(3)] == ["old"] * 3
    going_on.set()
    await until_idle()
    assert asked == [("a", "old")]
    assert memory.get("a") == "new"
    clock[0] += KEEP
    assert memory.get("a") is None


async def test_what_is_gone_is_not_kept(clock: list[float]) -> None:
    def again(name: str, _: str) -> str:
        raise KeyError(name)

    memory = Remembered(again, fresh=FRESH, keep=KEEP)
    memory.look("a", lambda: "old")
    clock[0] += FRESH
    assert memory.get("a") == "old"
    await until_idle()
    assert memory.get("a") is None
    with pytest.raises(KeyError):
        memory.look("a", lambda: again("a", ""))


def test_what_was_read_before_it_was_forgotten_is_not_kept() -> None:
    memory: Remembered[str] = Remembered(lambda _, value: value, fresh=FRESH, keep=KEEP)

    def moved_meanwhile() -> str:
        memory.forget()
        return "old"

    assert memory.look("a", moved_meanwhile) == "old"
    assert memory.look("a", lambda: "new") == "new"


def test_a_flood_of_names_takes_no_memory() -> None:
    memory: Remembered[str] = Remembered(lambda _, value: value, fresh=FRESH, keep=KEEP)
    for number in range(SIZE + 10):
        memory.look(str(number), lambda: "x")
    assert len(memory._entries) == 10


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_ask_for_one_name_at_once_share_a_look_up(fails: bool) -> None:
    memory = Remembered[str](lambda _name, value: value, fresh=FRESH, keep=KEEP)
    asked: list[str] = []
    all_here = threading.Barrier(9)
    found: list[str] = []

    def look_up() -> str:
        asked.append("a")
        time.sleep(0.3)  # the others come meanwhile
        if fails:
            raise KeyError("a")
        return "A"

    def caller() -> None:
        all_here.wait()
        try:
            found.append(memory.look("a", look_up))
        except KeyError:
            found.append("failed")

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    all_here.wait()
    assert memory.look("b", lambda: "B") == "B", "another name waits for nobody"
    for thread in threads:
        thread.join()
    assert (asked, found) == (["a"], ["failed" if fails else "A"] * 8)
    if fails:
        assert memory.look("a", lambda: "A") == "A", "a failure is not remembered"
