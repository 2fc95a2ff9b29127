-- retry: puts a failed job back on its queue as a new job, and deletes its failed result.
--
-- KEYS  1 the job's hash (rq:job:ID)
-- ARGV  1 job id  2 now, in seconds since the epoch  3 now, in RQ's text format
--       4 TTL of the job's hash, in seconds: how long it may wait  5 seconds to hold its clips
-- Returns 'retried'; 'gone' if there is no failed job with this id; or 'clips' if one of its clips has expired

local job = KEYS[1]
local id, now, created_at, job_ttl, clip_ttl = unpack(ARGV)

local fields = read_hash(job)
if fields.created_at == created_at then return 'retried' end  -- this call was sent twice
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
