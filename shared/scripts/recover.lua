-- recover: puts the jobs of dead workers back on their queues, ends jobs that cannot go on, completes what RQ's tools have
-- left half done, and frees what nobody needs. One worker of the fleet at a time does it for all.
--
-- KEYS  the worker's queues (rq:queue:NAME)
-- ARGV  1 worker  2 milliseconds until the next look  3 seconds of a lease  4 most attempts  5 seconds between two sweeps
--       6 seconds that a conversation is kept
-- Returns {suspended, back, given_up, cancelled, refused}, all but the first flat lists:
--       suspended: 1 where `rq suspend` keeps workers from taking jobs.
--       back: ids of jobs that are on their queues again.
--       given_up: id and execution of jobs that have no attempt left; their leases are this worker's, which ends them.
--       cancelled: ids of jobs that a tool of RQ's has cancelled.
--       refused: id and cause of jobs that ask RQ for what sailq does not do (to run later, or at a limited rate)

local worker, pause, lease, max_attempts, sweep_seconds, conversation_ttl = unpack(ARGV)
local back, given_up, cancelled, refused = {}, {}, {}, {}
local suspended = redis.call('EXISTS', 'rq:suspended')
if not redis.call('SET', 'sailq:looked', worker, 'NX', 'PX', pause) then
  return { suspended, back, given_up, cancelled, refused }
end
local now = seconds()
local FEW = 20  -- of each kind, so that one look, and the results that follow it, take little time

-- After a time in which nobody could look, nobody could renew a lease either: the living do so now.
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

-- Releases a turn, or a dependent of RQ's, whose predecessor has gone without releasing it.
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
        redis.call('DEL', key .. ':waiting')  -- it holds something else
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

-- Lists a job to be refused. Its end takes it out of the registry; where the worker dies before that, the next look lists
-- it again.
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
-- All queues of sailq's: of many workers that try, few get to look, and those of one model could keep another's from it.
for _, key in ipairs(redis.call('SMEMBERS', 'rq:queues')) do
  local name = string.match(key, '^rq:queue:(sailq%d+%-.*)$')
  if name and sweep then
    for _, ended in ipairs({ 'finished', 'failed' }) do
      try('ZREMRANGEBYSCORE', 'rq:' .. ended .. ':' .. name, 0, now)
    end
    for _, entry in ipairs(try('ZRANGE', 'rq:wip:' .. name, 0, 50 * FEW) or {}) do
      if not redis.call('ZSCORE', 'sailq:leases', entry) then
        if is_running(string.match(entry, '^(.*):(%w+)$')) then  -- its lease was lost with its key
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
      redis.call('ZADD', 'rq:deferred:' .. name, 'XX', now, id)  -- the others' turn comes
      look_at_deferred(name, id)
    end
    for _, id in ipairs(try('ZRANGE', 'rq:canceled:' .. name, 0, FEW - 1) or {}) do
      local fields = read_hash('rq:job:' .. id)
      redis.call('ZADD', 'rq:canceled:' .. name, now, id)  -- the others' turn comes
      if fields.status ~= 'canceled' then  -- it has gone, or was enqueued again
        redis.call('ZREM', 'rq:canceled:' .. name, id)
      elseif not is_over(fields) and not redis.call('ZSCORE', 'sailq:leases', id .. ':' .. (fields.execution or '')) then
        cancelled[#cancelled + 1] = id  -- of one that still runs, the worker tells what it has come to
      end
    end
    for _, id in ipairs(try('ZRANGE', 'rq:scheduled:' .. name, 0, FEW - 1) or {}) do
      refuse('rq:scheduled:' .. name, id, 'scheduled')
    end
    -- Dependents that RQ's `cancel` has freed, where its program died before it put them on their queue.
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
