-- Files beside a job's streams. Their names are kept with the job as long as anybody remembers
-- it; then they lie ready for whichever gateway removes files next.

local MAX_TRASH = 100000  -- past it the oldest are left to the sweep by age
local TAKEN = 60000  -- who took a name and did not say that it is gone has died

function F.note_blobs(job, names)
  if names and #names > 0 then call('SADD', at('blobs', job.id), unpack(names)) end
end

-- Nobody will ask for this job's files any more.
function F.release_blobs(job)
  local key = at('blobs', job.id)
  local names = call('SMEMBERS', key)
  if #names == 0 then return end
  for _, name in ipairs(names) do call('ZADD', at('trash'), NOW, name) end
  call('DEL', key)
  local many = call('ZCARD', at('trash')) - MAX_TRASH
  if many > 0 then call('ZREMRANGEBYRANK', at('trash'), 0, many - 1) end
end

-- Names to remove, after those of `done`, which are gone.
function API.trash(req)
  if #req.done > 0 then call('ZREM', at('trash'), unpack(req.done)) end
  local names = call('ZRANGEBYSCORE', at('trash'), '-inf', NOW, 'LIMIT', 0, 256)
  for _, name in ipairs(names) do call('ZADD', at('trash'), NOW + TAKEN, name) end
  return names
end
