-- release: ends an attempt without a result and puts its job back at the front of its queue.
--
-- KEYS  1 the job's hash (rq:job:ID)
-- ARGV  1 job id  2 execution: id of the attempt  3 cause, for the job's history
--       4 counts: 1 if the attempt counts towards the maximum
-- Returns 1, or 0 if this attempt no longer owns the job

local id, execution, cause, counts = unpack(ARGV)
local fields = read_hash(KEYS[1])
if fields.execution ~= execution or fields.status ~= 'started' then return 0 end
put_back(id, fields, cause, counts == '1')
return 1
