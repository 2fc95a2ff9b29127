-- cancel: ends a waiting job. If the job is running, marks it as cancelled and sends its worker the command to stop it.
--
-- KEYS  1 the job's hash (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 job id  2 the encoded result to write  3 TTL of the result, in seconds  4 TTL of the text stream, in seconds
--       5 now, in seconds since the epoch  6 now, in RQ's text format  7 TTL of the job's hash if the job sets none
--       8... RQ's result: fields and values of an entry of rq:results:ID
-- Returns 'cancelled'; 'running'; 'finished' if the job has ended with another result; or 'gone' if it has ended or
--       does not exist, and has no result

local job, written = unpack(KEYS)
local id, result, ttl, stream_ttl, now, ended_at, kept = unpack(ARGV)

local fields = read_hash(job)
local queue = fields.origin or ''
if is_over(fields) then
  local before = redis.call('GET', written)
  return before == result and 'cancelled' or before and 'finished' or 'gone'  -- equal: this call was sent twice
end
if fields.status == 'started' and fields.execution and fields.worker_name then
  redis.call('HSET', job, 'cancel', '1')
  redis.call('ZADD', 'rq:wip:' .. queue, 'XX', 2 ^ 50, id .. ':' .. fields.execution)  -- renew.lua reports it as ended
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
