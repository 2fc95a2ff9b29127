-- drop: deletes a failed job and lets go of its clips. Its result expires by itself.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 id
-- Returns 1, or 0 where it is not a failed one

local id = ARGV[1]
local fields = read_hash(KEYS[1])
if fields.status ~= 'failed' then return 0 end
redis.call('ZREM', 'rq:failed:' .. fields.origin, id)
redis.call('DEL', KEYS[1], 'rq:results:' .. id)
for clip in words(fields.clips) do let_go(clip, 'job:' .. id) end
return 1
