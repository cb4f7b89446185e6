-- For `cargo xtask verdicts`: "verdicts_more.lua SECONDS". A game for itself: creatures with coroutines of their own move on a map, meet, eat, and
-- are born; the day's events are told as text and forgotten with the day.
local finish = os.time() + tonumber(arg[1]) + 0.5
math.randomseed(5)
local creatures, events, days, turns = {}, {}, {}, 0

local function creature(name)
  local self = { name = name, x = math.random(60), y = math.random(60), food = 20, met = {} }
  self.life = coroutine.wrap(function()
    while self.food > 0 do
      self.x, self.y = (self.x + math.random(-1, 1)) % 60, (self.y + math.random(-1, 1)) % 60
      self.food = self.food - 1 + (math.random() < 0.3 and 3 or 0)
      if self.food > 40 then
        self.food = 20
        creatures[#creatures + 1] = creature(name .. string.char(96 + math.random(26)))
      end
      coroutine.yield(true)
    end
    return false
  end)
  if #self.name > 12 then self.name = self.name:sub(-6) end
  return self
end

while os.time() < finish do
  while #creatures < 50 do creatures[#creatures + 1] = creature("c" .. #creatures) end
  local map = {}
  for at = #creatures, 1, -1 do
    local one = creatures[at]
    if not one.life() or #creatures > 400 then
      table.remove(creatures, at)
      events[#events + 1] = ("%s died at %d,%d having met %d"):format(one.name, one.x, one.y, #one.met)
    else
      local place = one.x .. "," .. one.y
      local other = map[place]
      if other then
        one.met[#one.met + 1] = other.name
        if #one.met > 10 then table.remove(one.met, 1) end
        events[#events + 1] = one.name .. " met " .. other.name
      end
      map[place] = one
    end
  end
  turns = turns + 1
  if turns % 200 == 0 then
    days[#days + 1] = table.concat(events, "\n"):gsub("%d+", function(digits) return "<" .. digits .. ">" end):sub(1, 20000)
    if #days > 30 then table.remove(days, 1) end
    events = {}
  end
  -- There is no way to sleep but to wait.
  local wake = os.clock() + 0.002
  while os.clock() < wake do end
end
print("turns " .. turns)
