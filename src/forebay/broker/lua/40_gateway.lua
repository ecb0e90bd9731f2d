-- What a gateway may ask.

-- ------------------------------------------------------------------------------- new jobs

local function loading(pool)
  local count = 0
  for _, stage in ipairs(call('HVALS', at('stages', pool.id))) do
    local word = stage:match('^[^\n]*')
    if word ~= 'failed' and word ~= 'ready' then count = count + 1 end
  end
  return count
end

function F.known(req)
  local job = F.job(req.id)
  if job or req.st.name == '' then return job end
  local id = call('HGET', at('names'), F.name_of(req.st))
  job = id and F.job(id)
  return job and not OVER[job.phase] and job or nil
end

function F.rank_of_new(pool, tenant, head_start)
  return call('ZCOUNT', at('queue', pool.id), '-inf', F.tag(pool, tenant) - head_start)
end

-- The job gate: the facts that `core.admission.refuse_job` is told, when it must refuse.
function F.gate(req, pool)
  local st, limits = req.st, req.limits
  local facts = {
    workers = pool.active + loading(pool) + (NOW < pool.expected and 1 or 0),
    live = tonumber(call('HGET', at('meta'), 'live') or 0),
    mine = tonumber(call('HGET', at('tenants'), st.tenant) or 0),
    queued = F.depth(pool), free = F.free_in(pool), position = 1,
    used = tonumber(call('HGET', at('meta'), 'used') or 0),
    rate = pool.drain_at > 0 and pool.drain_r * math.exp((pool.drain_at - NOW) / 30000) or 0,
  }
  local crowded = facts.used >= limits.store or facts.workers < 1
    or (limits.mine and facts.mine >= limits.mine) or facts.live >= limits.live
  local at_once = st.aff ~= ''
    and F.may_run(pool, st.aff, st.beside == 1, at('credits', pool.id))
  local waits = not req.promised and not at_once and not (facts.free > 0 and facts.queued == 0)
  if waits then
    facts.position = F.rank_of_new(pool, st.tenant, st.head_start) + 1
    local eta = F.eta(pool, facts.position)
    facts.late = req.items and eta ~= nil and eta * 1000 > st.queue
  end
  if crowded or (waits and (facts.queued >= limits.queue or facts.late)) then
    return array(9) .. pack(facts.workers, facts.live, facts.mine, facts.queued, facts.free,
      facts.position, facts.used, facts.rate) .. F.stats(pool)
  end
end

-- Items that no stream may hold are refused before anything is recorded.
function F.check_items(st, req)
  if req.biggest > st.item then
    die('too_large', 'one input item has ' .. req.biggest .. ' bytes, expected no more than '
      .. st.item)
  end
  if req.torn then die('bad_request', 'the input has ended') end
end

function API.submit(req, args)
  local job = F.known(req)
  if job then return {1, F.view(job)} end
  F.check_items(req.st, req)
  local st = req.st
  local pool = F.pool(st.pool)
  if not pool then
    die('model_not_found', 'no pool is called ' .. st.pool)
  end
  if F.settling() then die('settling', 'cursors are being compared') end
  local refused = F.gate(req, pool)
  if refused then return {0, refused} end
  F.birth(req, args)
  job = F.job(req.id)
  F.note_blobs(job, req.files)
  if st.total then F.due('t:' .. job.id, NOW + st.total) end
  for index = 1, #req.sizes do
    bump(job, 'ihead', 1)
    bump(job, 'icum', req.sizes[index])
    call('XADD', at('inp', job.id), job.ihead .. '-0', 'd', args[3 + index], 'c', job.icum)
  end
  if req.ended then put(job, 'iend', 1) end
  put(job, 'seq', req.seq or 0)
  put(job, 'units', max(req.prompts or 0, req.tunits or 0))
  F.account(job)
  put(job, 'sub', req.gateway)
  F.watch(job)
  if req.gateway == '' then F.leave_in(job, st.orphan) end
  F.feed(job)
  return {1, F.view(job)}
end

function F.birth(req, args)
  local st = req.st
  call('HSET', at('job', req.id), 'spec', args[2], 'st', args[3])
  F.new_job(req.id, {
    phase = 'idle', pool = st.pool, epoch = req.epoch, rec = st.rec, whole = st.whole,
    run = st.run or 0, aff = st.aff, beside = st.beside, first = 1, ifirst = 1, created = NOW,
    toldeta = -1, span = st.span or 0, wbytes = st.wbytes or 0, keepund = st.keepund,
  })
  F.new_output({id = req.id})
  if st.name ~= '' then call('HSET', at('names'), F.name_of(st), req.id) end
  call('ZADD', at('jobs'), F.meta('born', 1), req.id)
  F.meta('live', 1)
  call('HINCRBY', at('tenants'), st.tenant, 1)
