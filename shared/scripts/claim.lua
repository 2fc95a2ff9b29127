-- claim: takes the next waiting job and its lease, in one step.
--
-- KEYS  the queues (rq:queue:NAME), in the order in which they are served
-- ARGV  1 worker  2 execution: a random id of this attempt  3 seconds of its lease  4 the time in RQ's form
--       5 seconds that a claimed job is kept  6 most attempts  7 attempts that a job remembers  8 most bytes of a job
--       9 again: 1 where the reply to this very claim was lost  10 idle: 1 where the worker has waited for the bell
-- Returns {} where nothing waits; else
--       {id, queue, attempt, more, last, fields, clips, turns}
--       more: 1 where others wait. last: 1 where the job has no attempt after this one, which counts from `begin` on.
--       fields: the job's hash, flat; empty where it is too large, or no hash.
--       clips: bytes, in the order of the field `clips`; nil for one that is gone, comes twice, or is too much for one
--       reply.
--       turns: the conversation's answered turns, or their size in bytes where that is too much

local worker, execution, lease, time, ttl, max_attempts, max_history, max_bytes, again, idle = unpack(ARGV)

local function reply(id, name, fields, flat, last)
  local bytes, clips, turns = 0, {}, {}
  for _, text in ipairs(flat) do bytes = bytes + #text end
  if bytes > tonumber(max_bytes) then flat = {} else
    local seen = {}
    for clip in words(fields.clips) do  -- what is too much for one reply, the worker asks for later
      local data = not seen[clip] and bytes < 16 * max_bytes and try('HGET', 'sailq:clip:' .. clip, 'data')
      seen[clip], bytes = true, bytes + #(data or '')
      clips[#clips + 1] = data or false
    end
    if (tonumber(fields.turn) or 0) > 0 then
      local key = 'sailq:conversation:' .. (fields.conversation or id) .. ':turns'
      local size = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0)
      turns = size and (size > 8 * max_bytes and size or try('LRANGE', key, 0, -1)) or {}
    end
  end
  local more = redis.call('LLEN', 'rq:queue:' .. name)
  if more > 0 and idle == '1' then ring(name, more) end
  return { id, name, tonumber(fields.attempt), more > 0 and 1 or 0, last and 1 or 0, flat, clips, turns }
end

if again == '1' then
  for _, entry in ipairs(redis.call('ZRANGE', 'sailq:leases', 0, -1)) do
    local id, of = string.match(entry, '^(.*):(%w+)$')
    if of == execution then
      local fields, flat = read_hash('rq:job:' .. id)
      if fields.origin then
        return reply(id, fields.origin, fields, flat, whole(fields.spent) + 1 >= tonumber(max_attempts))
      end
    end
  end
end

local ended = { started = true, deferred = true, finished = true, failed = true, canceled = true, stopped = true }
for _, queue in ipairs(KEYS) do
  local name = string.sub(queue, 10)
  while true do
    local id = redis.call('LPOP', queue)
    if not id then break end
    local job = 'rq:job:' .. id
    local fields, flat = read_hash(job)
    local foreign = #flat == 0 and redis.call('DEL', job) == 1
    -- An id without a record: the job has expired or was deleted. One that does not wait: its id is on the queue twice.
    -- RQ itself gives ids of these characters only.
    if (#flat > 0 or foreign) and not ended[fields.status] and string.match(id, '^[%w._-]+$') then
      -- RQ has put a job back that has ended, or that runs: `rq requeue`, or `enqueue` with its id.
      if fields.result_record or (fields.execution or '') ~= '' then
        forget_end(id, name)
        fields, flat = read_hash(job)
      end
      local attempt, spent = whole(fields.attempt) + 1, whole(fields.spent)
      local last = spent + 1 >= tonumber(max_attempts)
      local now = seconds()
      local read, history = pcall(cjson.decode, fields.history or '[]')
      if not read or type(history) ~= 'table' then history = {} end
      table.insert(history, { attempt = attempt, worker = worker, started_at = now })
      if #history > tonumber(max_history) then table.remove(history, 1) end
      local written, noted = pcall(cjson.encode, history)
      redis.call('HSET', job, 'status', 'started', 'origin', name, 'worker_name', worker, 'started_at', time,
        'last_heartbeat', time, 'attempt', attempt, 'execution', execution, 'history', written and noted or '[]',
        'spent', last and spent or spent + 1)
      redis.call('EXPIRE', job, ttl)
      local entry = id .. ':' .. execution
      if not try('ZADD', 'sailq:leases', now + lease, entry) then  -- it holds something else
        redis.call('DEL', 'sailq:leases')
        redis.call('ZADD', 'sailq:leases', now + lease, entry)
      end
      try('ZADD', 'rq:wip:' .. name, '+inf', entry)
      try('ZADD', 'rq:executions:' .. id, '+inf', execution)
      try('HSET', 'rq:execution:' .. entry, 'id', execution, 'job_id', id, 'worker_name', worker,
        'created_at', now, 'last_heartbeat', now)
      fields.attempt = attempt
      return reply(id, name, fields, flat, last)
    end
  end
end
return {}
