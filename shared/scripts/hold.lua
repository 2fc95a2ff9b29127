-- hold: adds a holder to clips, and uploads new ones. A clip is kept while it has a holder.
--
-- KEYS  1 the hash of the job (rq:job:ID) whose field `clips` is to list the clips; no key if the holder is not a job
-- ARGV  1 holder: job:ID, conversation:ID or another KIND:NAME  2 now, in seconds since the epoch
--       3 seconds to hold the clips  4 maximum total bytes of clips on the server
--       5... for each clip: its digest and its bytes, or '' if it was uploaded before
-- Returns {'held', number of these clips that exist}, or {'bytes', total bytes of clips} if they do not fit

local holder, now, ttl, max_bytes = unpack(ARGV)
if KEYS[1] and redis.call('EXISTS', KEYS[1]) == 0 then return { 'held', 0 } end  -- the job was deleted
local taken = find_room(5, max_bytes)
if taken then return { 'bytes', taken } end
local there, digests = 0, {}
for i = 5, #ARGV, 2 do
  if hold(ARGV[i], holder, ARGV[i + 1] ~= '' and ARGV[i + 1], tonumber(now), tonumber(ttl)) then there = there + 1 end
  digests[#digests + 1] = ARGV[i]
end
if KEYS[1] then redis.call('HSET', KEYS[1], 'clips', table.concat(digests, ' ')) end
return { 'held', there }
