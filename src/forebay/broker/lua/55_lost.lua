-- When the store may have lost something: another life of the server, or another server.
--
-- Until everybody who was alive has compared what it remembers with what is here (at most
-- `SETTLE`), nothing is leased or appended: a stream that lost its end must not be gone on with
-- as if it had not. What does not fit begins a new epoch, which every reader is told.

local SETTLE = 1000

function F.settling()
  local until_ = call('HGET', at('meta'), 'settle')
  return until_ and NOW < tonumber(until_) and tonumber(until_) or false
end

-- Said by every client on each new connection, before anything else.
function API.arrive(req)
  local known = call('HGET', at('meta'), 'server')
  if known ~= req.server then
    call('HSET', at('meta'), 'server', req.server)
    if known then
      F.grace()
      call('DEL', at('awaited'))
      for _, name in ipairs({'beats', 'gateways'}) do
        for _, id in ipairs(call('ZRANGE', at(name), 0, -1)) do call('SADD', at('awaited'), id) end
      end
      if call('SCARD', at('awaited')) > 0 then
        call('HSET', at('meta'), 'settle', NOW + SETTLE)
        F.due('z:', NOW + SETTLE)
      end
    end
  end
end

function API.compared(req)
  for _, id in ipairs(req.who) do call('SREM', at('awaited'), id) end
  if F.settling() and call('SCARD', at('awaited')) == 0 then F.settled() end
  return F.settling() and true or false
end

function F.settled()
  call('HDEL', at('meta'), 'settle')
  call('DEL', at('awaited'))
  F.undue('z:')
  for _, name in ipairs(call('SMEMBERS', at('pools'))) do F.match(F.pool(name)) end
end

-- This stream lost events that somebody has seen.
function F.lost(job)
  put(job, 'epoch', redis.sha1hex(job.epoch .. NOW .. job.id):sub(1, 32))
end

-- Streams as a reader remembers them: id, epoch, last offset, its attempt (0: not known).
-- Answers for each whether it is not that stream any more.
function API.compare(req)
  local lost = {}
  for index, one in ipairs(req.streams) do
    lost[index] = F.not_the_same(one[1], one[2], one[3], one[4])
  end
  return F.list(lost)
end

function F.not_the_same(id, epoch, offset, attempt)
  if F.is_room(id) then
    local room = F.room_record(id)
    return not room or room.epoch ~= epoch or room.head < offset
  end
  local job = F.job(id)
  if not job or job.epoch ~= epoch then return true end
  local other = job.head < offset
  if not other and attempt > 0 and offset >= job.first then
    local entry = F.entry(job, offset)
    other = not entry or tonumber(entry[1]:match('%d+$')) ~= attempt
  end
  if other then F.lost(job) end
  return other
end

-- Leases as their worker remembers them: id, attempt, last stored offset, last input offset.
function API.compare_leases(req)
  local lost = {}
  local known = F.myself(req) ~= nil
  for index, one in ipairs(req.leases) do
    local job = known and F.job(one[1])
    lost[index] = not job or not F.current(job, req.worker, one[2])
    if not lost[index] and (job.head < one[3] or job.ihead < one[4]) then
      F.lost(job)
      lost[index] = true
    end
  end
  return F.list(lost)
end
