-- release: puts a job back at the front of its queue, without a result.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 id  2 execution  3 why  4 counts: 1 where the attempt is one of the few that the job has
-- Returns 1, or 0 where the job has another attempt by now, or none

local id, execution, cause, counts = unpack(ARGV)
local fields = read_hash(KEYS[1])
if fields.execution ~= execution or fields.status ~= 'started' then return 0 end
put_back(id, fields, cause, counts == '1')
return 1
