-- renew: renews a worker's leases on jobs of one queue.
--
-- KEYS  1 RQ's registry of the queue's started jobs (rq:wip:NAME)
-- ARGV  1 length of a lease, in seconds  2... the leases, each JOB:EXECUTION
-- Returns {lost, ended}, both lists of leases
--       lost: leases that no longer exist: the attempt was superseded.
--       ended: leases of jobs that were cancelled, or that one of RQ's tools deleted or ended

local leases, kept = { unpack(ARGV, 2) }, {}
local till = seconds() + ARGV[1]
for _, lease in ipairs(leases) do
  kept[#kept + 1] = till
  kept[#kept + 1] = lease
end
local changed = redis.call('ZADD', 'sailq:leases', 'XX', 'CH', unpack(kept))
local held = changed < #leases and redis.call('ZMSCORE', 'sailq:leases', unpack(leases))
local known = try('ZMSCORE', KEYS[1], unpack(leases))
local lost, ended = {}, {}
for i, lease in ipairs(leases) do
  local leased = not held or held[i]
  local runs = leased and (not known or known[i])
  if not runs then  -- if a key was deleted, the job's hash still shows whether this attempt runs
    local id, execution = string.match(lease, '^(.*):(%w+)$')
    runs = is_running(id, execution)
    if runs then
      redis.call('ZADD', 'sailq:leases', till, lease)
      try('ZADD', KEYS[1], 'NX', '+inf', lease)
    end
  end
  if not leased and not runs then
    lost[#lost + 1] = lease
  elseif not runs or known and known[i] and known[i] ~= 'inf' then
    ended[#ended + 1] = lease
  end
end
return { lost, ended }
