-- How an attempt, a turn and a job end. Python puts this file before each script, after clips.lua.

-- Returns whether a job's record has this attempt as the one that runs.
local function is_running(id, execution)
  local status, running = read_fields('rq:job:' .. (id or ''), 'status', 'execution')
  return status == 'started' and running == execution
end

-- Ends an attempt's lease. Returns RQ's keys of the attempt, which the caller deletes.
local function end_execution(id, execution, queue)
  local entry = id .. ':' .. execution
  redis.call('ZREM', 'sailq:leases', entry)
  try('ZREM', 'rq:wip:' .. queue, entry)
  return { 'rq:execution:' .. entry, 'rq:executions:' .. id }
end

-- Puts a job without a result back on its queue, at the front: it has waited before.
-- `cause`: why its attempt ended; nil where its worker died. `counts`: whether the attempt is one of the few it has.
local function put_back(id, fields, cause, counts)
  local job = 'rq:job:' .. id
  redis.call('DEL', unpack(end_execution(id, fields.execution, fields.origin)))
  if cause then
    local read, history = pcall(cjson.decode, fields.history or '')
    if read and type(history) == 'table' and type(history[#history]) == 'table' then
      history[#history].cause = cause
      local written, noted = pcall(cjson.encode, history)
      if written then redis.call('HSET', job, 'history', noted) end
    end
  end
  redis.call('HSET', job, 'status', 'queued', 'worker_name', '', 'execution', '',
    'spent', counts and whole(fields.spent) or math.max(0, whole(fields.spent) - 1))
  push(fields.origin, id, true)
end

-- Puts the next turn of a conversation on its queue, if one waits.
local function release_turn(conversation)
  local waiting = 'sailq:conversation:' .. conversation .. ':waiting'
  while true do
    local id = try('LPOP', waiting)
    if not id then return end
    local job = 'rq:job:' .. id
    local status, queue, front = read_fields(job, 'status', 'origin', 'enqueue_at_front')
    if status == 'deferred' and queue then  -- else somebody has deleted or cancelled it
      redis.call('HSET', job, 'status', 'queued')
      redis.call('ZREM', 'rq:deferred:' .. queue, id)
      try('HSET', 'sailq:conversation:' .. conversation, 'head', id)
      -- What was said lives as long as the turn that waits for a worker with it.
      redis.call('EXPIRE', 'sailq:conversation:' .. conversation .. ':turns', redis.call('TTL', job), 'GT')
      push(queue, id, front == '1')
      return
    end
  end
end

-- Puts RQ's dependents of a job that has ended on their queues, unless they wait for another job, too.
local function release_dependents(id, status)
  local dependents = 'rq:job:' .. id .. ':dependents'
  for _, dependent in ipairs(try('SMEMBERS', dependents) or {}) do
    local job = 'rq:job:' .. dependent
    local state, queue, front, tolerant =
      read_fields(job, 'status', 'origin', 'enqueue_at_front', 'allow_dependency_failures')
    local met = { finished = true, failed = tolerant == '1' }
    local free = state == 'deferred' and queue and met[status]
    if free then
      for _, other in ipairs(try('SMEMBERS', 'rq:job::' .. dependent .. ':dependencies') or {}) do
        local of_other = other ~= id and read_fields('rq:job:' .. other, 'status')
        if of_other and not met[of_other] then free = false end
      end
    end
    if free then
      redis.call('HSET', job, 'status', 'queued')
      redis.call('ZREM', 'rq:deferred:' .. queue, dependent)
      push(queue, dependent, front == '1')
    end
    if free or not state then redis.call('SREM', dependents, dependent) end
  end
end

-- Returns whether a job has ended, or is gone. A failed job that `rq requeue` has put back still has a result, and has
-- not ended: RQ clears `ended_at`.
local function is_over(fields)
  return not fields.status or (fields.ended_at or '') ~= ''
end

-- Removes all that a job's end has left: the job begins anew.
local function forget_end(id, queue)
  redis.call('DEL', 'sailq:result:' .. id, 'sailq:stream:' .. id, 'rq:results:' .. id)
  redis.call('HDEL', 'rq:job:' .. id, 'result_record', 'history', 'cancel', 'execution', 'ended_at')
  redis.call('HSET', 'rq:job:' .. id, 'spent', 0)
  for _, ended in ipairs({ 'finished', 'failed', 'canceled' }) do try('ZREM', 'rq:' .. ended .. ':' .. queue, id) end
end

-- Ends a job: writes its result, tells those that wait for it, adds its turn to its conversation, frees its clips, and
-- releases the next turn and RQ's dependents.
--   fields: its hash. result: encoded Result. ttl: seconds that the result is kept. status: finished, failed or canceled.
--   kept: seconds that RQ's record is kept where the job names none. rq: RQ's Result as flat fields. turn: encoded Turn,
--   or ''. ended_at: now, in RQ's form. gone: what `end_execution` has returned.
local function conclude(id, fields, options)
  local job, queue, now, status = 'rq:job:' .. id, fields.origin or '', options.now, options.status
  local conversation = fields.conversation or id
  redis.call('SET', 'sailq:result:' .. id, options.result, 'EX', options.ttl)
  if fields.stream == '1' then
    local stream = 'sailq:stream:' .. id
    try('XADD', stream, '*', 'attempt', fields.attempt or '0', 'end', '1')
    redis.call('EXPIRE', stream, options.stream_ttl)
  end
  local told = 0
  for inbox in words(fields.inbox) do
    told = told + 1
    if told > 64 then break end
    try('XADD', 'sailq:inbox:' .. inbox, 'NOMKSTREAM', 'MAXLEN', '~', 1000, '*', 'job', id)
  end
  local failed = status == 'failed'
  local kept = tonumber(failed and fields.failure_ttl or not failed and fields.result_ttl) or options.kept
  kept = kept == kept and math.floor(math.min(kept, 2 ^ 31)) or options.kept
  if fields.status ~= 'started' then
    for _, other in ipairs({ 'scheduled', 'canceled' }) do redis.call('ZREM', 'rq:' .. other .. ':' .. queue, id) end
  end
  if fields.rate_limit_key then
    local limit = 'rq:rl:' .. fields.rate_limit_key
    for _, registry in ipairs({ ':rate_limited', ':allowed' }) do redis.call('ZREM', limit .. registry, id) end
  end
  if fields.dependency_ids then redis.call('DEL', 'rq:job::' .. id .. ':dependencies') end  -- RQ's own two colons
  local gone = options.gone or {}
  if kept == 0 then gone[#gone + 1] = job end
  if #gone > 0 then redis.call('DEL', unpack(gone)) end
  if kept ~= 0 then
    redis.call('HSET', job, 'status', status, 'ended_at', options.ended_at, 'execution', '',
      'result_record', failed and options.result or '')
    local results = 'rq:results:' .. id
    try('XADD', results, 'MAXLEN', 10, '*', unpack(options.rq))
    for _, key in ipairs({ job, results }) do
      if kept > 0 then redis.call('EXPIRE', key, kept) else redis.call('PERSIST', key) end
    end
    try('ZADD', 'rq:' .. status .. ':' .. queue, kept > 0 and now + kept or '+inf', id)
  end
  if options.turn ~= '' then
    local turns = 'sailq:conversation:' .. conversation .. ':turns'
    try('RPUSH', turns, options.turn)
    redis.call('EXPIRE', turns, options.conversation_ttl)
    if conversation ~= id then redis.call('EXPIRE', 'sailq:conversation:' .. conversation, options.conversation_ttl, 'GT') end
    try('ZADD', 'sailq:conversations', now, conversation)
  end
  if options.turn ~= '' and fields.keep == '1' then
    for clip in words(fields.clips) do try('SADD', 'sailq:conversation:' .. conversation .. ':clips', clip) end
    keep_clips(conversation, now, options.conversation_ttl)
  end
  for clip in words(fields.clips) do
    if failed and kept ~= 0 then
      hold(clip, 'job:' .. id, false, now, kept > 0 and kept or options.kept)
    else
      let_go(clip, 'job:' .. id)
    end
  end
  -- A job that is a conversation of its own has no other turns, unless one has followed it.
  if (conversation ~= id or fields.followed) and read_fields('sailq:conversation:' .. conversation, 'head') == id then
    release_turn(conversation)
  end
  release_dependents(id, status)
end
