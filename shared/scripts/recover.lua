-- recover: puts the jobs of dead workers back on their queues, lists the jobs that the calling worker must end,
-- completes changes that RQ's tools left incomplete, and deletes records that nobody needs (the sweep). It looks at the
-- jobs of all workers. Of all workers' calls, only one in ARGV[2] milliseconds does this; the others return at once.
--
-- KEYS  the worker's queues (rq:queue:NAME)
-- ARGV  1 worker's name  2 minimum milliseconds between two runs  3 length of a lease, in seconds
--       4 maximum attempts of a job  5 seconds between two sweeps  6 TTL of a conversation, in seconds
-- Returns {suspended, back, given_up, cancelled, refused}; all but the first are flat lists
--       suspended: 1 if `rq suspend` has told workers to take no jobs.
--       back: ids of the jobs that were put back on their queues.
--       given_up: id and execution of each job whose attempts are used up. Its lease is extended, and the calling
--       worker must write its result.
--       cancelled: ids of jobs that RQ's `cancel` ended without a result. The calling worker must write their results.
--       refused: id and cause of each job that uses a feature of RQ that sailq does not support ('scheduled' or
--       'rate_limit'). The calling worker must write its result

local worker, pause, lease, max_attempts, sweep_seconds, conversation_ttl = unpack(ARGV)
local back, given_up, cancelled, refused = {}, {}, {}, {}
local suspended = redis.call('EXISTS', 'rq:suspended')
if not redis.call('SET', 'sailq:looked', worker, 'NX', 'PX', pause) then
  return { suspended, back, given_up, cancelled, refused }
end
local now = seconds()
local FEW = 20  -- maximum of each kind, to keep this run and the writes that follow it short

-- If no worker has run this for most of a lease, perhaps none could reach the server and renew its leases. Extend all
-- leases that have expired or soon will, so that live workers can renew them.
local last = tonumber(redis.call('SET', 'sailq:last-look', now, 'GET') or 0)
if last > 0 and now - last > 0.75 * lease then
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', 'sailq:leases', 0, now + lease / 2)) do
    redis.call('ZADD', 'sailq:leases', now + lease / 2, entry)
  end
end