end

-- ------------------------------------------------------------------------------- attached

function API.attach(req)
  local job = F.need(req.job)
  local number = false
  if job.sub == req.gateway then put(job, 'sub', '') end
  if req.write then
    if job.wg ~= '' then
      call('PUBLISH', at('push', job.wg), F.frame('superseded', job.id, job.num))
    end
    bump(job, 'num', 1)
    put(job, 'base', job.cpos)
    number = job.num
    put(job, 'wg', req.gateway)
  else
    call('HINCRBY', at('readers', job.id), req.gateway, 1)
    bump(job, 'readers', 1)
  end
  put(job, 'exposed', max(job.exposed, job.head))
  F.watch(job)
  return array(2) .. pack(number) .. F.view(job)
end

function F.drop_reader(job, gateway, count)
  local key = at('readers', job.id)
  local left = tonumber(call('HGET', key, gateway) or 0)
  count = min(count, left)
  if count < 1 then return end
  bump(job, 'readers', -count)
  if left > count then
    call('HSET', key, gateway, left - count)
  else
    call('HDEL', key, gateway)
  end
end

function API.detach(req)
  local job = F.job(req.job)
  if not job then return end
  if req.number then
    if job.wg ~= req.gateway or job.num ~= req.number then return end
    put(job, 'wg', '')
  else
    F.drop_reader(job, req.gateway, 1)
  end
  F.left(job)
end

-- ---------------------------------------------------------------------------------- input

local function may_feed(job, req)
  if OVER[job.phase] then die('bad_request', 'job ' .. job.id .. ' is ' .. job.phase) end
  F.check_items(F.static(job), req)
  local held = F.unheard(job)
  local limit = F.static(job).hard
  if held > 0 and held + req.bytes > limit then
    die('too_large', (held + req.bytes) .. ' bytes of input are waiting, expected no more than '
      .. limit)
  end
end

local function not_ended(job, req)
  if #req.sizes > 0 and job.iend == 1 then die('bad_request', 'the input has ended') end
end

