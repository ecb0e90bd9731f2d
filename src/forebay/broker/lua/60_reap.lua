-- What time brings. Any gateway may ask; for a moment one does it for all.

function F.overdue(which, limit_s)
  local words_ = {
    queue = 'no worker was free within ' .. limit_s .. ' s',
    run = 'the model worked for more than ' .. limit_s .. ' s',
    total = 'not finished within ' .. limit_s .. ' s',
  }
  return {state = 'expired', code = 'deadline_exceeded', message = words_[which], retryable = true,
    details = '\130' .. pack('deadline', which, 'limit_s', limit_s)}
end

local HAPPENS = {}
local RELEASES  -- rooms whose held messages must go on: the gateway that asks does it

function HAPPENS.w(id)  -- a wait is over
  local job = F.job(id)
  if job and job.phase == 'queued' then
    local which, limit = F.waited(job)
    F.finish_by(job, F.overdue(which, limit / 1000))
  end
end

function HAPPENS.t(id)  -- total deadline
  local job = F.job(id)
  if job then F.finish_by(job, F.overdue('total', F.static(job).total / 1000)) end
end

function HAPPENS.a(id)  -- nobody came back
  local job = F.job(id)
  if job and not F.attached(job) then
    F.finish_by(job, {state = 'cancelled',
      message = 'the client was away for ' .. job.detach / 1000 .. ' s'})
  end
end

function HAPPENS.f(id)  -- the window after the end has passed
  local job = F.job(id)
  if job then F.forget(job) else call('ZREM', at('jobs'), id) end
end

function HAPPENS.b(id)  -- the other sign of a death did not come
  local worker = F.worker(id)
  if worker and (worker.gone == 1 or worker.word ~= '') then F.bury(worker) end
end

function HAPPENS.p(id)  -- tell a queue where it stands
  local pool = F.pool(id)
  if pool and pool.places > 0 then F.tell_places(pool) end
end

function HAPPENS.h(id)  -- what a room holds has waited long enough
  RELEASES[#RELEASES + 1] = id
  F.due('h:' .. id, NOW + 300)  -- should that gateway not come to it
end

function HAPPENS.r(id)  -- a room may be old
  F.reap_room(id)
end

function HAPPENS.z()  -- whoever has not compared by now is not waited for
  F.settled()
end

function HAPPENS.g(id)  -- a gateway is gone
  F.leave_rooms(id)
  if F.gateway_gone(id, 128) > 0 then F.due('g:' .. id, NOW + 2) end
end

function HAPPENS.s()  -- a second look at a worker that was silent
end

-- Not heard of for too long: its jobs go to others. It may come back.
function F.silence(worker)
  call('ZREM', at('beats'), worker.id)
  put(worker, 'silent', 1)
  put(worker, 'suspect', 0)
  local pools = F.lines(worker.pools)
  for _, name in ipairs(pools) do F.elect(F.pool(name)) end
  for _, one in ipairs(call('HKEYS', at('own', worker.id))) do
    local id, attempt = one:match('^(.*):(%d+)$')
    local job = F.job(id)
    if job and F.current(job, worker.id, tonumber(attempt)) then
      F.control(worker, 'lost', pack(id, job.attempt), 2)
      F.put_back(job)
    end
  end
  for _, name in ipairs(pools) do F.changed(F.pool(name)) end
end

function F.check_beats()
  for _, id in ipairs(call('ZRANGEBYSCORE', at('beats'), '-inf', NOW - TTL, 'LIMIT', 0, 64)) do
    local worker = F.worker(id)
    if not worker then
      call('ZREM', at('beats'), id)
    elseif worker.suspect > 0 and NOW - worker.suspect >= SECOND_LOOK then
      F.silence(worker)
    elseif worker.suspect == 0 then
      -- Beats may be waiting in the sockets: read them before giving anybody up.
      put(worker, 'suspect', NOW)
      F.due('s:' .. id, NOW + SECOND_LOOK)
    end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', at('gateways'), '-inf', NOW - GATEWAY_TTL)) do
    call('ZREM', at('gateways'), id)
    F.due('g:' .. id, NOW)
  end
end

-- Everybody has a full time-to-live again: the store, or everybody who reaps, stood still.
function F.grace()
  for _, key in ipairs({at('beats'), at('gateways')}) do
    for _, id in ipairs(call('ZRANGE', key, 0, -1)) do call('ZADD', key, NOW, id) end
  end
end

function API.tick(req)
  local values = call('HMGET', at('meta'), 'ticker', 'ticked')
  local ticked = tonumber(values[2]) or 0
  if values[1] and values[1] ~= req.gateway and NOW - ticked < 200 then return {100, 0} end
  RELEASES = {}
  local paused = ticked > 0 and NOW - ticked > PAUSE
  if paused then F.grace() end
  call('HSET', at('meta'), 'ticker', req.gateway, 'ticked', NOW, 'respawn', req.respawn)
  local due = call('ZRANGEBYSCORE', at('due'), '-inf', NOW, 'LIMIT', 0, 128)
  for _, what in ipairs(due) do
    -- One that came earlier may have made another one pointless.
    if call('ZREM', at('due'), what) == 1 then HAPPENS[what:sub(1, 1)](what:sub(3)) end
  end
  F.check_beats()
  local next_ = call('ZRANGE', at('due'), 0, 0, 'WITHSCORES')[2]
  local wait = next_ and max(0, tonumber(next_) - NOW) or 100
  return {floor(min(100, wait)), paused and 1 or 0, unpack(RELEASES)}
end

-- -------------------------------------------------------------------------- the entry points

local function entry(name)
  return function(keys, args)
    boot()
    P, NOW = keys[1], clock()
    LOADED, POOLS = {}, {jobs = {}, workers = {}, pools = {}}
    local done, answer = pcall(API[name], unpack_(args[1]), args)
    if not done then
      if type(answer) == 'table' and answer.code then
        return redis.error_reply('FB ' .. answer.code .. ' ' .. answer.message)
      end
      error(answer, 0)
    end
    flush()
    return answer
  end
end
