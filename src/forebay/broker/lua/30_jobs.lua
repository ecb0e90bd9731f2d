-- A job's streams, who is attached to it, how it leaves a worker, and how it ends.

function F.attached(job)
  return job.wg ~= '' or job.readers > 0 or job.sub ~= ''
end

function F.keeps_input(job)
  return job.rec == 'c'
end

-- ----------------------------------------------------------------------------------- input

-- Bytes and items that nobody has worked on yet.
function F.unheard(job)
  if F.keeps_input(job) and job.c0 >= job.ihead then return 0, 0 end
  local taken = max(job.c0, job.c2, job.ifirst - 1)
  return job.icum - job.tcum, job.ihead - taken
end

function F.is_behind(job)
  local limit = F.static(job).behind
  return limit ~= nil and F.unheard(job) > limit
end

function F.over_bound(job)
  local st = F.static(job)
  local size, items = F.unheard(job)
  return size > st.in_bytes or (st.in_items ~= nil and items > st.in_items)
end

function F.cumulated(job, offset)
  if offset >= job.ihead then return job.icum end
  local entry = call('XRANGE', at('inp', job.id), offset .. '-0', offset .. '-9007199254740991')[1]
  return entry and tonumber(entry[2][4]) or job.dcum
end

-- What was consumed moves: input behind it goes, and writers that wait are told.
function F.consume(job, c)
  if not (c[1] > job.c0 or (c[1] == job.c0 and (c[2] > job.c1
      or (c[2] == job.c1 and c[3] > job.c2)))) then
    return
  end
  local before = max(job.c0, job.c2)
  put(job, 'c0', c[1])
  put(job, 'c1', c[2])
  put(job, 'c2', c[3])
  put(job, 'c3', c[4])
  local taken = max(c[1], c[3])
  if taken > before then put(job, 'tcum', F.cumulated(job, taken)) end
  if not F.keeps_input(job) and c[1] >= job.ifirst then
    put(job, 'dcum', c[1] == taken and job.tcum or F.cumulated(job, c[1]))
    F.drop_input(job, c[1])
  end
  F.room(job)
  if job.catching == 1 and not F.is_behind(job) then
    put(job, 'catching', 0)
    call('SREM', at('behind', job.worker), job.id)
    local worker = F.worker(job.worker)
    F.credits(worker)
    for _, name in ipairs(F.lines(worker.pools)) do F.match(F.pool(name)) end
  end
end

function F.drop_input(job, offset)
  offset = min(offset, job.ihead)
  call('XTRIM', at('inp', job.id), 'MINID', '=', (offset + 1) .. '-0')
  put(job, 'ifirst', max(job.ifirst, offset + 1))
end

function F.room(job)
  if job.over == 1 and (OVER[job.phase] or not F.over_bound(job)) then
    put(job, 'over', 0)
    F.tell(job, 'room', job.id)
  end
end

function F.store_input(job, req, args, first_arg)
  F.note_blobs(job, req.files)
  local inp, push = at('inp', job.id), {}
  local first = job.ihead + 1
  for index, size in ipairs(req.sizes) do
    local item = args[first_arg + index - 1]
    bump(job, 'ihead', 1)
    bump(job, 'icum', size)
    call('XADD', inp, job.ihead .. '-' .. job.num, 'd', item, 'c', job.icum)
    push[index] = item
  end
  if req.ended then put(job, 'iend', 1) end
  put(job, 'seq', max(job.seq, req.seq or 0))
  put(job, 'units', max(job.units + (req.prompts or 0), req.tunits or 0))
  F.account(job)
  if job.phase == 'running' then
    if #push > 0 then
      F.hint(job.worker, array(6) .. pack('in', 0, job.id, job.attempt, first) .. raws(push))
    end
  else
    F.feed(job)
  end
end

function F.ack(job, repeats)
  local over = F.over_bound(job)
  if over then put(job, 'over', 1) end
  return F.frame(job.ihead, job.cpos, job.units, repeats, over)
end

-- ---------------------------------------------------------------------------------- output

function F.account(job)
  local size = job.obytes + job.icum - job.dcum + ENTRY_BYTES
  -- Small changes are counted together, so that not every commit writes the shard's total.
  if math.abs(size - job.acc) < ENTRY_BYTES and not OVER[job.phase] then return end
  F.meta('used', floor(size - job.acc))
  put(job, 'acc', size)
end

function F.new_output(job)
  local out = at('out', job.id)
  call('DEL', out)
  call('XADD', out, '0-1', 'd', '')
  call('XDEL', out, '0-1')
end

