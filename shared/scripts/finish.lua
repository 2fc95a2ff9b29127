-- finish: ends a job and writes its result (see `conclude` in endings.lua), if this attempt still owns the job.
--
-- KEYS  1 the job's hash (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 job id  2 execution: id of the attempt; '' for a job that no worker has claimed
--       3 the encoded result to write  4 TTL of the result, in seconds
--       5 the encoded turn to add to the conversation, or ''  6 TTL of a conversation, in seconds
--       7 TTL of the text stream, in seconds  8 status: finished, failed or canceled
--       9 TTL of the job's hash if the job sets none  10 now, in seconds since the epoch  11 now, in RQ's text format
--       12 maximum entries of the stream of ended jobs (sailq:results); 0 to add none
--       13 maximum total bytes of clips on the server  14... RQ's result: fields and values of an entry of rq:results:ID
-- Returns 1 if this result is written, or 0 if another attempt owns the job or the job has ended

local job, written = unpack(KEYS)
local id, execution, result, ttl, turn, conversation_ttl, stream_ttl, status, kept, now, ended_at, ended, max_bytes = unpack(ARGV)

local fields = read_hash(job)
-- The status is 'queued' if a backend enqueued a new job with this id while the attempt ran.
local lost = execution ~= '' and (fields.execution ~= execution or fields.status == 'queued')
if lost or execution == '' and is_over(fields) then
  if redis.call('GET', written) ~= result then return 0 end
  redis.call('APPEND', written, '')  -- sent twice: writes again, because WAIT counts replicas of the last write
  return 1
end
conclude(id, fields, {
  result = result, ttl = ttl, turn = turn, conversation_ttl = tonumber(conversation_ttl), stream_ttl = stream_ttl,
  status = status, kept = tonumber(kept), now = tonumber(now), ended_at = ended_at, rq = { unpack(ARGV, 14) },
  ended = ended, max_bytes = tonumber(max_bytes),
  gone = execution ~= '' and end_execution(id, execution, fields.origin),
})
return 1
