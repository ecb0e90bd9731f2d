-- Waiting and leasing: the fair queue, who gets a credit, and what a lease carries.

-- ---------------------------------------------------------------------------- fair queue

function F.tag(pool, tenant)
  return max(pool.V, tonumber(call('HGET', at('fair', pool.id), tenant)) or 0)
end

function F.charge(pool, tenant, cost_s, weight)
  call('HSET', at('fair', pool.id), tenant, F.tag(pool, tenant) + max(0, cost_s) / weight)
end

function F.depth(pool)
  return call('ZCARD', at('queue', pool.id))
end

function F.rank(job)
  return call('ZRANK', at('queue', job.pool), job.member)
end

function F.id_of(member)
  return member:sub(17)
end

function F.enqueue(job, pool)
  if job.member == '' then
    local st = F.static(job)
    if job.aff ~= '' then put(pool, 'affine', 1) end
    put(job, 'score', F.tag(pool, st.tenant) - st.head_start)
    F.charge(pool, st.tenant, st.cost, st.weight)
    bump(pool, 'seq', 1)
    put(job, 'member', string.format('%015d:%s', pool.seq, job.id))
    put(job, 'charged', st.cost)
  end
  call('ZADD', at('queue', pool.id), job.score, job.member)
end

function F.unqueue(job)
  call('ZREM', at('queue', job.pool), job.member)
end

-- -------------------------------------------------------------------------------- waiting

function F.competes(job)
  if OVER[job.phase] then return false end
  if job.iend == 1 or (job.whole == 1 and job.ihead > 0) then return true end
  return job.ihead > max(job.c0, job.c2)
end

function F.feed(job)
  if (job.phase ~= 'idle' and job.phase ~= 'parked') or not F.competes(job) then return end
  local pool = F.pool(job.pool)
  if job.phase == 'parked' then bump(pool, 'parked', -1) end
  put(job, 'phase', 'queued')
  F.wait(job, pool)
end

function F.wait(job, pool)
  put(job, 'waiting', NOW)
  F.enqueue(job, pool)
  F.match(pool)
  if job.phase ~= 'queued' then return end
  local st = F.static(job)
  local queue = NOW + st.queue
  local total = st.total and job.created + st.total
  F.due('w:' .. job.id, (total and total < queue) and total or queue)
  if job.watch ~= '' and job.told == 0 then F.tell_place(job.id, F.rank(job) + 1, pool) end
  F.places_soon(pool)
end

-- The time to wait of this job has passed: which deadline that is, and its length.
function F.waited(job)
  local st = F.static(job)
  if st.total and job.created + st.total < job.waiting + st.queue then return 'total', st.total end
  return 'queue', st.queue
end

function F.tell_place(id, position, pool)
  local job = F.job(id)
  if not job or job.watch == '' then return end
  local eta = F.eta(pool, position) or -1
  if job.told == position and (job.toldeta < 0) == (eta < 0)
    and math.abs(job.toldeta - eta) <= max(1, 0.1 * job.toldeta) then
    return
  end
  put(job, 'told', position)
  put(job, 'toldeta', eta)
  local frame = array(4) .. pack('place', id, position) .. F.stats(pool)
  for gateway in job.watch:gmatch('[^\n]+') do call('PUBLISH', at('push', gateway), frame) end
end

function F.places_soon(pool)
  if pool.places == 0 then
    put(pool, 'places', 1)
    F.due('p:' .. pool.id, max(NOW, pool.places_at + PLACES_EVERY))
  end
end

-- A long queue is told in slices, so that commits get their turn in between.
function F.tell_places(pool)
  local from = pool.places - 1
  if from == 0 then put(pool, 'places_at', NOW) end
  local key = at('queue', pool.id)
  local members = call('ZRANGE', key, from, from + PLACES_SLICE - 1)
  for index, member in ipairs(members) do
    F.tell_place(F.id_of(member), from + index, pool)
  end
  if #members == PLACES_SLICE then
    put(pool, 'places', from + PLACES_SLICE + 1)
    F.due('p:' .. pool.id, NOW + 2)
  else
    put(pool, 'places', 0)
  end
