-- begin: counts the last attempt of a job. Its worker calls this when it starts the attempt, which runs alone
-- on the device. claim.lua counts the earlier attempts.
--
-- KEYS  1 the job's hash (rq:job:ID)
-- ARGV  1 execution: the random id of the attempt
-- Returns 1, or 0 if this attempt no longer owns the job

if redis.call('HGET', KEYS[1], 'execution') ~= ARGV[1] then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', 1)
return 1
