-- free: removes the holds on clips of ended jobs, for which a reader of `sailq:results` has no more use.
--
-- ARGV  for each job: its id, and its clips' digests, separated by spaces
-- Returns nothing

for i = 1, #ARGV, 2 do
  for clip in words(ARGV[i + 1]) do let_go(clip, 'results:' .. ARGV[i]) end
end
