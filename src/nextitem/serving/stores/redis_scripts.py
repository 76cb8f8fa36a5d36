"""The Lua scripts of the Redis store: each runs as one step that nothing else on the server interrupts.

Keys of a namespace, all beginning with "nextitem:NAMESPACE:".

* `version`: version of this layout.
* `last`: last position that was used; the position of an event is its place in order of arrival.
* `log`: stream with one empty entry for each position. It contains nothing of the events, because Redis only marks
  removed entries of a stream, and keeps their bytes.
* `events`: hash, position -> event as JSON [event_id, user_id, item_id, action, timestamp_ms, request_id].
* `ids`: hash, event_id -> position.
* `user:USER`: sorted set of the positions of a user's latest events, by time. Positions have 12 digits, so that events
  of one time are sorted by arrival.
* `longer`: set of the users whose older events left `user:USER`.
"""

from __future__ import annotations

# KEYS: version, last, log, events, ids, longer, then user:USER of each event.
# ARGV: version of the layout, max_events_per_user, then event_id, user_id, timestamp and JSON of each event.
APPEND = """
redis.call('SETNX', KEYS[1], ARGV[1])
local num_new = 0
for i = 0, #KEYS - 7 do
  local event_id, user_id, time, event = unpack(ARGV, 3 + 4 * i, 6 + 4 * i)
  if redis.call('HEXISTS', KEYS[5], event_id) == 0 then
    local number = redis.call('INCR', KEYS[2])
    local position = string.format('%012d', number)
    redis.call('XADD', KEYS[3], string.format('%d-0', number), '', '')
    redis.call('HSET', KEYS[4], position, event)
    redis.call('HSET', KEYS[5], event_id, position)
    redis.call('ZADD', KEYS[7 + i], time, position)
    if redis.call('ZREMRANGEBYRANK', KEYS[7 + i], 0, -tonumber(ARGV[2]) - 1) > 0 then
      redis.call('SADD', KEYS[6], user_id)
    end
    num_new = num_new + 1
  end
end
return num_new
"""

# KEYS: events, then user:USER of each user. ARGV: limit. Returns a JSON list of events for each user, latest first: one
# text is read several times as fast as one for each event.
HISTORIES = """
local histories = {}
for i = 2, #KEYS do
  local history = {}
  local positions = redis.call('ZREVRANGE', KEYS[i], 0, tonumber(ARGV[1]) - 1)
  for start = 1, #positions, 1000 do
    local stop = math.min(start + 999, #positions)
    for _, event in ipairs(redis.call('HMGET', KEYS[1], unpack(positions, start, stop))) do
      history[#history + 1] = event
    end
  end
  histories[i - 1] = '[' .. table.concat(history, ',') .. ']'
end
return histories
"""

# KEYS: log, events. ARGV: cursor, limit. Returns the last position as text, and a JSON list of events.
EVENTS_AFTER = """
local last, page = ARGV[1], {}
local first = string.format('%d-0', tonumber(ARGV[1]) + 1)
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], first, '+', 'COUNT', ARGV[2])) do
  last = string.match(entry[1], '^%d+')
  page[#page + 1] = redis.call('HGET', KEYS[2], string.format('%012d', tonumber(last)))
end
return {last, '[' .. table.concat(page, ',') .. ']'}
"""

REMOVE = """
local function remove(position, event_id)
  redis.call('HDEL', KEYS[3], event_id)
  redis.call('HDEL', KEYS[2], position)
  redis.call('XDEL', KEYS[1], string.format('%d-0', tonumber(position)))
end
"""

# KEYS: log, events, ids, longer, user:USER. ARGV: user_id.
# Removes the events of a history. Returns their number, and whether the log may have more of them.
DELETE_HISTORY = (
    REMOVE
    + """
local positions = redis.call('ZRANGE', KEYS[5], 0, -1)
for _, position in ipairs(positions) do
  local event = redis.call('HGET', KEYS[2], position)
  if event then remove(position, cjson.decode(event)[1]) end
end
redis.call('DEL', KEYS[5])
return {#positions, redis.call('SISMEMBER', KEYS[4], ARGV[1])}
"""
)

# KEYS: log, events, ids. ARGV: cursor, number of positions to look at, prefix of user:USER, "user" or "before", value.
# Removes the events of a user, or before a time, on a part of the log. Returns the next cursor ("" at the end of the
# log) and the number of removed events. Keys of histories are computed here: a cluster of servers is not supported.
SWEEP = (
    REMOVE
    + """
local cursor, num_removed = '', 0
local first = string.format('%d-0', tonumber(ARGV[1]) + 1)
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], first, '+', 'COUNT', ARGV[2])) do
  cursor = string.match(entry[1], '^%d+')
  local position = string.format('%012d', tonumber(cursor))
  local event = redis.call('HGET', KEYS[2], position)
  local fields = event and cjson.decode(event)
  if fields and ((ARGV[4] == 'user' and fields[2] == ARGV[5])
      or (ARGV[4] == 'before' and fields[5] < tonumber(ARGV[5]))) then
    remove(position, fields[1])
    redis.call('ZREM', ARGV[3] .. fields[2], position)
    num_removed = num_removed + 1
  end
end
return {cursor, num_removed}
"""
)

# KEYS: version, last. ARGV: version of the layout. Returns the version that is stored, 0 if the keys are not ours.
PREPARE = """
local version = redis.call('GET', KEYS[1])
if not version then
  if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
  redis.call('SET', KEYS[1], ARGV[1])
  version = ARGV[1]
end
return tonumber(version) or 0
"""
