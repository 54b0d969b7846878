"""Sends a gateway's requests to the prediction queue: one command at a time, with all that was posted during the last.

Who is told of a failure, and who still waits for an answer, is asked of the injected functions. Knows no reply.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from app.contracts.queues import PREDICT_DIRECT, PREDICT_DOORBELL, PREDICT_WAITING, predict_queue
from app.core.admission import Admission
from app.core.errors import ModelwrightError, Unavailable
from app.core.predict_queue import PUSH, Push
from app.core.valkey import Wire

PUSH_AGAIN = 0.1
"""Seconds until what is sent again is tried once more."""
NO_HURRY, COLLECT = 2048, 0.005
"""While so many tokens are unanswered, pushes are collected for so many seconds: the workers have enough for 0.2 s."""
PUSHES = 256
"""Calls in one command: a large one holds up nobody else's for longer than 2 ms."""

_KEYS = (PREDICT_DOORBELL, PREDICT_WAITING, PREDICT_DIRECT)


class Pusher:
    """Of one event loop."""

    def __init__(
        self,
        redis_url: str,
        admission: Admission,
        waits: Callable[[Push], bool],
        fail: Callable[[Push, ModelwrightError], None],
    ) -> None:
        self._wire, self._admission, self._waits, self._fail = Wire(redis_url), admission, waits, fail
        self._outbox: list[Push] = []
        """What goes with the next command."""
        self._pushing = False

    def post(self, push: Push) -> None:
        """Push it now, or, during a push, with all that is posted until that is done, in one command."""
        self._outbox.append(push)
        if not self._pushing:
            self._pushing = True
            self._go_on()

    async def stop(self) -> None:
        """Send nothing more."""
        await self._wire.stop()

    def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        if self._admission.total > NO_HURRY:
            loop.call_later(COLLECT, self._push)
        else:
            loop.call_soon(self._push)  # with what else came in this turn of the loop

    def _push(self) -> None:
        """In one atomic step; a call that is refused, or whose push failed, hears it."""
        # Nobody waits any more for a call that has expired or that its client has given up.
        waiting = [push for push in self._outbox if self._waits(push)]
        posted, self._outbox = waiting[:PUSHES], waiting[PUSHES:]
        if not posted:
            self._pushing = False
        elif len(posted) == 1 and self._alone(posted[0]):
            self._wire.ask(("RPUSH", PREDICT_DIRECT, *posted[0].items), partial(self._handed, posted))
        else:
            arguments = [argument for push in posted for argument in push.arguments]
            # EVAL, not EVALSHA: Valkey caches by hash all the same; a restarted server needs no reload.
            command = ("EVAL", PUSH, len(_KEYS), *_KEYS, predict_queue(""), *arguments)
            self._wire.ask(command, partial(self._pushed, posted))

    def _alone(self, push: Push) -> bool:
        """Whether nothing else of this gateway is unanswered."""
        return len(push.items) == 1 and self._admission.total == push.tokens and not push.again

    def _handed(self, posted: list[Push], answer: int | Unavailable) -> None:
        self._pushed(posted, answer if isinstance(answer, Unavailable) else [0, 1])

    def _pushed(self, posted: list[Push], answer: list[int] | Unavailable) -> None:
        try:
            if isinstance(answer, Unavailable):
                for push in posted:
                    if push.again:  # the server may be about to come back
                        asyncio.get_running_loop().call_later(PUSH_AGAIN, self.post, push)
                    else:
                        self._fail(push, answer)
                return
            for push, admitted in zip(posted, answer[1:], strict=True):
                if not admitted:
                    self._fail(push, self._admission.refused(push.caller, answer[0]))
        finally:
            self._pushing = bool(self._outbox)
            if self._outbox:
                self._go_on()
