-- drop: deletes a failed job and lets go of its clips. Its result expires by itself.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 id  2 a random text of this call
-- Returns 1, or 0 where it is not a failed one

local id, call = unpack(ARGV)
local fields, dropped = read_hash(KEYS[1]), 'sailq:dropped:' .. id
if fields.status ~= 'failed' then
  return redis.call('GET', dropped) == call and 1 or 0  -- sent again after a lost reply
end
redis.call('SET', dropped, call, 'EX', 60)
redis.call('ZREM', 'rq:failed:' .. (fields.origin or ''), id)
redis.call('DEL', KEYS[1], 'rq:results:' .. id)
for clip in words(fields.clips) do let_go(clip, 'job:' .. id) end
return 1
