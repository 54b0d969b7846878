"""One batch, run by the gateway that holds it: its lines asked in order, their answers written down, its end.

The answers to a few dozen lines become a part in the store, then one transaction moves `done`: whoever goes on after a
crash repeats one part at most, and no line is twice in the output. Knows no HTTP: what asks a line is handed in.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from app.core.errors import ModelwrightError, NotFound, Unavailable
from app.core.logging import get_logger
from app.core.settings import Settings
from app.registry.batches import BatchRepository
from app.registry.session import Database
from app.registry.tables import BatchRow
from app.services.batch_lines import Answer, Line, answered, check, part_name, read, take
from app.services.batch_results import write_results
from model_store.store import Store

log = get_logger(__name__)

_PART_LINES, _PART_BYTES = 64, 8 << 20
"""A part is closed by whichever comes first: 64 lines of 1,024 embeddings each would be 300 MB."""
_QUIET_SECONDS = 0.002, 0.1
"""First and longest pause between looks at the queue: a line ahead is taken in a millisecond, a rush lasts."""
_AWAY_SECONDS = 1.0
_LONGEST_BACKOFF = 30.0
_SUSPECT = frozenset({"internal_error", "deadline_exceeded"})
"""Refusals that may be the line's own fault: asked again a few times, not until the window ends."""
_SUSPECT_TRIES = 3


class Ask(Protocol):
    """One request in the name of a key, answered as any other."""

    async def __call__(self, endpoint: str, body: bytes, key_id: str) -> Answer: ...


@dataclass
class BatchContext:
    """What the batches of one gateway share."""

    database: Database
    store: Store
    settings: Settings
    ask: Ask
    waiting: Callable[[], Awaitable[int]]
    """How much waits in the inference queue."""
    slots: asyncio.Semaphore
    """Lines in flight, over all batches."""


