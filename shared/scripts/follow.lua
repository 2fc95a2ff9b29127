-- follow: adds a client's inbox to the inboxes that are notified when a job ends (field `inbox` of the job).
--
-- KEYS  1 the job's hash (rq:job:ID)  2 its result (sailq:result:ID)
-- ARGV  1 name of the inbox (NAME of sailq:inbox:NAME)
-- Returns 'followed'; 'finished' if the result exists; or 'gone' if the job has ended or does not exist,
--       and has no result

if redis.call('EXISTS', KEYS[2]) == 1 then return 'finished' end
local status, ended_at, inboxes = read_fields(KEYS[1], 'status', 'ended_at', 'inbox')
if is_over({ status = status, ended_at = ended_at }) then return 'gone' end
for inbox in words(inboxes) do
  if inbox == ARGV[1] then return 'followed' end
end
redis.call('HSET', KEYS[1], 'inbox', (inboxes or '') .. ' ' .. ARGV[1])
return 'followed'