function API.append(req, args)
  local job = F.need(req.job)
  if job.rid == req.rid then return F.ack(job, 0) end  -- asked again
  if F.settling() then die('settling', 'cursors are being compared') end
  if job.ihead < req.have then die('state_lost', 'the store lost input of job ' .. job.id) end
  may_feed(job, req)
  if req.number ~= job.num then
    die('fenced', 'attachment ' .. req.number .. ' writes, the holder is ' .. job.num)
  end
  -- Positions are kept one higher, so that 0 means: none was ever recorded.
  local pos = req.pos
  if pos and job.base > 0 and pos + 1 <= job.base then
    return F.ack(job, #req.sizes)
  end
  not_ended(job, req)
  if pos and pos + 1 > job.cpos then put(job, 'cpos', pos + 1) end
  if req.units then put(job, 'units', max(job.units, req.units)) end
  put(job, 'rid', req.rid)
  F.store_input(job, req, args, 2)
  return F.ack(job, 0)
end

function API.room(req)
  local job = F.job(req.job)
  if not job or OVER[job.phase] or not F.over_bound(job) then return false end
  put(job, 'over', 1)
  return true
end

-- ---------------------------------------------------------------------------------- pipes

local OFFER = 2000  -- ms in which whoever was offered an orphan should have taken it over

function F.pipe_blob(id)
  local values = call('HMGET', at('pipe', id), 'source', 'target', 'map', 'copied')
  return F.frame(id, values[1], values[2], values[3], tonumber(values[4]))
end

function API.pipe(req)
  local key, source = at('pipe', req.id), nil
  if call('EXISTS', key) == 0 then
    source = F.need(req.source)
    local target = not F.is_room(req.target) and F.need(req.target)
    call('HSET', key, 'source', req.source, 'target', req.target, 'map', req.map,
      'copied', req.copied, 'done', 0, 'carrier', '')
    call('SADD', at('feeds', source.id), req.id)
    put(source, 'feeds', 1)
    if target then
      call('SADD', at('feeders', target.id), req.id)
      put(target, 'feeders', 1)
    end
    if target and target.phase == 'cancelled' then
      F.finish_by(source, {state = 'cancelled', message = 'what it fed is over'})
    end
  end
  if req.gateway ~= '' then call('SREM', at('orphans'), req.id) end
  F.carry(req.id, req.gateway)
  return F.pipe_blob(req.id)
end

function F.carry(pipe, gateway)
  if gateway == '' then return end
  local key = at('pipe', pipe)
  local source = F.job(call('HGET', key, 'source'))
  if not source then return end
  call('HSET', key, 'carrier', gateway)
  F.watch(source)
end

-- Whoever is given an orphan takes it over by `pipe`. Until then it stays one: an answer may be
-- lost, so the same gateway is told again, and another one after a while.
function API.pipes(req)
  local taken = {}
  for _, pipe in ipairs(call('SMEMBERS', at('orphans'))) do
    local key = at('pipe', pipe)
    local values = call('HMGET', key, 'done', 'source', 'carrier', 'offered')
    if values[1] ~= '0' or not F.job(values[2]) then
      call('SREM', at('orphans'), pipe)
    elseif values[3] == req.gateway or NOW >= (tonumber(values[4]) or 0) then
      F.carry(pipe, req.gateway)
      call('HSET', key, 'offered', NOW + OFFER)
      taken[#taken + 1] = F.pipe_blob(pipe)
    end
  end
  return raws(taken)
end

function F.is_room(id)
  return id:sub(1, 5) == 'room:'
end

-- What a pipe brought is in its room already, which knows how far it is; the record is kept so
-- that somebody goes on carrying it.
function F.into_room(key, req, copied)
  if req.at > copied then call('HSET', key, 'copied', req.at) end
  if req.done then call('HSET', key, 'done', 1) end
  return F.frame(0, req.at + 1, 0, 0, false)
end

function API.copy(req, args)
  local key = at('pipe', req.pipe)
  local values = call('HMGET', key, 'target', 'copied')
  if not values[1] then die('not_found', 'no pipe ' .. req.pipe) end
  if F.is_room(values[1]) then return F.into_room(key, req, tonumber(values[2])) end
  local job = F.need(values[1])
  may_feed(job, req)
  if req.at <= tonumber(values[2]) then return F.ack(job, #req.sizes) end
  not_ended(job, req)
  call('HSET', key, 'copied', req.at)
  if req.done then call('HSET', key, 'done', 1) end
  F.store_input(job, req, args, 2)
  return F.ack(job, 0)
end

-- ---------------------------------------------------------------------------------- reading

function F.refuse(reason, text)
  die('resume_not_available', reason .. '|' .. text)
end

-- `stream`: whatever has a head and a first.
function F.refuse_offset(stream, offset)
  if offset > stream.head then
    F.refuse('ahead_of_head', 'asked for what follows offset ' .. offset .. ', the last is '
      .. stream.head)
  end
  if offset < stream.first - 1 then
    F.refuse('window_expired', 'asked for what follows offset ' .. offset
      .. ', the oldest kept is ' .. stream.first)
  end
end

function F.readable(req)
  local job = F.job(req.job) or F.refuse('unknown', 'no stream of job ' .. req.job)
  if req.epoch and req.epoch ~= job.epoch then
    F.refuse('state_lost', 'the stream was lost and begun anew')
  end
  return job
end

function F.after(job, offset, limit)
  F.refuse_offset(job, offset)
  local events = {}
  if offset < job.head then
    local page = call('XRANGE', at('out', job.id), (offset + 1) .. '-0', '+', 'COUNT', limit)
    for index, entry in ipairs(page) do
      events[index] = entry[2][2]
      offset = offset + 1
      if offset == job.repoff then events[index] = call('HGET', job._key, 'rep') end
      if offset <= job.shown then
        events[index] = call('HGET', at('shown', job.id), offset) or events[index]
      end
    end
    if #page == 0 then die('state_lost', 'the output of job ' .. job.id .. ' is gone') end
  end
  if offset > job.exposed then put(job, 'exposed', offset) end
  return raws(events)
end

function API.read(req)
  return F.after(F.readable(req), req.offset, req.limit)
end

function F.mark_at(job, offset, name)
  return unpack_(F.entry(job, offset)[2][6])[name] or 0
end

-- The first kept offset from which `name` is over `value` (head + 1 if none).
function F.passes(job, name, value)
  local low, high = job.first, job.head + 1
  while low < high do
    local middle = floor((low + high) / 2)
    if F.mark_at(job, middle, name) > value then high = middle else low = middle + 1 end
  end
  return low
end

function API.mark(req)
  local job = F.readable(req)
  local name, value = req.counter, req.value
  local total = job.marks ~= '' and unpack_(job.marks)[name] or 0
  if value > total then
    F.refuse('ahead_of_head', 'asked for what follows ' .. value .. ' ' .. name .. ', there are '
      .. total)
  end
  local first = F.passes(job, name, value)
  if first == job.first and job.first > 1 then
    -- Whether anything before it was dropped that passes the value too, its own start says.
    if value < (F.static(job).wmark == name and job.fm or F.mark_at(job, job.first, name)) then
      F.refuse('window_expired', 'asked for what follows ' .. value .. ' ' .. name)
    end
  end
  -- Events without the counter that stand at exactly the value come too.
  local last = first - 1
  if last >= job.first then
    last = F.passes(job, name, F.mark_at(job, last, name) - 1)
    if F.mark_at(job, last, name) == 0 then last = job.first - 1 end
  end
  return F.after(job, max(last, job.first - 1), req.limit)
end

function API.delivered(req)
  for id, offset in pairs(req.positions) do
    local job = F.job(id)
    if job then
      offset = min(offset, job.head)
      if offset > job.delivered then
        local entry = F.entry(job, offset)
        put(job, 'delivered', offset)
        if entry then put(job, 'dmarks', entry[2][6]) end
        if job.span > 0 or job.wbytes > 0 then F.trim(job, F.window_total(job)) end
        F.account(job)
        F.tell_delivered(job)
      end
    end
  end
end

function F.window_total(job)
  local name = F.static(job).wmark
  return name and job.marks ~= '' and unpack_(job.marks)[name] or 0
end

-- Heads of jobs that this gateway watches; false for one that is gone or not watched.
function API.heads(req)
  call('ZADD', at('gateways'), NOW, req.gateway)
  local heads = {}
  for index, id in ipairs(req.jobs) do
    local stream = F.is_room(id) and F.room_record(id) or F.job(id)
    heads[index] = stream and F.frame(stream.epoch, stream.head) or pack(false)
  end
  return raws(heads)
end

-- ------------------------------------------------------------------------------ everything

function API.find(req)
  local id = call('HGET', at('names'), req.tenant .. '\0' .. req.dialect .. '\0' .. req.name)
  local job = id and F.job(id)
  return job and F.view(job) or pack(false)
end

function API.status(req)
  return F.view(F.need(req.job))
end

function API.finish(req, args)
  local job = F.need(req.job)
  req.ended.details = args[2] ~= '' and args[2] or nil
  F.finish_by(job, req.ended)
  return F.view(job)
end

-- Before its window has passed: its client deleted it.
function API.forget(req)
  local job = F.job(req.job)
  if job and job.ended == 0 then
    die('bad_request', 'job ' .. job.id .. ' is ' .. job.phase .. ', expected one that is over')
  end
  local letter = call('ZREM', at('dead'), req.job) == 1
  call('DEL', at('letter', req.job))
  if job then
    F.forget(job)
  elseif letter then
    F.release_blobs({id = req.job})
  end
end

function API.jobs(req)
  local views = {}
  if req.dead then
    for _, id in ipairs(call('ZREVRANGE', at('dead'), 0, req.limit - 1)) do
      views[#views + 1] = call('HGET', at('letter', id), 'view')
    end
  else
    for _, id in ipairs(call('ZREVRANGE', at('jobs'), 0, req.limit - 1)) do
      local job = F.job(id)
      if job then views[#views + 1] = F.view(job) end
    end
  end
  return raws(views)
end

-- What `retry` needs: view, consumed, the offset before the first item, the items.
function API.letter(req)
  local values = call('HMGET', at('letter', req.job), 'view', 'c', 'start', 'items')
  if values[1] then
    return array(4) .. values[1] .. values[2] .. pack(tonumber(values[3])) .. values[4]
  end
  local job = F.need(req.job)
  if job.phase ~= 'failed' then
    die('bad_request', 'job ' .. job.id .. ' is ' .. job.phase .. ', expected failed')
  end
  local start = max(F.keeps_input(job) and 0 or job.c0, job.ifirst - 1)
  local consumed = F.keeps_input(job) and F.frame(0, 0, 0, 0)
    or F.frame(job.c0, job.c1, job.c2, job.c3)
  return array(4) .. F.view(job) .. consumed .. pack(start)
    .. raws((F.input(job, start, 16 * 1024 * 1024)))
end

function API.unbury(req)
  call('ZREM', at('dead'), req.job)
  call('DEL', at('letter', req.job))
  local files = req.files or {}  -- named by the new job's input now
  if #files > 0 then call('SREM', at('blobs', req.job), unpack(files)) end
end

function API.expect(req)
  for _, name in ipairs(req.pools) do
    local pool = F.make_pool(name)
    put(pool, 'expected', max(pool.expected, NOW + req.ms))
    F.tell_all('state', name)
  end
end

-- A gateway leaves (or died): whatever was attached through it is not any more.
function F.gateway_gone(gateway, most)
  local left = 0
  for _, id in ipairs(call('SRANDMEMBER', at('watched', gateway), most)) do
    local job = F.job(id)
    left = left + 1
    if not job then
      call('SREM', at('watched', gateway), id)
    else
      if job.wg == gateway then put(job, 'wg', '') end
      if job.sub == gateway then put(job, 'sub', '') end
      F.drop_reader(job, gateway, 1e9)
      if job.feeds > 0 then
        for _, pipe in ipairs(call('SMEMBERS', at('feeds', id))) do
          local values = call('HMGET', at('pipe', pipe), 'carrier', 'done')
          if values[1] == gateway then
            call('HSET', at('pipe', pipe), 'carrier', '')
            if values[2] == '0' then call('SADD', at('orphans'), pipe) end
          end
        end
      end
      if OVER[job.phase] then F.watch(job) else F.left(job) end
    end
  end
  return left
end

function API.leave(req)
  F.leave_rooms(req.gateway)
  call('ZREM', at('gateways'), req.gateway)
  F.due('g:' .. req.gateway, NOW)
end

-- --------------------------------------------------------------------------- state of all

function F.pool_state(id)
  local pool = F.pool(id)
  local stages, list = {}, call('HGETALL', at('stages', id))
  for index = 1, #list, 2 do
    stages[#stages + 1] = pack(list[index]) .. list[index + 1]:match('^[^\n]*\n(.*)$')
  end
  local depth = F.depth(pool)
  -- At most 64 places of the queue: enough to say where a newcomer would stand.
  local scores, step = {}, math.ceil(depth / 64)
  for rank = 0, depth - 1, max(1, step) do
    local score = call('ZRANGE', at('queue', id), rank, rank, 'WITHSCORES')[2]
    scores[#scores + 1] = tonumber(score)
  end
  local fair = {}
  local tags = call('HGETALL', at('fair', id))
  for index = 1, min(#tags, 2000), 2 do
    local tag = tonumber(tags[index + 1])
    if tag > pool.V then
      fair[#fair + 1] = pack(tags[index], tag)
    elseif #tags > 2000 then
      call('HDEL', at('fair', id), tags[index])  -- no longer matters
    end
  end
  return table.concat({
    array(19),
    pack(id, call('SCARD', at('serving', id)), pool.active, pool.slots, F.free_in(pool), depth,
      pool.running, pool.parked, pool.detached),
    pack(pool.rtf_c > 0 and pool.rtf_m or false, pool.model_c > 0 and pool.model_m or false),
    pack(pool.drain_at > 0 and pool.drain_r * math.exp((pool.drain_at - NOW) / 30000) or false),
    F.stats(pool),
    map_of(call('HGET', at('pool', id), 'info') or ''),
    array(#stages * 2), table.concat(stages),
    pack(pool.V, NOW < pool.expected), F.list(scores), array(#fair * 2) .. table.concat(fair),
  })
end

function F.worker_state(id)
  local worker = F.worker(id)
  if not worker or worker.known == 0 then return nil end
  return table.concat({
    array(10), pack(id), F.list(F.lines(worker.pools)),
    pack(worker.slots, worker.sessions, worker.held, worker.standby == 1, worker.silent == 1,
      worker.rtf_c > 0 and worker.rtf_m or false),
    map_of(call('HGET', at('worker', id), 'load') or ''),
    pack(tonumber(call('HGET', at('worker', id), 'pid') or 0)),
  })
end

function API.state()
  local pools, workers = {}, {}
  for _, id in ipairs(call('SMEMBERS', at('pools'))) do pools[#pools + 1] = F.pool_state(id) end
  for _, id in ipairs(call('ZRANGE', at('workers'), 0, -1)) do
    workers[#workers + 1] = F.worker_state(id)
  end
  return array(3) .. raws(pools) .. raws(workers)
    .. pack(tonumber(call('HGET', at('meta'), 'live') or 0))
end
