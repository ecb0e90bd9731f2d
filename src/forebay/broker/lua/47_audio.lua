-- Seconds of audio: what came from a tenant within the hour, at whatever gateway.

local SLOT, KEPT = 60000, 3660000

-- `totals`: what each job has brought in all, in ms. A job keeps what was counted of it, so that
-- nothing counts twice, whoever says it. Answers with how long ago each minute began, and how
-- much came in it.
function API.audio(req)
  local key, minute = at('audio', req.tenant), floor(NOW / SLOT)
  for id, total in pairs(req.totals) do
    local job = at('job', id)
    if call('EXISTS', job) == 1 then
      local more = total - (tonumber(call('HGET', job, 'aud')) or 0)
      if more > 0 then
        call('HSET', job, 'aud', total)
        call('HINCRBY', key, minute, more)
        call('PEXPIRE', key, KEPT + SLOT)
      end
    end
  end
  local slots, list = {}, call('HGETALL', key)
  for index = 1, #list, 2 do
    local age = NOW - tonumber(list[index]) * SLOT
    if age >= KEPT then
      call('HDEL', key, list[index])
    else
      slots[#slots + 1] = floor(age)
      slots[#slots + 1] = tonumber(list[index + 1])
    end
  end
  return slots
end
