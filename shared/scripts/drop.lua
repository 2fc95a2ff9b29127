-- drop: deletes a failed job and its holds on clips. Its result stays until its TTL ends.
--
-- KEYS  1 the job's hash (rq:job:ID)
-- ARGV  1 job id  2 a random text that identifies this call
-- Returns 1, or 0 if there is no failed job with this id

local id, call = unpack(ARGV)
local fields, dropped = read_hash(KEYS[1]), 'sailq:dropped:' .. id
if fields.status ~= 'failed' then
  return redis.call('GET', dropped) == call and 1 or 0  -- equal: this call was sent twice
end
redis.call('SET', dropped, call, 'EX', 60)
redis.call('ZREM', 'rq:failed:' .. (fields.origin or ''), id)
redis.call('DEL', KEYS[1], 'rq:results:' .. id)
for clip in words(fields.clips) do let_go(clip, 'job:' .. id) end
return 1
