-- cancel: ends a job that waits. Where the job runs, it marks the job and tells its worker.
--
-- KEYS  1 the job (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 id  2 result  3 seconds that it is kept  4 seconds that a stream is kept  5 now  6 now in RQ's form;
--       7 seconds that RQ's record is kept where the job names none; then RQ's own result as fields and values
-- Returns 'cancelled', 'running', 'finished' where it has ended before, or 'gone'

local job, written = unpack(KEYS)
local id, result, ttl, stream_ttl, now, ended_at, kept = unpack(ARGV)

local fields = read_hash(job)
local queue = fields.origin or ''
if is_over(fields) then
  local before = redis.call('GET', written)
  return before == result and 'cancelled' or before and 'finished' or 'gone'  -- its own: sent again after a lost reply
end
if fields.status == 'started' and fields.execution and fields.worker_name then
  redis.call('HSET', job, 'cancel', '1')
  redis.call('ZADD', 'rq:wip:' .. queue, 'XX', 2 ^ 50, id .. ':' .. fields.execution)  -- for renew.lua
  redis.call('PUBLISH', 'rq:pubsub:' .. fields.worker_name, cjson.encode({ command = 'stop-job', job_id = id }))
  return 'running'
end
redis.call('LREM', 'rq:queue:' .. queue, 0, id)
redis.call('ZREM', 'rq:deferred:' .. queue, id)
conclude(id, fields, {
  result = result, ttl = ttl, turn = '', stream_ttl = stream_ttl, now = tonumber(now), ended_at = ended_at,
  status = 'canceled', kept = tonumber(kept), rq = { unpack(ARGV, 8) },
})
return 'cancelled'
