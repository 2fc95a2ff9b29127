-- begin: counts a job's last attempt, which has waited until its worker runs nothing else.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 execution
-- Returns 1, or 0 where the attempt is not the job's any more

if redis.call('HGET', KEYS[1], 'execution') ~= ARGV[1] then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', 1)
return 1
