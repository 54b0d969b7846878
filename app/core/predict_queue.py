"""The prediction queue's two atomic steps, push and take, shared by gateways and inference workers.

Requests wait in lines, one for each version and caller (an API key), so that a caller with thousands of requests
holds up nobody else's. State in Valkey: a list for each line, the doorbell (the lines that are not empty, each once, in
the order of their turns) and a map of waiting tokens, in all and by caller. Both steps are scripts, because the three
must change together: a crash between two commands would leave a request that nobody hears of, or a count that refuses
callers for ever. So the counts are exact by construction, and they are dropped when nothing waits.

The only request of a gateway stands in no line: it goes to the direct list, on which idle workers block, by a plain
command (a script takes 0.09 ms longer on cold caches). There is one a gateway at most, so it is not counted, and
whoever takes turns takes it first. Whenever a line has requests, the direct list has an empty string that wakes the
next one who blocks there: no line is overlooked.

Tokens are estimated from the length of the text: what a request costs, without a tokenizer in the gateway.
Knows nothing of replies, tasks or models. Keys are computed in the scripts: one Valkey, not Redis Cluster.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from app.contracts.messages import PredictRequest, decode_request, encode

# An item is its estimated tokens as 8 digits, then the encoded request: the scripts need not decode it.
_DIGITS = 8
BYTES_A_TOKEN = 4
"""English has 4.5 characters a word piece, Chinese one of three bytes."""

PUSH = """
-- KEYS: doorbell, map of waiting tokens, direct list. ARGV: prefix of the lines' lists, then for each call:
-- limit, line, caller, tokens, 'front' or 'back', number of items, items...
-- Returns the tokens that wait, then 1 (pushed) or 0 (refused) for each call.
local at, total, lined = 2, tonumber(redis.call('HGET', KEYS[2], '*') or '0'), false
local found = {0}
while at <= #ARGV do
  local limit, line, caller, tokens = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local items = tonumber(ARGV[at + 5])
  local admitted = true
  if total >= limit then
    -- Over the limit, each of those who wait may still have its share of it: nobody is locked out by another.
    local mine = tonumber(redis.call('HGET', KEYS[2], caller) or '0')
    admitted = mine * math.max(2, redis.call('HLEN', KEYS[2])) < limit
  end
  if admitted then
    redis.call('HINCRBY', KEYS[2], '*', tokens)
    redis.call('HINCRBY', KEYS[2], caller, tokens)
    redis.call('RPUSH', ARGV[1] .. line, unpack(ARGV, at + 6, at + 5 + items))
    if not redis.call('LPOS', KEYS[1], line) then
      redis.call(ARGV[at + 4] == 'front' and 'LPUSH' or 'RPUSH', KEYS[1], line)
    end
    total, lined = total + tokens, true
  end
  found[#found + 1] = admitted and 1 or 0
  at = at + 6 + items
end
if lined and redis.call('LINDEX', KEYS[3], -1) ~= '' then redis.call('RPUSH', KEYS[3], '') end
found[1] = total
return found
"""

TAKE = """
-- KEYS: doorbell, map of waiting tokens, direct list. ARGV: prefix of the lines' lists, tokens to take (at least, if
-- there are any), tokens of a turn. Takes what stands in the direct list, then a turn from the line
-- at the front, which then goes to the back, and so on. Returns items.
local items, taken = {}, 0
while true do
  local item = redis.call('LPOP', KEYS[3])
  if not item then break end
  if item ~= '' then items[#items + 1] = item end
end
while taken < tonumber(ARGV[2]) do
  local line = redis.call('LMOVE', KEYS[1], KEYS[1], 'LEFT', 'RIGHT')
  if not line then break end
  local list, tokens = ARGV[1] .. line, 0
  while tokens < tonumber(ARGV[3]) do
    local item = redis.call('LPOP', list)
    if not item then break end
    items[#items + 1] = item
    tokens = tokens + tonumber(string.sub(item, 1, 8))
  end
  if redis.call('EXISTS', list) == 0 then redis.call('LREM', KEYS[1], 0, line) end
  local caller = string.match(line, '|(.*)$')
  redis.call('HINCRBY', KEYS[2], '*', -tokens)
  if redis.call('HINCRBY', KEYS[2], caller, -tokens) <= 0 then redis.call('HDEL', KEYS[2], caller) end
  taken = taken + tokens
end
if redis.call('LLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
else
  redis.call('RPUSH', KEYS[3], '')  -- for another worker that is idle
end
return items
"""

TURN_TOKENS = 256
"""What a line may send before it is the next one's turn: a page, or some ten short texts."""


def line(version_id: str, caller: str) -> str:
    """The name of the line in which a caller's requests for a version wait."""
    return f"{version_id}|{caller}"


def estimate(inputs: Iterable[Any]) -> int:
    """About how many tokens these inputs are."""
    return sum(_tokens(value) for value in inputs)


def _tokens(value: Any) -> int:
    if isinstance(value, str):
        # isascii is a flag of the string, not a scan.
        size = len(value) if value.isascii() else len(value.encode(errors="replace"))
        return size // BYTES_A_TOKEN + 2
    if isinstance(value, dict):
        return sum(map(_tokens, value.values()))
    if isinstance(value, list):
        return len(value) + 2
    return 1


def pack(request: PredictRequest) -> bytes:
    """A request as an item of its line."""
    tokens = min(estimate(request.inputs), 10**_DIGITS - 1)
    return str(tokens).zfill(_DIGITS).encode() + encode(request)


class Push:
    """One call's requests, pushed all or none: of one caller for one version."""

    def __init__(self, requests: Sequence[PredictRequest], limit: int | None, *, urgent: bool) -> None:
        """`limit`: tokens that may wait before it is refused; None admits it, because it was admitted before.

        An urgent call's line goes to the front.
        """
        first = requests[0]
        items = [pack(request) for request in requests]
        waits_in, place = line(first.version_id, first.caller), "front" if urgent else "back"
        self.request_id, self.caller = first.id, first.caller
        self.again = limit is None
        self.tokens = sum(map(packed_tokens, items))
        self.items = items
        self.arguments: list[int | str | bytes] = [
            limit or 1 << 52,
            waits_in,
            first.caller,
            self.tokens,
            place,
            len(items),
            *items,
        ]
        """What `PUSH` takes for it."""


def unpack(item: bytes) -> PredictRequest:
    """Raises `msgspec.DecodeError` on foreign bytes."""
    return decode_request(item[_DIGITS:])


def packed_tokens(item: bytes) -> int:
    """The tokens that `pack` estimated."""
    return int(item[:_DIGITS])
