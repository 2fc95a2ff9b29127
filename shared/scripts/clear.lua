-- clear: deletes the turns of a conversation and its holds on clips. The next turn continues the numbering.
--
-- KEYS  1 the answered turns (sailq:conversation:ID:turns)  2 the clips it holds (sailq:conversation:ID:clips)
-- ARGV  1 conversation id
-- Returns nothing

for _, clip in ipairs(redis.call('SMEMBERS', KEYS[2])) do let_go(clip, 'conversation:' .. ARGV[1]) end
redis.call('DEL', KEYS[1], KEYS[2])
