"""A connection whose commands do not wait for each other: answers in order, and none that never comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.core.errors import Unavailable
from app.core.valkey import Wire

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def wire_to(serve: Serve) -> AsyncIterator[Wire]:
    """A connection to a server that says OK to whatever redis-py says first and then does as `serve` does."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        wire = Wire(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        try:
            yield wire
        finally:
            await wire.stop()
            for writer in writers:
                writer.close()


async def commands(reader: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    """What a client says, until it is gone."""
    while line := await reader.readline():
        words = []
        for _ in range(int(line[1:])):
            size = int((await reader.readline())[1:])
            words.append((await reader.readexactly(size + 2))[:-2])
        yield words


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers `ECHO x` with x, `FAIL` with an error, and closes at `CLOSE`."""
    async for words in commands(reader):
        if words[0] == b"CLOSE":
            writer.close()
            return
        answer = {b"ECHO": b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1]), b"FAIL": b"-ERR broken\r\n"}
        writer.write(answer.get(words[0], b"+OK\r\n"))


def asked(wire: Wire, *command: str, seconds: float = 1.0) -> "asyncio.Future[Any]":
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    wire.ask(command, future.set_result, seconds)
    return future


async def test_answers_come_in_order_and_an_error_is_one_of_them() -> None:
    async with wire_to(echo) as wire:
        found = await asyncio.gather(*(asked(wire, "ECHO", str(k)) for k in range(300)), asked(wire, "FAIL"))
        assert found[:-1] == [str(k).encode() for k in range(300)]
        assert isinstance(found[-1], Unavailable)
        assert await asked(wire, "ECHO", "on") == b"on"


async def test_a_lost_connection_fails_what_was_asked_on_it_and_the_next_is_a_new_one() -> None:
    async with wire_to(echo) as wire:
        assert await asked(wire, "ECHO", "1") == b"1"
        lost = await asyncio.gather(asked(wire, "CLOSE"), asked(wire, "ECHO", "2"))
        assert all(isinstance(answer, Unavailable) for answer in lost)
        assert await asked(wire, "ECHO", "3") == b"3"


async def test_a_call_back_that_fails_or_asks_again_disturbs_no_other() -> None:
    again: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fails(_answer: Any) -> None:
        raise RuntimeError("a bug")

    async with wire_to(echo) as wire:
        wire.ask(("ECHO", "1"), fails)
        wire.ask(("CLOSE",), lambda _: wire.ask(("ECHO", "again"), again.set_result))
        last = asked(wire, "ECHO", "2")
        assert isinstance(await last, Unavailable)
        assert await again == b"again"


@pytest.mark.parametrize("greets", [True, False], ids=["says nothing more", "says nothing at all"])
async def test_who_gets_no_answer_hears_so_in_time(greets: bool) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for words in commands(reader):
            if greets and words[0] != b"ECHO":
                writer.write(b"+OK\r\n")

    async with wire_to(silent) as wire, asyncio.timeout(5):
        answers = await asyncio.gather(asked(wire, "ECHO", "1", seconds=0.3), asked(wire, "ECHO", "2", seconds=0.3))
        assert all(isinstance(answer, Unavailable) for answer in answers)


async def test_nobody_listens() -> None:
    async with wire_to(echo) as wire:
        pass
    nobody = Wire("redis://127.0.0.1:1/0")
    assert isinstance(await asked(nobody, "PING"), Unavailable)
    wire.ask(("PING",), lambda _: pytest.fail("it was stopped"))
    await nobody.stop()
