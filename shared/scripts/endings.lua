-- Functions that end attempts, turns and jobs. Python puts this file before each script, after clips.lua.

-- Returns whether this attempt is the running one, according to the job's hash.
local function is_running(id, execution)
  local status, running = read_fields('rq:job:' .. (id or ''), 'status', 'execution')
  return status == 'started' and running == execution
end

-- Removes the lease of an attempt. Returns RQ's keys of the attempt, which the caller must delete.
local function end_execution(id, execution, queue)
  local entry = id .. ':' .. execution
  redis.call('ZREM', 'sailq:leases', entry)
  try('ZREM', 'rq:wip:' .. queue, entry)
  return { 'rq:execution:' .. entry, 'rq:executions:' .. id }
end

-- Puts a running job back at the front of its queue, because it has waited before. `cause`: why the attempt ended; nil
-- if its worker died. `counts`: whether the attempt counts towards the maximum.
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

-- Puts the next waiting turn of a conversation on its queue, if there is one.
local function release_turn(conversation)
  local waiting = 'sailq:conversation:' .. conversation .. ':waiting'
  while true do
    local id = try('LPOP', waiting)
    if not id then return end
    local job = 'rq:job:' .. id
    local status, queue, front = read_fields(job, 'status', 'origin', 'enqueue_at_front')
    if status == 'deferred' and queue then  -- else the turn was deleted or cancelled
      redis.call('HSET', job, 'status', 'queued')
      redis.call('ZREM', 'rq:deferred:' .. queue, id)
      try('HSET', 'sailq:conversation:' .. conversation, 'head', id)
      -- The earlier turns must not expire before this one: they are its history.
      redis.call('EXPIRE', 'sailq:conversation:' .. conversation .. ':turns', redis.call('TTL', job), 'GT')
      push(queue, id, front == '1')
      return
    end
  end
end

-- Queues the jobs that depend on an ended job (RQ's `depends_on`), except those that also wait for another job.
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

-- Returns whether a job has ended or does not exist. It checks `ended_at`, not the result: `rq requeue` clears
-- `ended_at` of a failed job and leaves its result.
local function is_over(fields)
  return not fields.status or (fields.ended_at or '') ~= ''
end

-- Deletes the result and all other traces of a job's end, so that the job starts as if it were new.
local function forget_end(id, queue)
  redis.call('DEL', 'sailq:result:' .. id, 'sailq:stream:' .. id, 'rq:results:' .. id)
  redis.call('HDEL', 'rq:job:' .. id, 'result_record', 'history', 'cancel', 'execution', 'ended_at')
  redis.call('HSET', 'rq:job:' .. id, 'spent', 0)
  for _, ended in ipairs({ 'finished', 'failed', 'canceled' }) do try('ZREM', 'rq:' .. ended .. ':' .. queue, id) end
end

-- Maximum seconds that the clips of an ended job are held for an archive. The archive calls free.lua once it has them.
local READ_SECONDS = 600
-- Maximum bytes of the call of a job in `sailq:results`, so that 10,000 jobs take some megabytes.
local MOST_CALL = 16384

-- Adds an ended job to the stream of ended jobs, if a reader has created it, and holds the job's clips while clips take
-- less than half of their room. Options as for `conclude`.
local function publish(id, fields, options)
  if (options.ended or '0') == '0' then return end
  local job = {}
  for _, name in ipairs({ 'origin', 'data', 'created_at', 'conversation', 'turn', 'clips' }) do
    local value = fields[name] or ''
    job[#job + 1], job[#job + 2] = name, (name ~= 'data' or #value <= MOST_CALL) and value or ''
  end
  local entry = try('XADD', 'sailq:results', 'NOMKSTREAM', 'MAXLEN', '~', options.ended, '*', 'job', id,
    'result', options.result, unpack(job))
  if entry and tonumber(redis.call('GET', 'sailq:clip-bytes') or 0) < options.max_bytes / 2 then
    for clip in words(fields.clips) do hold(clip, 'results:' .. id, false, options.now, READ_SECONDS) end
  end
end

-- Ends a job: writes its result, notifies the clients that wait for it, adds its turn to its conversation, removes its
-- holds on clips, and queues the next turn and RQ's dependents. `fields` is the job's hash. Options, TTLs in seconds:
--   result: encoded Result. ttl: TTL of the result. status: finished, failed or canceled. now: seconds since the epoch.
--   ended_at: now, in RQ's text format. kept: TTL of the job's hash if the job sets none. rq: fields and values of RQ's
--   result. turn: encoded Turn, or ''. conversation_ttl: needed with a turn. stream_ttl: TTL of the text stream.
--   gone: keys to delete, as returned by `end_execution`. ended: maximum entries of the stream of ended jobs; '0' or nil to
--   add none. max_bytes: maximum total bytes of clips, needed with `ended`.
local function conclude(id, fields, options)
  local job, queue, now, status = 'rq:job:' .. id, fields.origin or '', options.now, options.status
  local conversation = fields.conversation or id
  redis.call('SET', 'sailq:result:' .. id, options.result, 'EX', options.ttl)
  publish(id, fields, options)
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
  if fields.dependency_ids then redis.call('DEL', 'rq:job::' .. id .. ':dependencies') end  -- RQ's key has two colons
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
  -- A conversation that a job began has its id. It has other turns only if the field `followed` is set.
  if (conversation ~= id or fields.followed) and read_fields('sailq:conversation:' .. conversation, 'head') == id then
    release_turn(conversation)
  end
  release_dependents(id, status)
end
