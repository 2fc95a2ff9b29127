#!lua flags=no-writes
-- dry_run: finds the commands of a script that the user may not run. It executes none of them, and the flag above makes
-- the server refuse writes.
--
-- It runs the script many times. Each command is checked against the user's rights and gets a made-up reply. The replies
-- differ between runs, so that the script takes each of its branches.
--
-- KEYS  those of the script
-- ARGV  1 the script  2 seed: which replies are made up  3 number of runs  4 the name of the queue; then the script's own
--       arguments. Those in `choices` stand for several.
-- Returns the refused commands as text: the name, the first argument, and all keys

local text, seed, runs, queue = unpack(ARGV)
local script = assert(loadstring('local redis, KEYS, ARGV = ...\n' .. text))
local refused, seen, state = {}, {}, 1 + seed

-- One of the arguments. The same on every server: math.random is not.
local function any(...)
  state = (state * 16807) % 2147483647
  return (select(1 + math.floor(state / 2147483647 * select('#', ...)), ...))
end

-- The fields of a hash, and their values. Most ids are equal, so that a script often finds what it looks for.
local fields = {}
for field in string.gmatch('origin status execution conversation clips inbox worker_name rate_limit_key dependency_ids history '
  .. 'result_ttl failure_ttl result_record created_at ended_at stream keep followed spent attempt turn enqueue_at_front', '%S+') do
  fields[#fields + 1] = field
end
local ids = { execution = 1, conversation = 1, head = 1, clips = 1, inbox = 1, worker_name = 1, rate_limit_key = 1 }
local values = {
  origin = function() return queue end,
  status = function() return any('queued', 'started', 'deferred', 'failed', 'canceled', 'ready_to_enqueue', false) end,
  history = function() return any('[{}]', false) end,
  result_ttl = function() return any('-1', '0', '1', false) end,
}
local function value(field)
  if values[field] then return values[field]() end
  if ids[field] then return any('id', 'id', 'id', 'other', false) end
  return any('1', '1', '0', '', false)
end
local choices = {
  ['1'] = function() return any('1', '1', '1', '1', '1000', '1000', '0', '') end,
  ['id or none'] = function() return any('id', '') end,
  ['id or other'] = function() return any('id', 'other') end,
  ['finished'] = function() return any('finished', 'failed', 'canceled') end,
}

local function list(...)
  local found = {}
  for i = 1, any(0, 1, 3) do found[i] = any(...) end
  return found
end
local function each(get, names)
  local found = {}
  for i, name in ipairs(names) do found[i] = get(name) end
  return found
end

local members = {
  ['rq:queues'] = { 'rq:queue:' .. queue }, ['rq:workers'] = { 'rq:worker:id' }, ['sailq:clips'] = { 'id:1' },
}
local function listed(key) return members[key] or list('id:id', 'id') end
local function one() return any('1', 'id', '', false) end
local replies = {
  TIME = function() return { '1000000000', '0' } end,
  HGETALL = function()
    local found = {}
    for _, field in ipairs(any(fields, fields, fields, {})) do
      local text = value(field)
      if text then found[#found + 1], found[#found + 2] = field, text end
    end
    return found
  end,
  HMGET = function(_, ...) return each(value, { ... }) end,
  ZMSCORE = function(_, ...) return each(function() return any('1', 'inf', false) end, { ... }) end,
  HKEYS = function() return list('data', 'job:id', 'conversation:id', 'upload:id') end,
  SMEMBERS = listed, LRANGE = listed, ZRANGE = listed, ZRANGEBYSCORE = listed,
  GET = one, HGET = one, SET = one, LPOP = one, LPOS = one, ZSCORE = one,
}

local function call(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    local words = { command }
    for i, word in ipairs({ ... }) do
      word = tostring(word)
      if i == 1 or string.match(word, '^rq:') or string.match(word, '^sailq:') then words[#words + 1] = word end
    end
    local shown = table.concat(words, ' ')
    if not seen[shown] then refused[#refused + 1], seen[shown] = shown, true end
  end
  return (replies[command] or function() return any(0, 1, 2, 9) end)(...)
end
local function pcall_(...)
  local reply = call(...)
  return any(0, 1, 1, 1) == 0 and { err = 'ERR' } or reply
end

for run = 1, runs do
  local arguments = {}
  for i = 5, #ARGV do arguments[i - 4] = (choices[ARGV[i]] or function() return ARGV[i] end)() end
  -- A made-up reply may stop the script. What it has called by then counts.
  pcall(script, { call = call, pcall = pcall_ }, KEYS, arguments)
end
return refused
