-- submit: uploads a job's clips, writes the job, and puts it on its queue. If an earlier turn of its conversation has
-- not ended, the job is deferred until then. A second call with the same id changes nothing.
--
-- KEYS  1 the job's hash (rq:job:ID)  2 its result (sailq:result:ID)  3 its queue (rq:queue:NAME)
-- ARGV  1 job id  2 the queue's name  3 conversation id; the job's own id for a new conversation
--       4 at_front: 1 to put the job at the front of the queue, else 0  5 now, in seconds since the epoch
--       6 TTL of the job's hash, in seconds: how long it may wait  7 seconds to hold its clips
--       8 TTL of a conversation, in seconds  9 maximum waiting and deferred jobs of the queue
--       10 maximum total bytes of clips on the server  11 number of the job's fields (n)
--       12... n pairs of field and value; then for each clip: its digest and its bytes, or '' if it was uploaded before
-- Returns {'queued', turn}; {'known', turn} if the job exists already; {'known', 0} if only its result exists;
--       {'jobs', number of these jobs} if the queue is full; {'bytes', total bytes of clips} if the clips do not fit

local job, result, queue = unpack(KEYS)
local id, name, conversation, at_front, now, job_ttl, clip_ttl, conversation_ttl, max_jobs, max_bytes, count = unpack(ARGV)
now, clip_ttl = tonumber(now), tonumber(clip_ttl)
local first_clip = 12 + 2 * count

-- Write to the existing job or result without a change: a WAIT after this script then counts the replicas that have it.
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
  if not turns then  -- a new conversation, or one whose only turn is the job with the same id
    local begun = redis.call('EXISTS', 'rq:job:' .. conversation, 'sailq:result:' .. conversation, key .. ':turns')
    turns, head = begun > 0 and 1 or 0, conversation
    if begun > 0 and redis.call('EXISTS', 'rq:job:' .. head) == 1 then redis.call('HSET', 'rq:job:' .. head, 'followed', 1) end
  end
  head = head or id
  local status = read_fields('rq:job:' .. head, 'status')
  busy = status == 'queued' or status == 'started' or status == 'deferred' or redis.call('EXISTS', key .. ':waiting') == 1
  turn = tonumber(turns)
  redis.call('HSET', key, 'turns', turn + 1, 'head', busy and head or id)
  -- The conversation must not expire before its newest job.
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
