-- finish: ends a job with an attempt's result (see `conclude`): all of it, or nothing.
--
-- KEYS  1 the job (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 id  2 execution: '' for a job that nobody has claimed  3 result  4 seconds that it is kept  5 turn: '' for none
--       6 seconds that a conversation is kept  7 seconds that a stream is kept  8 status: finished, failed or
--       canceled  9 seconds that RQ's record is kept where the job names none  10 now  11 now in RQ's form  12 most
--       entries of the stream of all results, or 0; then RQ's own result as fields and values
-- Returns 1 where this result is written, or 0 where the job has another attempt by now, or none

local job, written = unpack(KEYS)
local id, execution, result, ttl, turn, conversation_ttl, stream_ttl, status, kept, now, ended_at, all_results = unpack(ARGV)

local fields = read_hash(job)
-- 'queued': a backend has enqueued a job with this id anew while this attempt ran.
local lost = execution ~= '' and (fields.execution ~= execution or fields.status == 'queued')
if lost or execution == '' and is_over(fields) then
  if redis.call('GET', written) ~= result then return 0 end
  redis.call('APPEND', written, '')  -- sent again, after a lost reply or for WAIT, which counts from its connection's last write
  return 1
end
conclude(id, fields, {
  result = result, ttl = ttl, turn = turn, conversation_ttl = tonumber(conversation_ttl), stream_ttl = stream_ttl,
  status = status, kept = tonumber(kept), now = tonumber(now), ended_at = ended_at, rq = { unpack(ARGV, 13) },
  gone = execution ~= '' and end_execution(id, execution, fields.origin),
})
if all_results ~= '0' then
  redis.call('XADD', 'sailq:results', 'MAXLEN', '~', all_results, '*', 'job', id, 'result', result)
end
return 1
