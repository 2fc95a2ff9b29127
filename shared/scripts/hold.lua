-- hold: holds clips for a named holder, for a time.
--
-- KEYS  1 the job (rq:job:ID) whose field `clips` is to name them; none for any other holder
-- ARGV  1 holder  2 now  3 seconds  4 most bytes of clips; then clips, each digest and bytes ('' where it is there) in turn
-- Returns {'held', n} with how many are there, or {'bytes', n} where there is no room

local holder, now, ttl, max_bytes = unpack(ARGV)
if KEYS[1] and redis.call('EXISTS', KEYS[1]) == 0 then return { 'held', 0 } end  -- somebody has deleted it
local taken = find_room(5, max_bytes)
if taken then return { 'bytes', taken } end
local there, digests = 0, {}
for i = 5, #ARGV, 2 do
  if hold(ARGV[i], holder, ARGV[i + 1] ~= '' and ARGV[i + 1], tonumber(now), tonumber(ttl)) then there = there + 1 end
  digests[#digests + 1] = ARGV[i]
end
if KEYS[1] then redis.call('HSET', KEYS[1], 'clips', table.concat(digests, ' ')) end
return { 'held', there }
