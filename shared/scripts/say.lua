-- say: adds generated text to the streams of running jobs, one entry each.
--
-- KEYS  the streams (sailq:stream:ID)
-- ARGV  1 TTL of a stream after its newest entry, in seconds
--       2... for each stream: the fields attempt, at and text of its new entry
-- Returns nothing

for i, stream in ipairs(KEYS) do
  try('XADD', stream, '*', 'attempt', ARGV[3 * i - 1], 'at', ARGV[3 * i], 'text', ARGV[3 * i + 1])
  redis.call('EXPIRE', stream, ARGV[1])
end
