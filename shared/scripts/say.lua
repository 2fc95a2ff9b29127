-- say: adds text to the streams of running jobs.
--
-- KEYS  the streams (sailq:stream:ID)
-- ARGV  1 seconds that a stream outlives its newest entry; then, for each stream, attempt, at and text

for i, stream in ipairs(KEYS) do
  try('XADD', stream, '*', 'attempt', ARGV[3 * i - 1], 'at', ARGV[3 * i], 'text', ARGV[3 * i + 1])
  redis.call('EXPIRE', stream, ARGV[1])
end
