-- Something of everything that an interpreter does: tables, strings, closures, sorting, coroutines.
local seed = 42
local function random(limit)
  seed = (seed * 1103515245 + 12345) % 2147483648
  return seed % limit
end

local function words(count)
  local list = {}
  for i = 1, count do
    local letters = {}
    for j = 1, 3 + random(6) do
      letters[j] = string.char(97 + random(26))
    end
    list[i] = table.concat(letters)
  end
  return list
end

local function count(list)
  local counts = {}
  for _, word in ipairs(list) do
    counts[word:sub(1, 2)] = (counts[word:sub(1, 2)] or 0) + 1
  end
  return counts
end

local function sieve(limit)
  local composite, found = {}, 0
  for i = 2, limit do
    if not composite[i] then
      found = found + 1
      for j = i * i, limit, i do
        composite[j] = true
      end
    end
  end
  return found
end

local Point = {}
Point.__index = Point
Point.__add = function(a, b) return setmetatable({ x = a.x + b.x, y = a.y + b.y }, Point) end

local function walk(steps)
  local at = setmetatable({ x = 0, y = 0 }, Point)
  for i = 1, steps do
    at = at + setmetatable({ x = i % 3 - 1, y = i % 5 - 2 }, Point)
  end
  return at.x, at.y
end

local function numbers(limit)
  return coroutine.wrap(function()
    for i = 1, limit do coroutine.yield(i * i) end
  end)
end

for round = 1, 4 do
  local list = words(1500)
  table.sort(list, function(a, b) return #a < #b or #a == #b and a < b end)
  local sum = 0
  for square in numbers(800) do sum = sum + square end
  local keys = 0
  for _ in pairs(count(list)) do keys = keys + 1 end
  local joined = table.concat(list, " "):gsub("a+", "A"):upper()
  print(round, keys, sum, sieve(8000), #joined, walk(3000))
end
