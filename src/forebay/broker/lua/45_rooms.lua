-- Rooms. Who may write what is decided by `core.room` in the gateway that asks, on the state of
-- the writers it loaded; nothing is taken unless that state is still the newest (`version`).

local HISTORY_ITEMS, HISTORY_MS, WRITERS, REAP_MS = 1000, 24 * 3600 * 1000, 1024, 600 * 1000
local ROOM = nil

function F.room_record(id)
  ROOM = ROOM or words([[epoch secret head first active version bytes spec]])
  local values = call('HMGET', at('room', id), unpack(ROOM))
  if not values[1] then return nil end
  return {
    id = id, epoch = values[1], secret = values[2], head = tonumber(values[3]),
    first = tonumber(values[4]), active = tonumber(values[5]), version = tonumber(values[6]),
    bytes = tonumber(values[7]), spec = values[8],
  }
end

local function need_room(id)
  return F.room_record(id) or die('not_found', 'no such room')
end

local function keep(room)
  call('HSET', at('room', room.id), 'head', room.head, 'first', room.first,
    'active', room.active, 'version', room.version, 'bytes', room.bytes)
end

local function view(room)
  local held = 0
  for _, count in ipairs(call('HVALS', at('held', room.id))) do held = held + tonumber(count) end
  return array(9) .. room.spec .. pack(room.epoch, room.head, room.first,
    call('HLEN', at('writers', room.id)), held, call('HLEN', at('members', room.id)), room.bytes,
    room.active)
end

local function tell(id, frame)
  for _, gateway in ipairs(call('SMEMBERS', at('crowd', id))) do
    call('PUBLISH', at('push', gateway), frame)
  end
end

function F.drop_room(room)
  tell(room.id, F.frame('gone', room.id, room.epoch))
  for _, gateway in ipairs(call('SMEMBERS', at('crowd', room.id))) do
    call('SREM', at('visited', gateway), room.id)
  end
  for _, name in ipairs({'room', 'said_in', 'writers', 'heard', 'holds', 'held', 'messages',
      'members', 'crowd'}) do
    call('DEL', at(name, room.id))
  end
  F.undue('h:' .. room.id, 'r:' .. room.id)
  call('ZREM', at('rooms'), room.id)
  F.meta('room_bytes', -room.bytes)
end

-- ------------------------------------------------------------------------ making and looking

function API.room_open(req, args)
  local room = F.room_record(req.room)
  if room then
    if req.secret and room.secret == '0' then
      call('HSET', at('room', room.id), 'secret', 1, 'spec', args[2], 'active', req.active)
      room.spec, room.active = args[2], req.active
    end
    return view(room)
  end
  local count = call('ZCARD', at('rooms'))
  local limit = req.secret and req.limit or max(1, floor(req.limit / 2))
  if count >= limit then
    die('store_full', 'there are ' .. count .. ' rooms, expected no more than ' .. limit)
  end
  F.refuse_rooms(req.store)
  room = {id = req.room, epoch = req.epoch, head = 0, first = 1, active = req.active, version = 0,
    bytes = 0, spec = args[2]}
  call('HSET', at('room', room.id), 'epoch', room.epoch, 'spec', room.spec,
    'secret', req.secret and 1 or 0)
  keep(room)
  call('ZADD', at('rooms'), room.active, room.id)
  F.due('r:' .. room.id, NOW + REAP_MS)
  return view(room)
end

function F.refuse_rooms(limit)
  local bytes = tonumber(call('HGET', at('meta'), 'room_bytes') or 0)
  if bytes > limit then
    die('store_full', 'rooms hold ' .. bytes .. ' bytes, expected no more than ' .. limit)
  end
end

function API.room_view(req)
  return view(need_room(req.room))
end

