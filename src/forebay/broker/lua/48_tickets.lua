-- One-time tickets: made at one gateway, shown at any. The store knows them by their digests.

local SLACK = 60000  -- the server's own expiry is for what nobody looks at again

local function burn(ticket)
  call('ZREM', at('tickets'), ticket)
  call('DEL', at('holder', ticket))
end

function API.keep_ticket(req)
  local all = at('tickets')
  for _, old in ipairs(call('ZRANGEBYSCORE', all, '-inf', NOW, 'LIMIT', 0, 1000)) do burn(old) end
  local many = call('ZCARD', all) + 1 - req.limit
  if many > 0 then
    for _, old in ipairs(call('ZRANGE', all, 0, many - 1)) do burn(old) end
  end
  call('ZADD', all, NOW + req.ms, req.ticket)
  call('SET', at('holder', req.ticket), req.holder, 'PX', req.ms + SLACK)
end

function API.take_ticket(req)
  local ends = tonumber(call('ZSCORE', at('tickets'), req.ticket) or '0')
  local holder = call('GET', at('holder', req.ticket))
  burn(req.ticket)
  return ends > NOW and holder
end
