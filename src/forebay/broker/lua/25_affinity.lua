-- Jobs that belong to something a worker keeps (a notebook's kernel): `broker.affinity`, here.

local BESIDE = 4  -- jobs of one affinity that may run beside its cell

function F.affinity(pool, name)
  local known = call('HGET', at('owners', pool.id), name)
  if not known then return nil end
  local owner, kept, cell, beside = known:match('^(.*)\n(%d)\n(%d)\n(%d+)$')
  kept = kept == '1'
  return {owner = owner, kept = kept, counted = kept, cell = cell == '1', beside = tonumber(beside)}
end

local function digit(truth)
  return truth and 1 or 0
end

-- Write it down, forget it when it is idle; a kept one holds a credit of its owner.
function F.put_affinity(pool, name, known)
  local worker = F.worker(known.owner)
  if worker and known.kept ~= known.counted then
    bump(worker, 'kept', known.kept and 1 or -1)
    known.counted = known.kept
  end
  if known.kept or known.cell or known.beside > 0 then
    call('HSET', at('owners', pool.id), name, table.concat(
      {known.owner, digit(known.kept), digit(known.cell), known.beside}, '\n'))
  else
    call('HDEL', at('owners', pool.id), name)
  end
end

function F.may_run(pool, name, beside, credits)
  local known = F.affinity(pool, name)
  if not known then
    if beside then return pool.active > 0 end
    return call('ZCARD', credits) > 0
  end
  if call('SISMEMBER', at('active', pool.id), known.owner) == 0 then return false end
  if beside then return known.beside < BESIDE end
  return not known.cell and (known.kept or call('ZSCORE', credits, known.owner) ~= false)
end

function F.affinity_leased(pool, name, worker, beside)
  local known = F.affinity(pool, name)
    or {owner = worker.id, kept = false, counted = false, cell = false, beside = 0}
  if beside then
    known.beside = known.beside + 1
  else
    known.cell, known.kept = true, true
  end
  F.put_affinity(pool, name, known)
end

function F.affinity_let_go(pool, name, worker, beside)
  local known = F.affinity(pool, name)
  if not known or known.owner ~= worker.id then return end
  if beside then known.beside = known.beside - 1 else known.cell = false end
  F.put_affinity(pool, name, known)
end

-- What a worker says it keeps, or keeps no more. While a cell is leased it is kept whatever
-- is said: that cell begins it anew.
function API.keeps(req)
  local worker = F.myself(req)
  if not worker then return end
  for _, name in ipairs(F.lines(worker.pools)) do
    local pool = F.pool(name)
    local known = F.affinity(pool, req.affinity)
    if not known and req.held then
      put(pool, 'affine', 1)
      F.put_affinity(pool, req.affinity,
        {owner = worker.id, kept = true, counted = false, cell = false, beside = 0})
    elseif known and known.owner == worker.id then
      known.kept = req.held or known.cell
      F.put_affinity(pool, req.affinity, known)
    elseif known and req.held then
      -- Another owns it by now: what this one kept is of no use to anybody.
      F.control(worker, 'control', pack(name, req.affinity, 'shutdown') .. '\128', 4)
    end
  end
  F.credits(worker)
  for _, name in ipairs(F.lines(worker.pools)) do F.match(F.pool(name)) end
end

function API.order(req, args)
  local pool = F.pool(req.pool) or die('model_not_found', 'no pool is called ' .. req.pool)
  local known = F.affinity(pool, req.affinity)
  local worker = known and F.worker(known.owner)
  if not worker or worker.gone == 1 then return false end
  F.control(worker, 'control', pack(pool.id, req.affinity, req.what) .. args[2], 4)
  return true
end

-- A worker is no more: nobody owns what it owned.
function F.disown(pool, worker)
  local list = pool.affine == 1 and call('HGETALL', at('owners', pool.id)) or {}
  for index = 1, #list, 2 do
    if list[index + 1]:match('^(.*)\n%d\n%d\n%d+$') == worker.id then
      call('HDEL', at('owners', pool.id), list[index])
    end
  end
end
