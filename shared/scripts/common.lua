-- Functions that all scripts share. Python puts this file before each script.

-- Returns the server's time, in seconds since the epoch.
local function seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

-- Iterates over the words of a text; over none if it is nil.
local function words(text)
  return string.gmatch(text or '', '%S+')
end

-- Runs a command on a key that may hold a value of another type: its name comes from a job, which any program may
-- write. Returns nil if the command fails. redis.call would abort the script after part of its writes.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
end

-- Reads a hash, as a table and as a flat list. Both are empty if the key does not exist or holds another type.
local function read_hash(key)
  local fields, flat = {}, try('HGETALL', key) or {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields, flat
end

-- Reads fields of a hash. Returns nothing if the key holds another type.
local function read_fields(key, ...)
  return unpack(try('HMGET', key, ...) or {})
end

-- Parses a whole number of at most nine digits. Returns 0 for any other text: other programs may have written it.
local function whole(text)
  return #(text or '') < 10 and tonumber(string.match(text or '', '^%d+$')) or 0
end

-- Wakes an idle worker of a queue on which `waiting` jobs wait: pushes a token, and each token wakes one worker. There
-- are never more tokens than waiting jobs, and at most 8. A woken worker that leaves jobs on the queue pushes another.
local function ring(queue, waiting)
  local bell = 'sailq:bell:' .. queue
  if string.match(queue, '^sailq') and (try('LLEN', bell) or 8) < math.min(waiting, 8) then redis.call('RPUSH', bell, '1') end
end

-- Puts a job on its queue, at the front or at the end, and wakes an idle worker.
local function push(queue, id, at_front)
  local waiting = try(at_front and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id) or 0
  if waiting <= 8 then ring(queue, waiting) end  -- the jobs before it have woken workers
end
