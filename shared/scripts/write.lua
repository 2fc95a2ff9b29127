-- write: runs a worker's commands about itself, also on a full server.
--
-- ARGV  for each command: how many words it has, and the words

local first = 1
while ARGV[first] do
  local last = first + ARGV[first]
  redis.call(unpack(ARGV, first + 1, last))
  first = last + 1
end
