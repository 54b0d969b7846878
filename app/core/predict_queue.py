"""The prediction queue's two atomic steps, push and take, shared by gateways and inference workers.

State in Valkey: one list of requests for each version (`predict_queue`), the doorbell (the versions whose
list is not empty, each once) and the counter of waiting inputs. Both steps are scripts, because the three must
change together: a crash between two commands would leave a request that nobody hears of, or a counter that
refuses callers for ever. So the counter is exact by construction, and it is dropped when no version waits.

Knows nothing of replies, tasks or models. Keys are computed in the scripts: one Valkey, not Redis Cluster.
"""

from app.contracts.messages import PredictRequest, decode_request, encode

# An item is the number of its inputs as 4 digits, then the encoded request: the script need not decode it.
_DIGITS = 4

PUSH = """
-- KEYS: list of the version, doorbell, counter. ARGV: limit, version, inputs, items...
-- Returns {1, waiting before} when pushed, {0, waiting} when that would pass the limit.
local waiting = tonumber(redis.call('GET', KEYS[3]) or '0')
if waiting + tonumber(ARGV[3]) > tonumber(ARGV[1]) then return {0, waiting} end
redis.call('INCRBY', KEYS[3], ARGV[3])
redis.call('RPUSH', KEYS[1], unpack(ARGV, 4))
if not redis.call('LPOS', KEYS[2], ARGV[2]) then redis.call('RPUSH', KEYS[2], ARGV[2]) end
return {1, waiting}
"""

TAKE = """
-- KEYS: doorbell, counter. ARGV: prefix of the versions' lists, inputs to take (at least, if there are any).
-- Takes from the version at the front, which then goes to the back. Returns {versions still waiting, items}.
local version = redis.call('LMOVE', KEYS[1], KEYS[1], 'LEFT', 'RIGHT')
local items, inputs = {}, 0
if version then
  local list = ARGV[1] .. version
  while inputs < tonumber(ARGV[2]) do
    local item = redis.call('LPOP', list)
    if not item then break end
    items[#items + 1] = item
    inputs = inputs + tonumber(string.sub(item, 1, 4))
  end
  if redis.call('EXISTS', list) == 0 then redis.call('LREM', KEYS[1], 0, version) end
end
local versions = redis.call('LLEN', KEYS[1])
if versions == 0 then redis.call('DEL', KEYS[2]) else redis.call('DECRBY', KEYS[2], inputs) end
return {versions, items}
"""


def pack(request: PredictRequest) -> bytes:
    """A request (1 to 9,999 inputs) as an item of its version's list."""
    count = str(len(request.inputs)).zfill(_DIGITS)
    if not 0 < len(request.inputs) < 10**_DIGITS:
        raise ValueError(f"a request holds {count} inputs; 1 to 9999 fit: split it")
    return count.encode() + encode(request)


def unpack(item: bytes) -> PredictRequest:
    """Raises `msgspec.DecodeError` on foreign bytes."""
    return decode_request(item[_DIGITS:])
