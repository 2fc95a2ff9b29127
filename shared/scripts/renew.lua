-- renew: renews a worker's leases on jobs of one queue.
--
-- KEYS  1 the queue's started jobs (rq:wip:NAME)
-- ARGV  1 seconds of a lease; then the leases, each JOB:EXECUTION
-- Returns {lost, ended}: leases that are gone, and leases of jobs that were cancelled, or deleted by a tool of RQ's

local leases = { unpack(ARGV, 2) }
local lost, ended, kept = {}, {}, {}
local held = redis.call('ZMSCORE', 'sailq:leases', unpack(leases))
local known = try('ZMSCORE', KEYS[1], unpack(leases))
local till = seconds() + ARGV[1]
for i, lease in ipairs(leases) do
  if not held[i] then
    lost[#lost + 1] = lease
  else
    kept[#kept + 1] = till
    kept[#kept + 1] = lease
    if known and known[i] ~= 'inf' then ended[#ended + 1] = lease end
  end
end
if #kept > 0 then redis.call('ZADD', 'sailq:leases', 'XX', unpack(kept)) end
return { lost, ended }
