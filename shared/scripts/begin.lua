-- begin: counts a job's last attempt. Its worker calls this when no other job runs on its device.
--
-- KEYS  1 the job (rq:job:ID)
-- ARGV  1 execution
-- Returns 1, or 0 where the job has another attempt by now, or none

if redis.call('HGET', KEYS[1], 'execution') ~= ARGV[1] then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', 1)
return 1
