-- Records, time and pushes: what every function below stands on.
--
-- One call is one unit of work. Checks come first (`die` leaves everything as it was), records
-- are loaded once and written back at the end; streams, sets and pushes are written at once.
-- Times are milliseconds of this server's clock; no client's clock is ever used.

local F, API = {}, {}          -- internal steps; what clients may call
local P, NOW, LOADED, POOLS    -- of the call that is running
local STATICS, HELD = {}, 0    -- what never changes of a job, kept between calls; how many
local PACKED, RECORDS, KEPT = {}, {}, 0  -- jobs as they were written last, likewise
local max, min, floor

local call, pack, unpack_  -- the server's, which are not there yet while this is loaded

local TTL, PAUSE, SECOND_LOOK, WORD = 800, 350, 20, 50
local GATEWAY_TTL = 3000
local EXCLUSIVE_AFTER = 2
local PLACES_EVERY, PLACES_SLICE = 1000, 256
local SAID_BYTES = 160 * 1024
local LEASE_INPUT_BYTES = 64 * 1024
local ENTRY_BYTES = 4096
local MAX_DEAD = 200
local MAX_STATICS = 4096
local MAX_RECORDS = 2048
local ASSUMED_S = 10

local OVER = {completed = true, failed = true, cancelled = true, expired = true}

local function die(code, message)
  error({code = code, message = message}, 0)
end

local function at(name, id)
  return P .. K[name] .. (id or '')
end

local function clock()
  if CLOCK then
    local set = call('GET', CLOCK)
    if set then return tonumber(set) end
  end
  local time = call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end

-- ---------------------------------------------------------------------- msgpack by hand
-- Whatever was encoded elsewhere (specs, events, marks) is never decoded here, only carried:
-- it is put between headers made here.

local function array(count)
  if count < 16 then return string.char(0x90 + count) end
  return '\220' .. string.char(floor(count / 256), count % 256)
end

