-- say: adds generated text to the streams of running jobs, one entry each.
--
-- KEYS  the stream of each entry (sailq:stream:ID); a stream may get two, of its thought and of its text
-- ARGV  1 TTL of a stream after its newest entry, in seconds
--       2... for each entry: its fields attempt and at, the name of the third (text or reasoning), and what it holds
-- Returns nothing

for i, stream in ipairs(KEYS) do
  local attempt, at, field, text = unpack(ARGV, 4 * i - 2, 4 * i + 1)
  try('XADD', stream, '*', 'attempt', attempt, 'at', at, field, text)
  redis.call('EXPIRE', stream, ARGV[1])
end
