-- Counts a request of one of the gateway's keys, if its limits allow it.
-- KEYS: the key's bucket, the key's jobs
-- ARGV: requests per second (0: no limit), burst, most jobs that may wait or run (0: no limit), the job's id
-- Returns {'ok', 0}, {'rate', milliseconds until a request is allowed}, or {'jobs', how many there are}.
-- The bucket is one number, the time at which it will be full again (the generic cell rate algorithm), in milliseconds.
local rate, burst, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
if most > 0 and redis.call('ZCARD', KEYS[2]) >= most then
    -- A gateway that died has left its jobs here. Jobs of the last minute may not have been submitted yet. Only the
    -- oldest are looked at, because each refused request does so.
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - 60000, 'LIMIT', 0, 1000)) do
        if redis.call('EXISTS', 'rq:job:' .. id) == 0 or redis.call('EXISTS', 'sailq:result:' .. id) == 1 then
            redis.call('ZREM', KEYS[2], id)
        end
    end
    local jobs = redis.call('ZCARD', KEYS[2])
    if jobs >= most then return {'jobs', jobs} end
end
if rate > 0 then
    local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + 1000 / rate
    local early = full - now - 1000 * burst / rate
    if early > 0 then return {'rate', math.ceil(early)} end
    redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil(full - now) + 1000)
end
if most > 0 then
    redis.call('ZADD', KEYS[2], now, ARGV[4])
    redis.call('EXPIRE', KEYS[2], 86400)
end
return {'ok', 0}
