-- What workers and their supervisors say.

function F.changed(pool)
  F.elect(pool)
  F.match(pool)
  F.tell_all('state', pool.id)
end

function F.usable(worker)
  return worker.known == 1 and worker.sessions > 0 and worker.silent == 0 and worker.gone == 0
    and worker.word == ''
end

-- Who may be given work: all regular workers, and as many standbys as regular ones are missing.
function F.elect(pool)
  local regular, spare = {}, {}
  for _, id in ipairs(call('SMEMBERS', at('serving', pool.id))) do
    local worker = F.worker(id)
    if worker and F.usable(worker) then
      local list = worker.standby == 1 and spare or regular
      list[#list + 1] = worker
    end
  end
  put(pool, 'want', max(pool.want, #regular))
  table.sort(spare, function(a, b) return a.order < b.order end)
  for index = 1, min(#spare, max(0, max(1, pool.want) - #regular)) do
    regular[#regular + 1] = spare[index]
  end
  local active, credits, slots, sessions = at('active', pool.id), at('credits', pool.id), 0, 0
  call('DEL', active, credits)
  for _, worker in ipairs(regular) do
    call('SADD', active, worker.id)
    slots, sessions = slots + worker.slots, sessions + worker.sessions
    local free = F.free(worker)
    if free > 0 then call('ZADD', credits, free, worker.id) end
  end
  put(pool, 'active', #regular)
  put(pool, 'slots', slots)
  put(pool, 'credits', sessions)
end

-- ------------------------------------------------------------------------ coming and going

function API.hello(req)
  local old = F.worker(req.worker)
  if old then
    put(old, 'gone', 1)
    F.bury(old)
  end
  call('DEL', at('control', req.worker))
  call('HSET', at('worker', req.worker), 'name', req.worker, 'inc', req.inc)
  POOLS.workers[req.worker] = nil
end

-- The same process on a new connection: whether it is still known here.
function API.rejoin(req)
  return F.myself(req) ~= nil
end

-- The record of the process that asks; nil when it was given up, or another took its name.
function F.myself(req)
  local worker = F.worker(req.worker)
  return worker and worker.gone == 0 and worker.inc == req.inc and worker or nil
end

function API.stage(req, args)
  for _, name in ipairs(call('SMEMBERS', at('pools'))) do
    local listed = false
    for _, wanted in ipairs(req.pools) do listed = listed or wanted == name end
    if not listed and call('HDEL', at('stages', name), req.worker) == 1 then
      F.drop_unused(F.pool(name))
      F.tell_all('state', name)
    end
  end
  for _, name in ipairs(req.pools) do
    F.make_pool(name)
    call('HSET', at('stages', name), req.worker, req.stage .. '\n' .. args[2])
    F.tell_all('state', name)
  end
end

-- A pool that a worker named while it did not know its model's name yet, and nobody else.
function F.drop_unused(pool)
  if call('HLEN', at('stages', pool.id)) > 0 or call('SCARD', at('serving', pool.id)) > 0
    or NOW < pool.expected or F.depth(pool) + pool.running + pool.parked + pool.seq > 0 then
    return
  end
  call('SREM', at('pools'), pool.id)
  F.drop_record(pool)
  POOLS.pools[pool.id] = false
end

function API.register(req, args)
  local worker = F.myself(req)
  if not worker then return false end
  local leaving = req.sessions == 0 and F.usable(worker)
  local first = worker.known == 0
  if first then
    put(worker, 'order', F.meta('order', 1))
    call('ZADD', at('workers'), worker.order, worker.id)
  end
  put(worker, 'known', 1)
  for _, field in ipairs({'slots', 'sessions', 'standby', 'supervised', 'prefix'}) do
    put(worker, field, req[field])
  end
  put(worker, 'pools', table.concat(req.pools, '\n'))
  put(worker, 'pid', req.pid)
  call('ZADD', at('beats'), NOW, worker.id)
  for _, name in ipairs(req.pools) do
    local pool = F.make_pool(name)
    call('SADD', at('serving', name), worker.id)
    call('HSET', at('pool', name), 'info', args[2])
    put(pool, 'assumed', req.assumed[name] or 0)
    if leaving and worker.standby == 0 then put(pool, 'want', max(0, pool.want - 1)) end
    F.changed(pool)
  end
  return true
end

function F.signed(worker)
  for _, name in ipairs(call('SMEMBERS', at('pools'))) do
    if call('SISMEMBER', at('serving', name), worker.id) == 1
      or call('HEXISTS', at('stages', name), worker.id) == 1 then
      local pool = F.pool(name)
      put(pool, 'expected', max(pool.expected, NOW + tonumber(
        call('HGET', at('meta'), 'respawn') or 10000)))
    end
  end
  if worker.gone == 1 and (worker.word ~= '' or worker.supervised == 0) then
    return F.bury(worker)
  end
  for _, name in ipairs(F.lines(worker.pools)) do F.elect(F.pool(name)) end
  F.due('b:' .. worker.id, NOW + WORD)
end

function API.gone(req)
  local worker = F.myself(req)
  if not worker then return end
  put(worker, 'gone', 1)
  F.signed(worker)
end

function API.exited(req)
  local worker = F.worker(req.worker)
  if not worker or worker.word ~= '' then return end
  put(worker, 'word', req.abnormal and 'abnormal' or 'clean')
  call('HSET', worker._key, 'stepping', table.concat(req.stepping, '\n'))
  F.signed(worker)
end

-- It is dead: strikes are counted, its jobs go to others.
function F.bury(worker)
  local struck = {}
  if worker.word == 'abnormal' then
    for _, one in ipairs(F.lines(call('HGET', worker._key, 'stepping') or '')) do
      struck[one] = true
    end
  end
  local held = call('HKEYS', at('own', worker.id))
  local pools = F.lines(worker.pools)
  put(worker, 'gone', 1)
  call('ZREM', at('beats'), worker.id)
  call('ZREM', at('workers'), worker.id)
  F.undue('b:' .. worker.id, 's:' .. worker.id)
  F.leave_pools(worker, pools)
  for _, one in ipairs(held) do
    local id, attempt = one:match('^(.*):(%d+)$')
    local job = F.job(id)
    if job and F.current(job, worker.id, tonumber(attempt)) then F.lose(job, struck[one]) end
  end
  call('DEL', at('own', worker.id), at('behind', worker.id), at('control', worker.id))
  F.drop_record(worker)
  POOLS.workers[worker.id] = false
  for _, name in ipairs(pools) do F.changed(F.pool(name)) end
end

function F.leave_pools(worker, pools)
  local counted = worker.word == 'clean' and worker.sessions > 0 and worker.standby == 0
  for _, name in ipairs(pools) do
    local pool = F.pool(name)
    call('SREM', at('serving', name), worker.id)
    if counted then put(pool, 'want', max(0, pool.want - 1)) end
    F.disown(pool, worker)
    F.elect(pool)
  end
  for _, name in ipairs(call('SMEMBERS', at('pools'))) do
    local stage = call('HGET', at('stages', name), worker.id)
    if stage and stage:match('^[^\n]*') ~= 'failed' then
      call('HDEL', at('stages', name), worker.id)  -- a failed boot stays visible: it says why
      F.tell_all('state', name)
    end
  end
end

function F.lose(job, struck)
  if struck then
    bump(job, 'strikes', 1)
    if job.strikes > EXCLUSIVE_AFTER then
      F.unlease(job)
      F.finish(job, {state = 'failed', code = 'poison',
        message = 'it crashed its worker ' .. job.strikes .. ' times',
        details = '\129' .. pack('strikes', job.strikes)})
      return
    end
  end
  F.put_back(job)
end

-- ----------------------------------------------------------------------------------- beats

function API.beat(req, args)
  local worker = F.myself(req)
  if not worker then return pack(false) end
  if worker.known == 1 then
    call('ZADD', at('beats'), NOW, worker.id)
    call('HSET', worker._key, 'load', args[2])
    if worker.suspect == 1 then put(worker, 'suspect', 0) end
    if worker.silent == 1 then
      put(worker, 'silent', 0)
      for _, name in ipairs(F.lines(worker.pools)) do F.changed(F.pool(name)) end
    end
  end
  if req.cursor > 0 then
    call('XTRIM', at('control', worker.id), 'MINID', '~', req.cursor .. '-0')
  end
  local heads = {}
  if req.full then
    for _, one in ipairs(call('HKEYS', at('own', worker.id))) do
      local id, attempt = one:match('^(.*):(%d+)$')
      local job = F.job(id)
      if job and F.current(job, worker.id, tonumber(attempt)) then
        heads[#heads + 1] = F.frame(id, job.attempt, job.ihead, F.media_delivered(job),
          F.attached(job))
      end
    end
  end
  return array(2) .. pack(worker.ctl) .. raws(heads)
end

function API.control(req)
  local frames = {}
  if not F.myself(req) then return pack(false) end
  for _, entry in ipairs(call('XRANGE', at('control', req.worker), (req.cursor + 1) .. '-0', '+',
      'COUNT', 256)) do
    frames[#frames + 1] = entry[2][2]
  end
  return raws(frames)
end

function API.input(req)
  local job = F.job(req.job)
  if not job or job.attempt ~= req.attempt or job.phase ~= 'running' then return pack(false) end
  local items, upto = F.input(job, max(req.offset, job.ifirst - 1), 256 * 1024)
  return array(3) .. pack(max(req.offset, job.ifirst - 1)) .. raws(items) .. pack(upto < job.ihead)
end

-- ------------------------------------------------------------------------------------ work

function F.current(job, worker, attempt)
  return job.phase == 'running' and job.worker == worker and job.attempt == attempt
end

-- All commits of one turn of a worker's loop: req is a list of them.
-- Each: worker, job, attempt, first offset, consumed (4), model seconds, sizes, window counter,
-- flags (1 tools, 2 usage), faded sizes, terminal event or false, files, lines (see `F.line`).
-- args for each: counts, said, then event, marks and faded event for each event.
-- Answers for each: 1 stored, 0 had been, -1 fenced, -2 a gap, -3 consumed what is not there,
-- -4 the stream is gone.
function API.commit(req, args)
  local answers, at_ = {}, 2
  if F.settling() then die('settling', 'cursors are being compared') end
  for index = 1, #req do
    local one = req[index]
    answers[index] = F.commit(one, args, at_)
    at_ = at_ + 2 + 3 * #one[7]
  end
  return answers
end

function F.commit(req, args, at_)
  local name, id, attempt = req[1], req[2], req[3]
  local job, ended = F.job(id), req[11]
  if not job or not F.current(job, name, attempt) then
    local worker = ended and F.worker(name)
    if worker then F.credit_back(worker, id, attempt) end
    return -1
  end
  local first, sizes, c = req[4], req[7], req[5]
  local count = #sizes
  if count > 0 and first ~= job.head + 1 then
    if first + count - 1 <= job.head then return 0 end
    if first > job.head + 1 then F.lost(job) end  -- what it goes on from is not here any more
    return -2
  end
  if c[1] > job.ihead then return -3 end
  if job.strikes > 0 then put(job, 'strikes', 0) end
  if req[6] > 0 then put(job, 'model', job.model + req[6]) end
  if count > 0 and not F.record(job, req, args, at_, count) then return -4 end
  F.note_blobs(job, req[12])
  F.consume(job, c)
  if count > 0 and (job.span > 0 or F.over_bytes(job)) then F.trim(job, req[8]) end
  F.account(job)
  if ended then
    local worker = F.worker(name)
    F.unlease(job)
    F.over(job, ended)
    F.credit_back(worker, id, attempt)
  elseif job.run > 0 and job.model > job.run + 5 then
    F.finish_by(job, F.overdue('run', job.run))
  end
  return 1
end

function F.record(job, req, args, at_, count)
  local push, out, attempt = {}, at('out', job.id), '-' .. job.attempt
  local head, bytes, marks = job.head, job.obytes, nil
  for index = 1, count do
    local blob, faded, size = args[at_ + 3 * index - 1], args[at_ + 3 * index + 1], req[7][index]
    marks = args[at_ + 3 * index]
    push[index] = blob
    head = head + 1
    bytes = bytes + size
    local line = req[13] and req[13][index] or ''
    if line ~= '' then
      local freed
      blob, size, freed = F.line(job, line, head, {blob, size}, {faded, req[10][index]})
      bytes = bytes - freed
    elseif faded ~= '' then
      bytes = bytes - job.repx
      call('HSET', job._key, 'rep', blob)
      put(job, 'repoff', head)
      put(job, 'repx', size - req[10][index])
      blob = faded
      size = req[10][index]
    end
    local id = call('XADD', out, 'NOMKSTREAM', head .. attempt, 'd', blob, 's', size, 'm', marks)
    if not id then return false end
  end
  put(job, 'head', head)
  put(job, 'obytes', bytes)
  put(job, 'marks', marks)
  put(job, 'counts', args[at_])
  if req[9] % 2 == 1 then put(job, 'tools', 1) end
  if req[9] >= 2 then put(job, 'answered', 1) end
  local said = args[at_ + 1]
  if said ~= '' then
    local size = call('APPEND', at('said', job.id), said)
    if size > 4 * SAID_BYTES then
      call('SET', at('said', job.id), call('GETRANGE', at('said', job.id), -2 * SAID_BYTES, -1))
    end
  end
  F.push_output(job, push)
  return true
end

-- A line of a cell's output, of which only some give way. `how`: 1 where it replaces the one
-- before it on its line, 1 where the next may replace it, and the line. `whole` and `faded` are
-- an event and its size. What goes into the stream never changes: of one that may be replaced
-- that is the faded one. Returns it, its size, and the bytes that are not there any more.
function F.line(job, how, offset, whole, faded)
  local key, line, freed = at('shown', job.id), 'o:' .. how:sub(3), 0
  local before = job.shown > 0 and call('HGET', key, line)
  if before then
    call('HDEL', key, line)
    if how:sub(1, 1) == '1' then freed = F.unshow(job, tonumber(before)) end
  end
  if how:sub(2, 2) ~= '1' then return whole[1], whole[2], freed end
  call('HSET', key, line, offset, offset, whole[1], 'x:' .. offset, whole[2] - faded[2])
  put(job, 'shown', offset)
  return faded[1], faded[2], freed
end

function API.park(req)
  local worker, job = F.worker(req.worker), F.job(req.job)
  if not worker then return end
  if job and F.current(job, worker.id, req.attempt) then F.put_back(job) end
  F.credit_back(worker, req.job, req.attempt)
end
