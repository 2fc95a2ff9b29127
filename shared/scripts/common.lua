-- Functions that the scripts share. Python puts this file before each of them.

local function seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

local function words(text)
  return string.gmatch(text or '', '%S+')
end

-- Runs a command on a key whose name comes from a job. Returns nil where the key holds a value of another type.
-- With redis.call that error would end a script half done.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
end

-- Reads a hash: as a table, and as the flat reply. Both are empty where the key holds a value of another type.
local function read_hash(key)
  local fields, flat = {}, try('HGETALL', key) or {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields, flat
end

-- Reads some fields of a hash. Returns nothing where the key holds a value of another type.
local function read_fields(key, ...)
  return unpack(try('HMGET', key, ...) or {})
end

-- Reads a whole number of at most nine digits; 0 for any other text, as anybody may have written it.
local function whole(text)
  return #(text or '') < 10 and tonumber(string.match(text or '', '^%d+$')) or 0
end

-- Wakes an idle worker of this queue, on which `waiting` jobs wait. A token wakes one. There are no more tokens than jobs,
-- and at most 8: a worker that a token woke and that leaves jobs rings again.
local function ring(queue, waiting)
  local bell = 'sailq:bell:' .. queue
  if string.match(queue, '^sailq') and (try('LLEN', bell) or 8) < math.min(waiting, 8) then redis.call('RPUSH', bell, '1') end
end

-- Puts a job on its queue, at the front or at the end.
local function push(queue, id, at_front)
  local waiting = try(at_front and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id) or 0
  if waiting <= 8 then ring(queue, waiting) end  -- else those before it have rung
end