for _, entry in ipairs(redis.call('ZRANGEBYSCORE', 'sailq:leases', 0, now, 'LIMIT', 0, 5 * FEW)) do
  local id, execution = string.match(entry, '^(.*):(%w+)$')
  local fields = id and read_hash('rq:job:' .. id) or {}
  if fields.execution ~= execution or fields.status ~= 'started' or not fields.origin then
    redis.call('ZREM', 'sailq:leases', entry)
    redis.call('DEL', 'rq:execution:' .. entry)
    if id then try('ZREM', 'rq:executions:' .. id, execution) end
  elseif whole(fields.spent) >= tonumber(max_attempts) then
    if #given_up < FEW then
      redis.call('ZADD', 'sailq:leases', now + lease, entry)
      given_up[#given_up + 1] = id
      given_up[#given_up + 1] = execution
    end
  else
    put_back(id, fields, nil, true)
    back[#back + 1] = id
  end
end

local function alive(id)
  local status = read_fields('rq:job:' .. id, 'status')
  return status == 'queued' or status == 'started' or status == 'deferred'
end

-- Queues a deferred turn, or a deferred job of RQ's, if the job that it waits for ended without
-- queueing it.
local function look_at_deferred(queue, id)
  local job = 'rq:job:' .. id
  local status, conversation = read_fields(job, 'status', 'conversation')
  if status ~= 'deferred' then
    redis.call('ZREM', 'rq:deferred:' .. queue, id)
  elseif conversation then
    local key = 'sailq:conversation:' .. conversation
    local head = read_fields(key, 'head')
    if not head or not alive(head) then
      if not try('LPOS', key .. ':waiting', id) and not try('RPUSH', key .. ':waiting', id) then
        redis.call('DEL', key .. ':waiting')  -- the key is not a list
        redis.call('RPUSH', key .. ':waiting', id)
      end
      release_turn(conversation)
    end
  else
    for _, parent in ipairs(try('SMEMBERS', 'rq:job::' .. id .. ':dependencies') or {}) do
      local of_parent = read_fields('rq:job:' .. parent, 'status') or 'finished'
      if of_parent == 'finished' or of_parent == 'failed' then
        try('SADD', 'rq:job:' .. parent .. ':dependents', id)
        release_dependents(parent, of_parent)
      end
    end
  end
end

-- Adds a job to `refused`. It stays in the registry until it has its result, so if this worker dies first, a later run
-- lists it again.
local function refuse(registry, id, what)
  if not read_fields('rq:job:' .. id, 'status') then
    redis.call('ZREM', registry, id)
  else
    refused[#refused + 1] = id
    refused[#refused + 1] = what
  end
end

local sweep = math.floor(now / sweep_seconds) ~= math.floor(last / sweep_seconds)
if sweep then redis.call('SADD', 'rq:queues', unpack(KEYS)) end
-- Look at the queues of all models: only one call in a while gets here, and it may come from a worker of any model.
for _, key in ipairs(redis.call('SMEMBERS', 'rq:queues')) do
  local name = string.match(key, '^rq:queue:(sailq%d+%-.*)$')
  if name and sweep then
    for _, ended in ipairs({ 'finished', 'failed' }) do
      try('ZREMRANGEBYSCORE', 'rq:' .. ended .. ':' .. name, 0, now)
    end
    for _, entry in ipairs(try('ZRANGE', 'rq:wip:' .. name, 0, 50 * FEW) or {}) do
      if not redis.call('ZSCORE', 'sailq:leases', entry) then
        if is_running(string.match(entry, '^(.*):(%w+)$')) then  -- its lease was deleted with its key
          redis.call('ZADD', 'sailq:leases', now + lease, entry)
        else
          redis.call('ZREM', 'rq:wip:' .. name, entry)
        end
      end
    end
  end
  if name and redis.call('EXISTS', 'rq:deferred:' .. name, 'rq:canceled:' .. name, 'rq:scheduled:' .. name, 'rq:ready:' .. name,
      'rq:rl-keys') > 0 then
    for _, id in ipairs(try('ZRANGE', 'rq:deferred:' .. name, 0, FEW - 1) or {}) do
      redis.call('ZADD', 'rq:deferred:' .. name, 'XX', now, id)  -- to the end, so that the next run sees other ids
      look_at_deferred(name, id)
    end
    for _, id in ipairs(try('ZRANGE', 'rq:canceled:' .. name, 0, FEW - 1) or {}) do
      local fields = read_hash('rq:job:' .. id)
      redis.call('ZADD', 'rq:canceled:' .. name, now, id)  -- to the end, so that the next run sees other ids
      if fields.status ~= 'canceled' then  -- the job is gone, or was queued again
        redis.call('ZREM', 'rq:canceled:' .. name, id)
      elseif not is_over(fields) and not redis.call('ZSCORE', 'sailq:leases', id .. ':' .. (fields.execution or '')) then
        cancelled[#cancelled + 1] = id  -- the worker of a running job writes the result itself
      end
    end
    for _, id in ipairs(try('ZRANGE', 'rq:scheduled:' .. name, 0, FEW - 1) or {}) do
      refuse('rq:scheduled:' .. name, id, 'scheduled')
    end
    -- Dependents of a cancelled job: RQ's `cancel` marks them as ready, and its program died before it queued them.
    for _, id in ipairs(try('ZRANGE', 'rq:ready:' .. name, 0, FEW - 1) or {}) do
      local job = 'rq:job:' .. id
      local status, front = read_fields(job, 'status', 'enqueue_at_front')
      redis.call('ZREM', 'rq:ready:' .. name, id)
      if status == 'ready_to_enqueue' then
        redis.call('HSET', job, 'status', 'queued')
        push(name, id, front == '1')
      end
    end
    for _, limit in ipairs(try('SMEMBERS', 'rq:rl-keys') or {}) do
      for _, id in ipairs(try('ZRANGE', 'rq:rl:' .. limit .. ':rate_limited', 0, FEW - 1) or {}) do
        if read_fields('rq:job:' .. id, 'origin') == name then
          refuse('rq:rl:' .. limit .. ':rate_limited', id, 'rate_limit')
        end
      end
    end
  end
end

if sweep then
  local function held(holder, till)
    local kind, name = string.match(holder, '^(%w+):(.*)$')
    if kind == 'job' then return redis.call('EXISTS', 'rq:job:' .. name) == 1 end
    if kind == 'conversation' then return redis.call('EXISTS', 'sailq:conversation:' .. name .. ':turns') == 1 end
    return (tonumber(till) or 0) > now
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', 'sailq:clips', 0, now - sweep_seconds, 'LIMIT', 0, 10 * FEW)) do
    local clip, size = string.match(member, '^(%w+):(%d+)$')
    redis.call('ZADD', 'sailq:clips', now, member)
    local there = false
    for _, holder in ipairs(try('HKEYS', 'sailq:clip:' .. clip) or {}) do
      there = true
      if holder ~= 'data' and not held(holder, redis.call('HGET', 'sailq:clip:' .. clip, holder)) then
        let_go(clip, holder)
      end
    end
    if not there then strike(clip, size) end
  end
  redis.call('ZREMRANGEBYSCORE', 'sailq:conversations', 0, now - conversation_ttl)
  for _, worker_key in ipairs(redis.call('SMEMBERS', 'rq:workers')) do
    if redis.call('EXISTS', worker_key) == 0 then
      redis.call('SREM', 'rq:workers', worker_key)
      for _, key in ipairs(redis.call('SMEMBERS', 'rq:queues')) do
        try('SREM', 'rq:workers:' .. string.sub(key, 10), worker_key)
      end
    end
  end
end
return { suspended, back, given_up, cancelled, refused }
