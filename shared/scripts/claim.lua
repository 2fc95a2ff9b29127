-- claim: takes the next waiting job from its queue and creates a lease on it.
--
-- KEYS  the queues (rq:queue:NAME), in the order in which they are served
-- ARGV  1 worker's name  2 execution: a new random id for this attempt  3 length of the lease, in seconds
--       4 now, in RQ's text format  5 TTL of a claimed job's hash, in seconds  6 maximum attempts of a job
--       7 maximum entries of a job's history  8 maximum bytes of a job's hash
--       9 again: 1 to repeat a claim whose reply was lost  10 idle: 1 if the worker has waited for the bell
-- Returns {} if no job waits, else {id, queue, attempt, more, last, fields, clips, turns}
--       attempt: number of this attempt, from 1.
--       more: 1 if other jobs wait on the same queue.
--       last: 1 if this is the job's last attempt. begin.lua counts it; all others count here.
--       fields: the job's hash as a flat list; empty if it is larger than ARGV[8] or the key is not a hash.
--       clips: bytes of each clip, in the order of the field `clips`; nil for a clip that has expired, is listed twice,
--       or does not fit into the reply.
--       turns: list of the conversation's answered turns, or their size in bytes if they do not fit into the reply

local worker, execution, lease, time, ttl, max_attempts, max_history, max_bytes, again, idle = unpack(ARGV)

local function reply(id, name, fields, flat, last)
  local bytes, clips, turns = 0, {}, {}
  for _, text in ipairs(flat) do bytes = bytes + #text end
  if bytes > tonumber(max_bytes) then flat = {} else
    local seen = {}
    for clip in words(fields.clips) do  -- the worker fetches clips that do not fit later
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
    -- Skip the ids of jobs that have expired or were deleted, and of jobs that do not wait: their ids were on the queue
    -- twice. RQ's ids consist of these characters only.
    if (#flat > 0 or foreign) and not ended[fields.status] and string.match(id, '^[%w._-]+$') then
      -- RQ has queued an ended or running job again, by `rq requeue` or by `enqueue` with the same id.
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
      if not try('ZADD', 'sailq:leases', now + lease, entry) then  -- the key is not a sorted set
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
