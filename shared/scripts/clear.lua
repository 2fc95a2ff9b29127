-- clear: deletes what a conversation has said and lets go of its clips. The numbers of its turns go on.
--
-- KEYS  1 its turns (sailq:conversation:ID:turns)  2 its clips (sailq:conversation:ID:clips)
-- ARGV  1 conversation

for _, clip in ipairs(redis.call('SMEMBERS', KEYS[2])) do let_go(clip, 'conversation:' .. ARGV[1]) end
redis.call('DEL', KEYS[1], KEYS[2])