local function raws(list)
  return array(#list) .. table.concat(list)
end

function F.list(values)
  return array(#values) .. (#values > 0 and pack(unpack(values)) or '')
end

local function map_of(blob)
  return (blob == '' or blob == '\144') and '\128' or blob
end

-- ------------------------------------------------------------------------------ records

local TEXT, JOB_HOT, JOB_COLD, IS_HOT, IS_COLD, POOL, WORKER

local function words(text)
  local list, set = {}, {}
  for word in text:gmatch('%S+') do
    list[#list + 1] = word
    set[word] = true
  end
  return list, set
end

-- Nothing of Lua or of the server is there while the library is being loaded.
local function boot()
  call, pack, unpack_ = redis.call, cmsgpack.pack, cmsgpack.unpack
  max, min, floor = math.max, math.min, math.floor
  if TEXT then return end
  local _
  _, TEXT = words([[phase pool worker last epoch watch rec counts marks dmarks wg sub member code
    msg aff tenant st spec info load pools word stepping name inc rid]])
  -- What a commit, an append or a delivered position reads and writes, and the rest, are two
  -- fields of a job's hash: packed they cost a third of what a field each would.
  JOB_HOT, IS_HOT = words([[phase worker attempt pool epoch watch head first obytes delivered c0
    c1 c2 c3 ihead icum tcum dcum ifirst exposed strikes model run acc span wbytes keepund fm
    repoff repx rec over catching counts marks shown dmarks wg sub readers iend seq units num base
    cpos rid]])
  JOB_COLD, IS_COLD = words([[last feeds feeders member score code msg aff tools answered waiting
    leased started created ended det charged lmodel lmedia prefix told toldeta whole detach
    beside]])
  POOL = words([[V seq want running parked detached credits slots active expected hold_c
    hold_m hold_v model_c model_m model_v rtf_c rtf_m rtf_v drain_r drain_at assumed places_at
    places affine busy_at]])
  WORKER = words([[name pools sessions slots standby supervised order prefix silent suspect
    gone word held known ctl inc rtf_c rtf_m rtf_v affine kept]])
end

local function value_of(field, value)
  if TEXT[field] then return value or '' end
  return tonumber(value) or 0
end

local function put(record, field, value)
  record[field] = value
  record._dirty[field] = value
end

local function bump(record, field, by)
  put(record, field, record[field] + by)
end

local function load(key, id, fields)
  local values = call('HMGET', key, unpack(fields))
  if not values[1] then return nil end
  local record = {id = id, _key = key, _dirty = {}}
  for index = 1, #fields do
    record[fields[index]] = value_of(fields[index], values[index])
  end
  LOADED[#LOADED + 1] = record
  return record
end

-- The rest of a job's fields, beneath what this call has put.
local function cold(job)
  if rawget(job, '_cold') then return end
  rawset(job, '_cold', true)
  for name, value in pairs(unpack_(call('HGET', job._key, 'cold'))) do
    if rawget(job, name) == nil then rawset(job, name, value) end
  end
end

-- Unpacking a job costs more than reading it, so the one that was packed last stays here. It is
-- used only while the very bytes that were made of it are what the store holds, and by one call
-- at a time: a call that fails leaves nothing of what it did.
local function keep(key, job, packed)
  if KEPT >= MAX_RECORDS then PACKED, RECORDS, KEPT = {}, {}, 0 end
  if not PACKED[key] then KEPT = KEPT + 1 end
  PACKED[key], RECORDS[key] = packed, job
end

local function unpacked(key, packed)
  local before = PACKED[key]
  if not before then return unpack_(packed) end
  local job = RECORDS[key]
  PACKED[key], RECORDS[key], KEPT = nil, nil, KEPT - 1
  return before == packed and job or unpack_(packed)
end

-- At the end of a call: what is in the record besides the job's own fields goes.
local function flush_job(job)
  local key, packed, dirty = job._key, job._packed, job._dirty
  if not next(dirty) then
    if packed and not rawget(job, '_cold') then
      setmetatable(job, nil)
      job.id, job._key, job._dirty, job._job, job._st, job._packed = nil, nil, nil, nil, nil, nil
      keep(key, job, packed)
    end
    return
  end
  local hot, rest = false, false
  for field in pairs(dirty) do
    if IS_COLD[field] then rest = true else hot = true end
  end
  if rest then cold(job) end  -- written whole
  setmetatable(job, nil)
  if rest or rawget(job, '_cold') then
    local values = {}
    for index = 1, #JOB_COLD do
      local field = JOB_COLD[index]
      values[field], job[field] = job[field], nil
    end
    if rest then call('HSET', key, 'cold', pack(values)) end
  end
  if hot then
    job.id, job._key, job._dirty, job._job, job._cold, job._st = nil, nil, nil, nil, nil, nil
    job._packed = nil
    packed = pack(job)
    call('HSET', key, 'hot', packed)
    keep(key, job, packed)
  end
end

local function flush()
  for _, record in ipairs(LOADED) do
    if record._job then
      flush_job(record)
    elseif next(record._dirty) then
      local pairs_ = {}
      for field, value in pairs(record._dirty) do
        pairs_[#pairs_ + 1] = field
        pairs_[#pairs_ + 1] = value
      end
      call('HSET', record._key, unpack(pairs_))
      record._dirty = {}
    end
  end
  LOADED, POOLS = {}, {jobs = {}, workers = {}, pools = {}}
end

local function default_of(field)
  return TEXT[field] and '' or 0
end

local lazy = {__index = function(job, field)
  if IS_HOT[field] then return default_of(field) end
  if not IS_COLD[field] then return nil end
  if not rawget(job, '_cold') then
    cold(job)
    local value = rawget(job, field)
    if value ~= nil then return value end
  end
  return default_of(field)
end}

local function known_job(id, key, job, packed)
  job.id, job._key, job._dirty, job._job, job._packed = id, key, {}, true, packed
  setmetatable(job, lazy)
  LOADED[#LOADED + 1] = job
  POOLS.jobs[id] = job
  return job
end

function F.job(id)
  local job = POOLS.jobs[id]
  if job == nil then
    local key = at('job', id)
    local hot = call('HGET', key, 'hot')
    if hot then return known_job(id, key, unpacked(key, hot), hot) end
    POOLS.jobs[id] = false
  end
  return job or nil
end

-- A job that is not there yet: `values` are what it begins with.
function F.new_job(id, values)
  -- All of them: asking for one that is not there costs more than unpacking one that is.
  for index = 1, #JOB_HOT do
    local field = JOB_HOT[index]
    if values[field] == nil then values[field] = default_of(field) end
  end
  local job = known_job(id, at('job', id), values)
  job._cold = true
  for _, field in ipairs({'phase', 'last'}) do put(job, field, job[field]) end
  return job
end

function F.need(id)
  return F.job(id) or die('not_found', 'no job ' .. id)
end

-- As it was submitted. Unpacking it costs as much as an append does besides; a job's epoch is
-- its own, so that what is kept for it can never be another one's.
function F.static(job)
  local known = rawget(job, '_st')
  if known then return known end
  known = STATICS[job.epoch]
  if not known or known._key ~= job._key then
    known = unpack_(call('HGET', job._key, 'st'))
    known._key = job._key
    if HELD >= MAX_STATICS then STATICS, HELD = {}, 0 end
    STATICS[job.epoch] = known
    HELD = HELD + 1
  end
  rawset(job, '_st', known)
  return known
end

function F.worker(id)
  local record = POOLS.workers[id]
  if record == nil then
    record = load(at('worker', id), id, WORKER) or false
    POOLS.workers[id] = record
  end
  return record or nil
end

function F.pool(id)
  local record = POOLS.pools[id]
  if record == nil then
    record = load(at('pool', id), id, POOL) or false
    POOLS.pools[id] = record
  end
  return record or nil
end

function F.make_pool(id)
  local record = F.pool(id)
  if record then return record end
  call('HSET', at('pool', id), 'V', 0)
  call('SADD', at('pools'), id)
  POOLS.pools[id] = nil
  return F.pool(id)
end

function F.drop_record(record)
  record._dirty = {}
  call('DEL', record._key)
end

function F.meta(field, by)
  return call('HINCRBY', at('meta'), field, by == 0 and 0 or by)  -- there is a -0
end

-- ------------------------------------------------------------------------------- pushes

function F.lines(text)
  local list = {}
  for line in text:gmatch('[^\n]+') do list[#list + 1] = line end
  return list
end

function F.tell(job, ...)
  if job.watch == '' then return end
  local frame = F.frame(...)
  for gateway in job.watch:gmatch('[^\n]+') do
    call('PUBLISH', at('push', gateway), frame)
  end
end

function F.frame(...)
  return array(select('#', ...)) .. pack(...)
end

function F.tell_all(...)
  local frame = F.frame(...)
  for _, gateway in ipairs(call('ZRANGE', at('gateways'), 0, -1)) do
    call('PUBLISH', at('push', gateway), frame)
  end
end

-- Control to a worker: numbered and kept, with a copy pushed.
function F.control(worker, tag, body, count)
  if worker.gone == 1 then return end
  bump(worker, 'ctl', 1)
  local frame = array(count + 3) .. pack(tag, worker.ctl, worker.inc) .. body
  call('XADD', at('control', worker.id), worker.ctl .. '-0', 'd', frame)
  call('PUBLISH', at('push', worker.id), frame)
end

-- A hint to a worker: not kept.
function F.hint(worker, frame)
  call('PUBLISH', at('push', worker), frame)
end

function F.due(what, when)
  call('ZADD', at('due'), when, what)
end

function F.undue(...)
  call('ZREM', at('due'), ...)
end

-- ------------------------------------------------------------------------- what was measured

function F.measure(record, name, value)
  local count = record[name .. '_c'] + 1
  local mean, var = record[name .. '_m'], record[name .. '_v']
  local share = max(0.1, 1 / count)
  local delta = value - mean
  put(record, name .. '_c', count)
  put(record, name .. '_m', mean + share * delta)
  put(record, name .. '_v', (1 - share) * (var + share * delta * delta))
end

function F.drained(pool)
  local rate = pool.drain_r
  if pool.drain_at > 0 and NOW > pool.drain_at then
    rate = rate * math.exp((pool.drain_at - NOW) / 30000)
  end
  put(pool, 'drain_r', rate + 1 / 30)
  put(pool, 'drain_at', NOW)
end

-- Seconds until the job at `position` begins; nil while nothing is known.
function F.eta(pool, position)
  if pool.credits < 1 then return nil end
  local pace, var, of, known = pool.hold_m, pool.hold_v, pool.credits, pool.hold_c > 0
  local work, spread, work_known = pool.model_m, pool.model_v, pool.model_c > 0
  if not work_known and pool.assumed > 0 then work, spread, work_known = pool.assumed, 0, true end
  if work_known and pool.slots > 0 and (not known or work / pool.slots > pace / of) then
    pace, var, of, known = work, spread, pool.slots, true
  end
  if not known then return nil end
  local first = 0
  if pool.running >= of and pace > 0 then
    local alike = max(0, 1 - math.sqrt(var) / pace)
    first = alike * max(0, pace * pool.running / of - F.busy_s(pool))
  end
  return max(position * pace / of, first + max(0, position - of) * pace / of)
end

-- How long ago the first job of those that run began; clocks of other nodes may be ahead.
function F.busy_s(pool)
  return max(0, NOW - pool.busy_at) / 1000
end

function F.stats(pool)
  local work = {pool.model_c, pool.model_m, pool.model_v}
  if pool.model_c == 0 and pool.assumed > 0 then work = {1, pool.assumed, 0} end
  return array(10) .. pack(pool.hold_c, pool.hold_m, pool.hold_v, pool.credits,
    work[1], work[2], work[3], pool.slots, pool.running, F.busy_s(pool))
end
