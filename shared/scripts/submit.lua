-- submit: writes clips and a job, and puts the job on its queue, or behind the earlier turns of its conversation.
-- Sent again with the same id, it changes nothing.
--
-- KEYS  1 the job (rq:job:ID)  2 its result (sailq:result:ID)  3 its queue (rq:queue:NAME)
-- ARGV  1 id  2 the queue's name  3 conversation: the job's id begins a new one  4 at_front: 1 or 0
--       5 now  6 seconds that the job waits  7 seconds that its clips are kept  8 seconds that a conversation is kept
--       9 most jobs that may wait  10 most bytes of clips
--       11 how many fields follow; then the job's fields and values; then its clips, each digest and bytes
--       ('' where it was uploaded before) in turn
-- Returns {'queued', turn}, {'known', turn} where the job was there already, or, where there is no room, {'jobs', how many
-- wait} or {'bytes', how many the clips take}

local job, result, queue = unpack(KEYS)
local id, name, conversation, at_front, now, job_ttl, clip_ttl, conversation_ttl, max_jobs, max_bytes, count = unpack(ARGV)
now, clip_ttl = tonumber(now), tonumber(clip_ttl)
local first_clip = 12 + 2 * count

-- What is there already is written once more, so that the WAIT that may follow counts the replicas that have it.
if redis.call('EXISTS', job, result) > 0 then
  if redis.call('EXISTS', job) == 1 then return { 'known', redis.call('HINCRBY', job, 'turn', 0) } end
  redis.call('APPEND', result, '')
  return { 'known', 0 }
end

local deferred = 'rq:deferred:' .. name
local waiting = redis.call('LLEN', queue) + (try('ZCARD', deferred) or 0)
if waiting >= tonumber(max_jobs) then return { 'jobs', waiting } end
local taken = find_room(first_clip, max_bytes)
if taken then return { 'bytes', taken } end
for i = first_clip, #ARGV, 2 do hold(ARGV[i], 'job:' .. id, ARGV[i + 1] ~= '' and ARGV[i + 1], now, clip_ttl) end

local turn, busy = 0, false
if conversation ~= id then
  local key = 'sailq:conversation:' .. conversation
  local turns, head = unpack(redis.call('HMGET', key, 'turns', 'head'))
  if not turns then  -- it is new, or was begun by the one job that it is named after
    local begun = redis.call('EXISTS', 'rq:job:' .. conversation, 'sailq:result:' .. conversation, key .. ':turns')
    turns, head = begun > 0 and 1 or 0, conversation
    if begun > 0 and redis.call('EXISTS', 'rq:job:' .. head) == 1 then redis.call('HSET', 'rq:job:' .. head, 'followed', 1) end
  end
  head = head or id
  local status = read_fields('rq:job:' .. head, 'status')
  busy = status == 'queued' or status == 'started' or status == 'deferred' or redis.call('EXISTS', key .. ':waiting') == 1
  turn = tonumber(turns)
  redis.call('HSET', key, 'turns', turn + 1, 'head', busy and head or id)
  -- The conversation outlives each of its jobs.
  for _, kept in ipairs({ key, key .. ':turns' }) do redis.call('EXPIRE', kept, conversation_ttl + job_ttl) end
  keep_clips(conversation, now, clip_ttl)
  try('ZADD', 'sailq:conversations', now, conversation)
  if busy then
    redis.call('RPUSH', key .. ':waiting', id)
    redis.call('EXPIRE', key .. ':waiting', conversation_ttl + job_ttl)
  end
end

redis.call('HSET', job, 'turn', turn, 'status', busy and 'deferred' or 'queued', unpack(ARGV, 12, 11 + 2 * count))
redis.call('EXPIRE', job, job_ttl)
if busy then try('ZADD', deferred, now, id) else push(name, id, at_front == '1') end
return { 'queued', turn }