class BatchRun:
    """One batch, held until it ends, its fence moves on or the gateway stops."""

    def __init__(self, context: BatchContext, row: BatchRow) -> None:
        self._context, self._row, self._done = context, row, row.done
        self._told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """`cancelled`, `expired` or `lost`: why no further line is to be asked."""

    async def run(self) -> None:
        beating = asyncio.create_task(self._keep_beating())
        try:
            await self._beat()
            await self._run()
        except asyncio.CancelledError:
            with suppress(Unavailable):
                await asyncio.to_thread(self._write, BatchRepository.hand_back)
            raise
        except NotFound as exc:  # the input's bytes are gone, and no other try brings them back
            await asyncio.to_thread(
                self._fail, [{"code": exc.code, "line": None, "message": exc.message, "param": None}]
            )
        except ModelwrightError as exc:  # taken up again, here or elsewhere, when the lease has run out
            log.warning("batch_interrupted", batch_id=self._row.id, reason=str(exc))
        except Exception:
            log.exception("batch_interrupted", batch_id=self._row.id)
        finally:
            beating.cancel()

    async def _run(self) -> None:
        if self._row.status == "validating" and not await asyncio.to_thread(self._validate):
            return
        outcome = await self._until_told(self._answer_all())
        if outcome == "completed" and not await asyncio.to_thread(self._write, BatchRepository.finalize):
            outcome = "lost"
        if outcome != "lost":
            context, row = self._context, self._row
            await asyncio.to_thread(write_results, context.database, context.store, row.id, row.fence, outcome)
        log.info("batch_left", batch_id=self._row.id, outcome=outcome, done=self._done)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._context.settings.heartbeat_seconds)
            try:
                await self._beat()
            except Unavailable as exc:  # nobody else can claim it either
                log.warning("batch_beat_failed", batch_id=self._row.id, reason=str(exc))

    async def _beat(self) -> None:
        stand = await asyncio.to_thread(self._write, BatchRepository.beat, self._context.settings.lease_seconds)
        if stand is None:
            told = "lost"
        elif stand.status == "cancelling":
            told = "cancelled"
        else:
            told = "expired" if stand.expired else ""
        if told and not self._told.done():
            self._told.set_result(told)

    def _write(self, method: Callable[..., Any], *args: Any, **values: Any) -> Any:
        with self._context.database.unit_of_work() as session:
            return method(BatchRepository(session), self._row.id, self._row.fence, *args, **values)

    def _validate(self) -> bool:
        """Whether the batch goes on; one with a broken line ends here, and nothing of it is asked."""
        with self._context.store.open(f"files/{self._row.input_file}") as stream:
            total, problems = check(stream, self._row.endpoint)
        if problems:
            self._fail(problems)
            return False
        return bool(self._write(BatchRepository.begin, total))

    def _fail(self, problems: list[dict[str, Any]]) -> None:
        self._write(BatchRepository.end, "failed", errors={"object": "list", "data": problems})

    async def _until_told(self, work: Coroutine[Any, Any, None]) -> str:
        """`completed`, or why `work` was stopped."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, self._told), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return "completed"
            return self._told.result()
        finally:
            task.cancel()
            try:
                await asyncio.wait((task,))  # it writes down what it has
            finally:
                task.cancel()
                if task.done() and not task.cancelled():
                    task.exception()  # what could not be written is simply not counted

    # --- lines ---

    async def _answer_all(self) -> None:
        with self._context.store.open(f"files/{self._row.input_file}") as stream:
            lines = read(stream, self._done)
            while chunk := await asyncio.to_thread(take, lines, _PART_LINES, _PART_BYTES):
                while chunk:
                    chunk = chunk[await self._answer(chunk) :]

    async def _answer(self, lines: list[Line]) -> int:
        """Ask lines until the part is full and write it down, also when this is stopped; how many it holds."""
        asked: deque[asyncio.Task[Answer]] = deque()
        answers: list[Answer] = []
        left, size = iter(lines), 0
        try:
            while True:
                while len(asked) < self._context.settings.batch_concurrency and size < _PART_BYTES:
                    line = next(left, None)
                    if line is None:
                        break
                    asked.append(asyncio.create_task(self._ask(line)))
                if not asked:
                    break
                answers.append(await asked[0])
                asked.popleft()
                size += len(answers[-1].body)
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)
            if answers:
                await self._store(list(zip(lines, answers, strict=False)))
        return len(answers)

    async def _ask(self, line: Line) -> Answer:
        """The line's answer. What is busy or away is asked again for as long as the batch lives."""
        tries = 0
        while True:
            async with self._context.slots:
                await self._quiet()
                answer = await self._context.ask(self._row.endpoint, line.body, self._row.key_id)
            tries += 1
            if answer.retry_after is None or (tries >= _SUSPECT_TRIES and answer.code in _SUSPECT):
                return answer
            await asyncio.sleep(min(answer.retry_after * 2 ** min(tries - 1, 10), _LONGEST_BACKOFF))

    async def _quiet(self) -> None:
        """Wait until no input waits for a worker: one that waits is somebody's who is online, or a line before this."""
        pause, longest = _QUIET_SECONDS
        while True:
            try:
                if not await self._context.waiting():
                    return
                await asyncio.sleep(pause)
            except Unavailable:
                await asyncio.sleep(_AWAY_SECONDS)
            pause = min(pause * 2, longest)

    async def _store(self, pairs: list[tuple[Line, Answer]]) -> None:
        """One part, then the count. While the database is away this waits for it: the answers are worth keeping."""
        good = [answered(line, answer) for line, answer in pairs if answer.status < 400]
        bad = [answered(line, answer) for line, answer in pairs if answer.status >= 400]
        name = part_name(self._done, self._row.fence, len(pairs))
        for kind, lines in (("output", good), ("error", bad)):
            if lines:
                source, key = BytesIO(b"".join(lines)), f"batches/{self._row.id}/{kind}/{name}"
                await asyncio.to_thread(self._context.store.put, key, source, 1 << 40)
        while True:
            try:
                counts = {"completed": len(good), "failed": len(bad)}
                ours = await asyncio.to_thread(self._write, BatchRepository.advance, self._done, **counts)
                break
            except Unavailable:
                await asyncio.sleep(_AWAY_SECONDS)
        if not ours:
            raise Unavailable(f"another gateway has batch {self._row.id}")
        self._done += len(pairs)