-- Append one encoded event; `die`s when the stream is gone.
function F.append(job, blob, size, marks)
  bump(job, 'head', 1)
  local id = call('XADD', at('out', job.id), 'NOMKSTREAM', job.head .. '-' .. job.attempt,
    'd', blob, 's', size, 'm', marks)
  if not id then die('state_lost', 'the output of job ' .. job.id .. ' is gone') end
  bump(job, 'obytes', size)
end

function F.push_output(job, blobs)
  local watch = job.watch
  if watch == '' then return end
  put(job, 'exposed', job.head)
  local frame = '\149' .. pack('out', job.id, job.epoch, job.attempt) .. raws(blobs)
  if not watch:find('\n', 1, true) then
    call('PUBLISH', at('push', watch), frame)
    return
  end
  for gateway in job.watch:gmatch('[^\n]+') do
    call('PUBLISH', at('push', gateway), frame)
  end
end

-- Apply the window. `total`: the window's counter at the head. The newest always stays.
function F.trim(job, total)
  local limit = job.head - 1
  if job.keepund == 1 then limit = min(limit, job.delivered) end
  local over = job.span > 0 and total - job.span or -1
  if limit < job.first or not (F.over_bytes(job) or over >= job.fm) then return end
  local out, drop, mark = at('out', job.id), job.first - 1, F.static(job).wmark
  local open = true
  while open do
    local page = call('XRANGE', out, (drop + 1) .. '-0', '+', 'COUNT', 16)
    open = #page == 16
    for _, entry in ipairs(page) do
      local fields = entry[2]
      local value = mark and (unpack_(fields[6])[mark] or 0) or 0
      put(job, 'fm', value)
      if drop + 1 > limit or not (F.over_bytes(job) or (job.span > 0 and value <= over)) then
        open = false
        break
      end
      drop = drop + 1
      bump(job, 'obytes', -tonumber(fields[4]) - F.unshow(job, drop))
    end
  end
  if drop >= job.first then
    put(job, 'first', drop + 1)
    call('XTRIM', out, 'MINID', '=', (drop + 1) .. '-0')
  end
end

-- Forget what is shown at `offset` in place of the stream's entry; how many bytes it was more.
function F.unshow(job, offset)
  if offset > job.shown then return 0 end
  local key = at('shown', job.id)
  local more = tonumber(call('HGET', key, 'x:' .. offset) or 0)
  call('HDEL', key, offset, 'x:' .. offset)
  return more
end

function F.over_bytes(job)
  return job.wbytes > 0 and job.obytes > job.wbytes
end

function F.entry(job, offset)
  return call('XRANGE', at('out', job.id), offset .. '-0', offset .. '-9007199254740991')[1]
end

function F.media_delivered(job)
  if job.dmarks == '' then return 0 end
  local marks = unpack_(job.dmarks)
  return marks.samples or marks.chars or 0
end

function F.tell_delivered(job)
  if job.phase ~= 'running' then return end
  F.hint(job.worker, F.frame('delivered', 0, job.id, job.attempt, F.media_delivered(job),
    F.attached(job)))
end

-- -------------------------------------------------------------------------------- watchers

