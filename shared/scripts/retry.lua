-- retry: puts a failed job back on its queue as if it were new, with nothing left of its failure.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 id  2 now  3 now in RQ's form  4 seconds that the job waits  5 seconds that its clips are kept
-- Returns 'retried', 'gone' where it is not a failed one, or 'clips' where its clips have expired

local job = KEYS[1]
local id, now, created_at, job_ttl, clip_ttl = unpack(ARGV)

local fields = read_hash(job)
if fields.created_at == created_at then return 'retried' end  -- sent again after a lost reply
if fields.status ~= 'failed' then return 'gone' end
for clip in words(fields.clips) do
  if redis.call('EXISTS', 'sailq:clip:' .. clip) == 0 then return 'clips' end
end
for clip in words(fields.clips) do hold(clip, 'job:' .. id, false, tonumber(now), tonumber(clip_ttl)) end
forget_end(id, fields.origin)
redis.call('HSET', job, 'status', 'queued', 'created_at', created_at, 'enqueued_at', created_at)
redis.call('EXPIRE', job, job_ttl)
push(fields.origin, id, fields.enqueue_at_front == '1')
return 'retried'
