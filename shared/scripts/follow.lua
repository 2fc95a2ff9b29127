-- follow: adds an inbox to those that are told when a job ends.
--
-- KEYS  1 the job (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 the inbox's name
-- Returns 'followed', 'finished' where it has its result, or 'gone'

if redis.call('EXISTS', KEYS[2]) == 1 then return 'finished' end
local status, ended_at, inboxes = read_fields(KEYS[1], 'status', 'ended_at', 'inbox')
if is_over({ status = status, ended_at = ended_at }) then return 'gone' end
for inbox in words(inboxes) do
  if inbox == ARGV[1] then return 'followed' end
end
redis.call('HSET', KEYS[1], 'inbox', (inboxes or '') .. ' ' .. ARGV[1])
return 'followed'