end

-- ------------------------------------------------------------------------------- matching

function F.free(worker)
  if worker.known == 0 then return 0 end
  if call('SCARD', at('behind', worker.id)) >= max(1, worker.slots) then return 0 end
  return max(0, worker.sessions - worker.held + worker.affine - worker.kept)
end

-- A worker's free credits changed: bring every pool it is active in up to date.
function F.credits(worker)
  local free = F.free(worker)
  for _, pool in ipairs(F.lines(worker.pools)) do
    if free > 0 and call('SISMEMBER', at('active', pool), worker.id) == 1 then
      call('ZADD', at('credits', pool), free, worker.id)
    else
      call('ZREM', at('credits', pool), worker.id)
    end
  end
end

function F.free_in(pool)
  local sum, list = 0, call('ZRANGE', at('credits', pool.id), 0, -1, 'WITHSCORES')
  for index = 2, #list, 2 do sum = sum + tonumber(list[index]) end
  return sum
end

function F.match(pool)
  if call('ZCARD', at('queue', pool.id)) == 0 or F.settling() then return end
  local queue, credits = at('queue', pool.id), at('credits', pool.id)
  local served = false
  while pool.affine == 1 or call('ZCARD', credits) > 0 do
    local id, score = F.take(pool, queue, credits)
    if not id then break end
    put(pool, 'V', max(pool.V, score))
    served = true
    local job = F.job(id)
    if job then F.lease(job, pool, F.worker(F.choose(job, pool, credits))) end
  end
  if served and call('ZCARD', queue) > 0 then F.places_soon(pool) end
end

function F.take(pool, queue, credits)
  if pool.affine == 0 then
    local first = call('ZPOPMIN', queue)
    if #first == 0 then return nil end
    return F.id_of(first[1]), tonumber(first[2])
  end
  local from = 0
  while true do
    local page = call('ZRANGE', queue, from, from + 63, 'WITHSCORES')
    if #page == 0 then return nil end
    for index = 1, #page, 2 do
      local id = F.id_of(page[index])
      if F.affinity_ready(pool, id, credits) then
        call('ZREM', queue, page[index])
        return id, tonumber(page[index + 1])
      end
    end
    from = from + 64
  end
end

function F.affinity_ready(pool, id, credits)
  local job = F.job(id)
  if not job or job.aff == '' then return call('ZCARD', credits) > 0 end
  return F.may_run(pool, job.aff, job.beside == 1, credits)
end

function F.choose(job, pool, credits)
  local known = job.aff ~= '' and F.affinity(pool, job.aff)
  if known then return known.owner end  -- which needs no credit beside the one that it holds
  if job.last ~= '' and call('ZSCORE', credits, job.last) then return job.last end
  return call('ZREVRANGE', credits, 0, 0)[1] or call('SRANDMEMBER', at('active', pool.id))
end

-- ---------------------------------------------------------------------------------- leases

function F.lease(job, pool, worker)
  put(job, 'phase', 'running')
  bump(job, 'attempt', 1)
  put(job, 'worker', worker.id)
  put(job, 'leased', NOW)
  if job.started == 0 then put(job, 'started', NOW) end
  F.undue('w:' .. job.id)
  call('HSET', at('own', worker.id), job.id .. ':' .. job.attempt,
    table.concat({pool.id, NOW, 0, job.beside, job.aff}, '\n'))
  bump(worker, 'held', 1)
  put(job, 'catching', F.is_behind(job) and 1 or 0)
  if job.catching == 1 then call('SADD', at('behind', worker.id), job.id) end
  if pool.running == 0 then put(pool, 'busy_at', NOW) end
  bump(pool, 'running', 1)
  if job.aff ~= '' then
    F.affinity_leased(pool, job.aff, worker, job.beside == 1)
    bump(worker, 'affine', 1)
  end
  F.credits(worker)
  put(job, 'told', 0)
  put(job, 'lmodel', job.model)
  put(job, 'lmedia', F.media(job))
  put(job, 'prefix', worker.prefix)
  F.control(worker, 'assign', F.lease_body(job, worker), 15)
  F.tell(job, 'lease', job.id, true)