function F.watch(job)
  local seen, list = {}, {}
  local function add(gateway)
    if gateway and gateway ~= '' and not seen[gateway] then
      seen[gateway] = true
      list[#list + 1] = gateway
    end
  end
  add(job.wg)
  add(job.sub)
  if job.readers > 0 then
    for _, gateway in ipairs(call('HKEYS', at('readers', job.id))) do add(gateway) end
  end
  if job.feeds > 0 then
    for _, pipe in ipairs(call('SMEMBERS', at('feeds', job.id))) do
      local values = call('HMGET', at('pipe', pipe), 'carrier', 'done')
      if values[2] ~= '1' then add(values[1]) end
    end
  end
  for _, gateway in ipairs(F.lines(job.watch)) do
    if not seen[gateway] then call('SREM', at('watched', gateway), job.id) end
    seen[gateway] = nil
  end
  for gateway in pairs(seen) do call('SADD', at('watched', gateway), job.id) end
  put(job, 'watch', table.concat(list, '\n'))
  local away = (not F.attached(job) and not OVER[job.phase]) and 1 or 0
  if away ~= job.det then
    put(job, 'det', away)
    bump(F.pool(job.pool), 'detached', away == 1 and 1 or -1)
    F.tell_delivered(job)
  end
  if away == 0 then F.undue('a:' .. job.id) end
end

function F.leave_in(job, ms)
  if ms <= 0 then
    F.finish_by(job, {state = 'cancelled', message = 'the client went away'})
  else
    put(job, 'detach', ms)
    F.due('a:' .. job.id, NOW + ms)
  end
end

function F.left(job)
  F.watch(job)
  if not F.attached(job) and not OVER[job.phase] then F.leave_in(job, F.static(job).detach) end
end

-- ------------------------------------------------------------------------ leases that end

function F.unlease(job)
  local pool, st = F.pool(job.pool), F.static(job)
  bump(pool, 'running', -1)
  put(job, 'last', job.worker)
  put(job, 'worker', '')
  local extra = job.model - job.charged
  if extra > 0 then
    F.charge(pool, st.tenant, extra, st.weight)
    put(job, 'charged', job.model)
  end
  if not st.rate then return end
  local samples = F.media(job) - job.lmedia
  if samples > 0 then
    local rtf = (job.model - job.lmodel) * st.rate / samples
    F.measure(pool, 'rtf', rtf)
    local worker = F.worker(job.last)
    if worker then F.measure(worker, 'rtf', rtf) end
  end
end

function F.recover(job)
  if job.rec == 'r' then return 'go_on' end
  if job.rec == 'n' then return 'fail' end
  if job.head == 0 then return 'go_on' end
  if job.answered == 1 then return 'finish' end
  local closed = job.tools == 1 or F.static(job).rf
  if job.prefix == 1 and job.first == 1 and not closed then return 'go_on' end
  return job.exposed == 0 and 'restart' or 'fail'
end

function F.put_back(job)
  F.unlease(job)
  local what = F.recover(job)
  if what == 'finish' then return F.finish(job, {state = 'completed'}) end
  if what == 'fail' then
    local kernel = job.rec == 'n'
    return F.finish(job, {
      state = 'failed', code = kernel and 'kernel_lost' or 'worker_lost',
      message = 'the worker was lost and its work cannot be gone on with',
      retryable = not kernel or nil,
    })
  end
  if what == 'restart' then F.restart(job) end
  local pool = F.pool(job.pool)
  if not F.competes(job) then
    put(job, 'phase', 'parked')
    bump(pool, 'parked', 1)
    return
  end
  put(job, 'phase', 'queued')
  F.tell(job, 'lease', job.id, false)
  F.wait(job, pool)
end

function F.restart(job)
  F.new_output(job)
  call('DEL', at('said', job.id), at('shown', job.id))
  for _, field in ipairs({'head', 'obytes', 'c0', 'c1', 'c2', 'c3', 'answered', 'tools', 'fm',
      'repoff', 'repx', 'shown', 'delivered'}) do
    put(job, field, 0)
  end
  put(job, 'first', 1)
  for _, field in ipairs({'counts', 'marks', 'dmarks'}) do put(job, field, '') end
  put(job, 'tcum', job.dcum)
  F.account(job)
end

-- ------------------------------------------------------------------------------------ ends

-- End a job on the broker's word: the worker is fenced and told to stop.
function F.finish_by(job, ended)
  if OVER[job.phase] then return end
  local worker, attempt = job.worker ~= '' and F.worker(job.worker), job.attempt
  if job.phase == 'running' then
    F.unlease(job)
    local own, field = at('own', job.last), job.id .. ':' .. attempt
    local held = worker and call('HGET', own, field)
    if held and ended.state == 'cancelled' then
      local name, since, _, beside, affinity = F.held(held)
      call('HSET', own, field, table.concat({name, since, NOW, beside, affinity}, '\n'))
    end
  end
  local blob = F.finish(job, ended)
  if worker then F.control(worker, 'cancel', pack(job.id, attempt) .. blob, 3) end
end

-- The terminal event as every reader will see it. `details` was encoded elsewhere.
function F.ended_blob(job, ended)
  local parts, count = {pack('t', 'ended', 'offset', job.head + 1, 'n', 1, 'state', ended.state)}, 4
  local function field(name, value)
    parts[#parts + 1] = pack(name) .. value
    count = count + 1
  end
  for _, name in ipairs({'code', 'message', 'retryable'}) do
    if ended[name] then field(name, pack(ended[name])) end
  end
  if ended.details then field('details', ended.details) end
  local seq = ended.seq or job.seq
  if seq > 0 then field('seq', pack(seq)) end
  return string.char(0x80 + count) .. table.concat(parts)
end

function F.finish(job, ended)
  local blob = F.ended_blob(job, ended)
  local marks = map_of(job.marks)
  F.append(job, blob, #blob + 64, marks)
  F.push_output(job, {blob})
  F.over(job, ended)
  return blob
end

function F.over(job, ended)
  local pool, st = F.pool(job.pool), F.static(job)
  if job.phase == 'queued' then
    F.unqueue(job)
    F.places_soon(pool)
  elseif job.phase == 'parked' then
    bump(pool, 'parked', -1)
  end
  put(job, 'phase', ended.state)
  put(job, 'code', ended.code or '')
  put(job, 'msg', ended.message or '')
  put(job, 'ended', NOW)
  if ended.state == 'completed' then F.measure(pool, 'model', job.model) end
  F.meta('live', -1)
  if call('HINCRBY', at('tenants'), st.tenant, -1) <= 0 then
    call('HDEL', at('tenants'), st.tenant)
  end
  F.undue('w:' .. job.id, 't:' .. job.id)
  if ended.code == 'poison' then F.bury_dead(job) end
  if ended.state == 'cancelled' then F.release_blobs(job) end
  if ended.state ~= 'failed' then
    F.drop_input(job, job.ihead)
    put(job, 'dcum', job.icum)
  end
  F.account(job)
  F.watch(job)
  F.room(job)
  F.due('f:' .. job.id, NOW + st.after)
  -- Should no gateway be left to forget it: the keys go by themselves.
  for _, name in ipairs({'job', 'inp', 'out', 'said', 'readers', 'blobs', 'shown'}) do
    call('PEXPIRE', at(name, job.id), st.after + 3600000)
  end
  F.end_pipes(job, ended.state == 'cancelled')
end

function F.end_pipes(job, cancel)
  if job.feeders == 0 then return end
  for _, pipe in ipairs(call('SMEMBERS', at('feeders', job.id))) do
    local key = at('pipe', pipe)
    local values = call('HMGET', key, 'source', 'done')
    call('HSET', key, 'done', 1)
    local source = values[1] and F.job(values[1])
    if source and cancel and values[2] ~= '1' then
      F.finish_by(source, {state = 'cancelled', message = 'what it fed is over'})
    end
  end
end

function F.bury_dead(job)
  local keeps = F.keeps_input(job)
  local start = max(keeps and 0 or job.c0, job.ifirst - 1)
  local items = F.input(job, start, 16 * 1024 * 1024)
  call('HSET', at('letter', job.id), 'view', F.view(job), 'start', start,
    'c', keeps and F.frame(0, 0, 0, 0) or F.frame(job.c0, job.c1, job.c2, job.c3),
    'items', raws(items))
  call('ZADD', at('dead'), NOW, job.id)
  local many = call('ZCARD', at('dead')) - MAX_DEAD
  if many > 0 then
    for _, id in ipairs(call('ZRANGE', at('dead'), 0, many - 1)) do
      call('ZREM', at('dead'), id)
      call('DEL', at('letter', id))
    end
  end
end

function F.name_of(st)
  return st.tenant .. '\0' .. st.dialect .. '\0' .. st.name
end

-- The window after the end has passed.
function F.forget(job)
  local st = F.static(job)
  if st.name ~= '' and call('HGET', at('names'), F.name_of(st)) == job.id then
    call('HDEL', at('names'), F.name_of(st))
  end
  for _, gateway in ipairs(F.lines(job.watch)) do call('SREM', at('watched', gateway), job.id) end
  if job.feeders > 0 then
    for _, pipe in ipairs(call('SMEMBERS', at('feeders', job.id))) do
      local source = call('HGET', at('pipe', pipe), 'source')
      if source then call('SREM', at('feeds', source), pipe) end
      call('DEL', at('pipe', pipe))
      call('SREM', at('orphans'), pipe)
    end
  end
  if job.feeds > 0 then  -- a pipe into a room ends with what it came from
    for _, pipe in ipairs(call('SMEMBERS', at('feeds', job.id))) do
      local target = call('HGET', at('pipe', pipe), 'target')
      if target and F.is_room(target) then
        call('DEL', at('pipe', pipe))
        call('SREM', at('orphans'), pipe)
      end
    end
  end
  if call('EXISTS', at('letter', job.id)) == 0 then F.release_blobs(job) end  -- or tried again
  F.meta('used', -floor(job.acc))
  call('ZREM', at('jobs'), job.id)
  call('DEL', at('inp', job.id), at('out', job.id), at('said', job.id), at('readers', job.id),
    at('feeders', job.id), at('feeds', job.id), at('shown', job.id))
  F.drop_record(job)
  POOLS.jobs[job.id] = false
end

-- ------------------------------------------------------------------------------------ view

function F.place(job)
  if job.phase ~= 'queued' then return pack(false) end
  local rank = F.rank(job)
  if not rank then return pack(false) end
  return array(2) .. pack(rank + 1) .. F.stats(F.pool(job.pool))
end

function F.view(job)
  return table.concat({
    array(23), call('HGET', job._key, 'spec'),
    pack(job.phase, job.epoch, job.head, job.first, job.delivered),
    map_of(job.marks), map_of(job.dmarks),
    pack(job.ihead, job.cpos, job.units, job.iend == 1, job.attempt, job.strikes),
    F.place(job),
    pack(job.code, job.msg, job.created / 1000, job.started / 1000, job.ended / 1000, job.model,
      job.num, NOW / 1000),
  })
end
