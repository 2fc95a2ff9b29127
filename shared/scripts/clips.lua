-- Clips: who holds them, and how many bytes they take. Python puts this file before each script, after common.lua.

-- Removes a clip that has gone from the count of bytes.
local function strike(clip, size)
  if redis.call('ZREM', 'sailq:clips', clip .. ':' .. size) == 1 then redis.call('DECRBY', 'sailq:clip-bytes', size) end
end

-- Ends one holder's hold on a clip. The clip is freed with its last holder.
local function let_go(clip, holder)
  local key = 'sailq:clip:' .. clip
  if try('HDEL', key, holder) and redis.call('HLEN', key) == 1 then
    local size = redis.call('HSTRLEN', key, 'data')
    redis.call('UNLINK', key)
    strike(clip, size)
  end
end

-- Counts the bytes of the clips that follow in ARGV (digest and bytes in turn; '' for a clip that is there already).
-- Returns nil, or, where there is no room for them, how many bytes there are without them.
local function find_room(first, max_bytes)
  local new = 0
  for i = first, #ARGV, 2 do new = new + #ARGV[i + 1] end
  if new == 0 then return end
  local held = redis.call('INCRBY', 'sailq:clip-bytes', new)
  if held <= tonumber(max_bytes) then return end
  local known = 0  -- what is there already takes no more room; it is looked for only where that decides
  for i = first, #ARGV, 2 do
    if redis.call('EXISTS', 'sailq:clip:' .. ARGV[i]) == 1 then known = known + #ARGV[i + 1] end
  end
  if known == new or held - known <= tonumber(max_bytes) then return end
  redis.call('DECRBY', 'sailq:clip-bytes', new)
  return held - new
end

-- Has a clip held until a time. `data`: bytes that are counted, or false where the clip must be there already.
-- Returns whether it is.
local function hold(clip, holder, data, now, ttl)
  local key = 'sailq:clip:' .. clip
  if data then
    local added = try('HSET', key, 'data', data, holder, now + ttl)
    local new = added == 2
    -- Its name is still there where another one of these bytes has expired and nobody has looked since.
    if not new or redis.call('ZADD', 'sailq:clips', now, clip .. ':' .. #data) == 0 then
      redis.call('DECRBY', 'sailq:clip-bytes', #data)
    end
    if not added then return false end
    if new then
      redis.call('EXPIRE', key, math.ceil(ttl))
      return true
    end
  elseif try('HEXISTS', key, 'data') ~= 1 then
    return false
  else
    redis.call('HSET', key, holder, now + ttl)
  end
  redis.call('EXPIRE', key, math.ceil(ttl), 'GT')
  return true
end

-- Renews a conversation's hold on its clips, for `ttl` seconds from now.
local function keep_clips(conversation, now, ttl)
  local clips = 'sailq:conversation:' .. conversation .. ':clips'
  for _, clip in ipairs(try('SMEMBERS', clips) or {}) do hold(clip, 'conversation:' .. conversation, false, now, ttl) end
  redis.call('EXPIRE', clips, ttl)
end