end

function F.media(job)
  local name = F.static(job).media
  if not name or job.marks == '' then return 0 end
  return unpack_(job.marks)[name] or 0
end

function F.run_left(job)
  return job.run > 0 and max(0, job.run - job.model) or false
end

-- The text that was said, cut to its newest part at a whole character.
function F.said(job)
  if job.rec == 'c' and job.first ~= 1 then return '' end
  local text = call('GET', at('said', job.id)) or ''
  if #text <= SAID_BYTES then return text end
  local start = #text - SAID_BYTES + 1
  while start < #text and text:byte(start) >= 128 and text:byte(start) < 192 do
    start = start + 1
  end
  return text:sub(start)
end

-- The committed tiles of a picture: a new attempt leaves them out.
function F.tiles(job)
  local tiles = {}
  if job.marks == '' or not unpack_(job.marks).tiles then return tiles end
  for _, entry in ipairs(call('XRANGE', at('out', job.id), '-', '+')) do
    if unpack_(entry[2][2]).t == 'tile' then tiles[#tiles + 1] = entry[2][2] end
  end
  return tiles
end

function F.lease_body(job, worker)
  local keeps = job.rec == 'c'
  local start = max(keeps and 0 or job.c0, job.ifirst - 1)
  local items, upto = F.input(job, start, LEASE_INPUT_BYTES)
  local consumed = keeps and {0, 0, 0, 0} or {job.c0, job.c1, job.c2, job.c3}
  return table.concat({
    call('HGET', job._key, 'spec'),
    pack(job.attempt, job.head),
    map_of(job.counts), map_of(job.marks),
    array(4), pack(consumed[1], consumed[2], consumed[3], consumed[4]),
    pack(start), raws(items), pack(job.ihead),
    pack(F.said(job)), raws(F.tiles(job)),
    pack(job.strikes >= EXCLUSIVE_AFTER, F.media_delivered(job)),
    pack(F.attached(job), F.run_left(job)),
  })
end

-- Input after `offset`: encoded items of about `bytes` in all (one at least), the last offset.
function F.input(job, offset, bytes)
  local items, size = {}, 0
  while offset < job.ihead and (#items == 0 or size < bytes) do
    local page = call('XRANGE', at('inp', job.id), (offset + 1) .. '-0', '+', 'COUNT', 16)
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      local item = entry[2][2]
      if #items > 0 and size + #item > bytes then return items, offset end
      items[#items + 1] = item
      size = size + #item
      offset = tonumber(entry[1]:match('^%d+'))
    end
  end
  return items, offset
end

function F.held(line)
  local pool, since, cancelled, beside, affinity =
    line:match('^(.-)\n(%d+)\n(%d+)\n(%d)\n(.*)$')
  return pool, tonumber(since), tonumber(cancelled), beside, affinity
end

function F.credit_back(worker, id, attempt)
  local own, field = at('own', worker.id), id .. ':' .. attempt
  local held = call('HGET', own, field)
  if not held then return end
  call('HDEL', own, field)
  bump(worker, 'held', -1)
  call('SREM', at('behind', worker.id), id)
  local name, since, cancelled, beside, affinity = F.held(held)
  local pool = F.make_pool(name)
  if affinity ~= '' then
    bump(worker, 'affine', -1)
    F.affinity_let_go(pool, affinity, worker, beside == '1')
  end
  F.measure(pool, 'hold', (NOW - since) / 1000)
  F.drained(pool)
  if cancelled > 0 then F.tell_all('freed', id, pool.id, (NOW - cancelled) / 1000) end
  F.credits(worker)
  for _, name in ipairs(F.lines(worker.pools)) do F.match(F.pool(name)) end
end