function API.room_list(req)
  local views = {}
  local start = req.tenant and 'room:' .. req.tenant .. '/'
  for _, id in ipairs(call('ZREVRANGE', at('rooms'), 0, -1)) do
    if #views >= req.limit then break end
    local room = (not start or id:sub(1, #start) == start) and F.room_record(id)
    if room then views[#views + 1] = view(room) end
  end
  return raws(views)
end

function API.room_drop(req)
  local room = F.room_record(req.room)
  if room then F.drop_room(room) end
end

-- ---------------------------------------------------------------------------------- writing

-- What a plan needs: the room, the writers that are named (or are overdue), names taken.
function API.room_load(req)
  local room = need_room(req.room)
  local clients, writers, names = req.clients, {}, {}
  if req.overdue then
    clients = call('ZRANGEBYSCORE', at('holds', room.id), '-inf', NOW, 'LIMIT', 0, 64)
  end
  for _, client in ipairs(clients) do
    local known = call('HGET', at('writers', room.id), client)
    if known then writers[#writers + 1] = pack(client) .. known end
  end
  for _, name in ipairs(req.names) do
    local offset = call('ZSCORE', at('messages', room.id), name)
    if offset then names[#names + 1] = pack(name, tonumber(offset)) end
  end
  return array(8) .. room.spec .. pack(room.secret == '1', room.epoch, room.head, room.version,
    NOW / 1000) .. string.char(0xde, floor(#writers / 256), #writers % 256)
    .. table.concat(writers) .. string.char(0xde, floor(#names / 256), #names % 256)
    .. table.concat(names)
end

-- Take a plan; false when somebody wrote in between. args: writers' states, then captions.
function API.room_put(req, args)
  local room = need_room(req.room)
  if room.version ~= req.version or room.epoch ~= req.epoch then return pack(false) end
  F.refuse_rooms(req.store)
  room.version = room.version + 1
  for index, writer in ipairs(req.writers) do
    local client = writer[1]
    call('HSET', at('writers', room.id), client, args[1 + index])
    call('ZADD', at('heard', room.id), room.version, client)
    if writer[2] > 0 then
      call('HSET', at('held', room.id), client, writer[2])
      call('ZADD', at('holds', room.id), writer[3], client)
    else
      call('HDEL', at('held', room.id), client)
      call('ZREM', at('holds', room.id), client)
    end
  end
  F.put_captions(room, req, args)
  F.trim_room(room)
  F.forget_writers(room)
  F.arm_room(room)
  keep(room)
  return pack(true)
end

function F.put_captions(room, req, args)
  local events = {}
  for index, caption in ipairs(req.captions) do
    local blob = args[1 + #req.writers + index]
    room.head = room.head + 1
    room.bytes = room.bytes + caption[1]
    call('XADD', at('said_in', room.id), room.head .. '-0', 'd', blob, 's', caption[1],
      'c', caption[2])
    if caption[3] ~= '' then call('ZADD', at('messages', room.id), room.head, caption[3]) end
    events[index] = blob
    F.meta('room_bytes', caption[1])
  end
  room.active = max(room.active, req.active)
  call('ZADD', at('rooms'), room.active, room.id)
  if #events > 0 then
    tell(room.id, array(5) .. pack('out', room.id, room.epoch, 0) .. raws(events))
  end
end

function F.trim_room(room)
  local last, old = room.head - HISTORY_ITEMS, NOW - HISTORY_MS
  local before = room.first
  while true do
    local page = call('XRANGE', at('said_in', room.id), room.first .. '-0', '+', 'COUNT', 16)
    for _, entry in ipairs(page) do
      local fields = entry[2]
      if room.first > last and tonumber(fields[6]) > old then page = {} break end
      room.first = room.first + 1
      room.bytes = room.bytes - tonumber(fields[4])
      F.meta('room_bytes', -tonumber(fields[4]))
    end
    if #page < 16 then break end
  end
  if room.first > before then
    call('XTRIM', at('said_in', room.id), 'MINID', '=', room.first .. '-0')
    call('ZREMRANGEBYSCORE', at('messages', room.id), '-inf', room.first - 1)
  end
end

function F.forget_writers(room)
  local spare = call('ZCARD', at('heard', room.id)) - WRITERS
  if spare < 1 then return end
  for _, client in ipairs(call('ZRANGE', at('heard', room.id), 0, spare - 1)) do
    if not call('ZSCORE', at('holds', room.id), client) then
      call('ZREM', at('heard', room.id), client)
      call('HDEL', at('writers', room.id), client)
    end
  end
end

function F.arm_room(room)
  local next_ = call('ZRANGE', at('holds', room.id), 0, 0, 'WITHSCORES')[2]
  if next_ then F.due('h:' .. room.id, tonumber(next_)) else F.undue('h:' .. room.id) end
end

function API.room_preview(req, args)
  need_room(req.room)
  tell(req.room, array(3) .. pack('preview', req.room) .. args[2])
end

-- ---------------------------------------------------------------------------------- reading

function API.room_read(req)
  local room = F.room_record(req.room)
  if not room then F.refuse('unknown', 'no such room') end
  if req.epoch and req.epoch ~= room.epoch then
    F.refuse('state_lost', 'the room was lost and begun anew')
  end
  local offset = req.offset
  F.refuse_offset(room, offset)
  local events = {}
  for index, entry in ipairs(call('XRANGE', at('said_in', room.id), (offset + 1) .. '-0', '+',
      'COUNT', req.limit)) do
    events[index] = entry[2][2]
  end
  return raws(events)
end

function API.room_watch(req)
  local room = need_room(req.room)
  call('SADD', at('crowd', room.id), req.gateway)
  call('SADD', at('visited', req.gateway), room.id)
  return view(room)
end

function API.room_unwatch(req)
  F.unwatch_room(req.room, req.gateway)
end

function F.unwatch_room(id, gateway)
  call('SREM', at('crowd', id), gateway)
  local room = F.room_record(id)
  if room and room.secret == '0' and call('SCARD', at('crowd', id)) == 0 then F.drop_room(room) end
end

-- --------------------------------------------------------------------------------- presence

function API.room_join(req, args)
  need_room(req.room)
  local key = at('members', req.room)
  if call('HEXISTS', key, req.member) == 0 and call('HLEN', key) >= req.most then return end
  call('HSET', key, req.member, req.gateway .. '\n' .. args[2])
  if req.gateway ~= '' then call('SADD', at('visited', req.gateway), req.room) end
end

function API.room_leave(req)
  call('HDEL', at('members', req.room), req.member)
end

function API.room_members(req)
  need_room(req.room)
  local members = {}
  for _, line in ipairs(call('HVALS', at('members', req.room))) do
    if #members >= req.limit then break end
    members[#members + 1] = line:match('^[^\n]*\n(.*)$')
  end
  return raws(members)
end

-- A gateway is gone: nobody is present, and nobody watches, through it.
function F.leave_rooms(gateway)
  for _, id in ipairs(call('SMEMBERS', at('visited', gateway))) do
    local list = call('HGETALL', at('members', id))
    for index = 1, #list, 2 do
      if list[index + 1]:match('^[^\n]*') == gateway then
        call('HDEL', at('members', id), list[index])
      end
    end
    F.unwatch_room(id, gateway)
  end
  call('DEL', at('visited', gateway))
end

-- Old captions, and a room that nobody needs any more.
function F.reap_room(id)
  local room = F.room_record(id)
  if not room then return end
  F.trim_room(room)
  keep(room)
  local quiet = room.active <= NOW - HISTORY_MS and room.first > room.head
  if quiet and call('HLEN', at('members', id)) == 0 and call('ZCARD', at('holds', id)) == 0 then
    F.drop_room(room)
  else
    F.due('r:' .. id, NOW + REAP_MS)
  end
end
