-- Functions that count the holders of clips and the clips' bytes. Python puts this file before each script, after
-- common.lua.

-- Subtracts a deleted clip from the total of bytes (sailq:clip-bytes).
local function strike(clip, size)
  if redis.call('ZREM', 'sailq:clips', clip .. ':' .. size) == 1 then redis.call('DECRBY', 'sailq:clip-bytes', size) end
end

-- Removes one holder of a clip. Deletes the clip if it was the last holder.
local function let_go(clip, holder)
  local key = 'sailq:clip:' .. clip
  if try('HDEL', key, holder) and redis.call('HLEN', key) == 1 then
    local size = redis.call('HSTRLEN', key, 'data')
    redis.call('UNLINK', key)
    strike(clip, size)
  end
end

-- Adds the bytes of new clips to the total. The clips are pairs of digest and bytes in ARGV, from index `first` on; the
-- bytes are '' for a clip that was uploaded before. If the total would exceed `max_bytes`, adds nothing and returns the
-- total without them; else returns nil.
local function find_room(first, max_bytes)
  local new = 0
  for i = first, #ARGV, 2 do new = new + #ARGV[i + 1] end
  if new == 0 then return end
  local held = redis.call('INCRBY', 'sailq:clip-bytes', new)
  if held <= tonumber(max_bytes) then return end
  local known = 0  -- clips that exist need no more room; looked up only if the limit would be exceeded
  for i = first, #ARGV, 2 do
    if redis.call('EXISTS', 'sailq:clip:' .. ARGV[i]) == 1 then known = known + #ARGV[i + 1] end
  end
  if known == new or held - known <= tonumber(max_bytes) then return end
  redis.call('DECRBY', 'sailq:clip-bytes', new)
  return held - new
end

-- Adds a holder to a clip, for `ttl` seconds. `data`: the clip's bytes, which `find_room` has counted, or false if the
-- clip was uploaded before. Returns whether the clip exists.
local function hold(clip, holder, data, now, ttl)
  local key = 'sailq:clip:' .. clip
  if data then
    local added = try('HSET', key, 'data', data, holder, now + ttl)
    local new = added == 2
    -- ZADD returns 0 if the same clip expired earlier and recover.lua has not removed it yet: it is still counted.
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

-- Renews a conversation's holds on its clips, for `ttl` seconds from now.
local function keep_clips(conversation, now, ttl)
  local clips = 'sailq:conversation:' .. conversation .. ':clips'
  for _, clip in ipairs(try('SMEMBERS', clips) or {}) do hold(clip, 'conversation:' .. conversation, false, now, ttl) end
  redis.call('EXPIRE', clips, ttl)
end
