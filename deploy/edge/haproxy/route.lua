-- Asks a gateway (GET /v1/route) which shard owns the user of a WebSocket. haproxy.cfg acts on what it finds; a refusal
-- is the answer.

local gateway = os.getenv("GATEWAY_ADDRESS") or "127.0.0.1:8000"
local passed_on = { "content-type", "retry-after", "www-authenticate", "cache-control" }

local function first(answer, name)
  local all = answer and answer.headers and answer.headers[name]
  return all and all[0]
end

local function refuse(txn, answer)
  local reply = txn:reply{ status = 503 }
  if first(answer, "content-type") == "application/problem+json" then
    reply:set_status(answer.status)
    for _, name in ipairs(passed_on) do
      local value = first(answer, name)
      if value then reply:add_header(name, value) end
    end
    reply:set_body(answer.body)
  else
    reply:add_header("content-type", "application/problem+json")
    reply:add_header("retry-after", "1")
    reply:add_header("cache-control", "no-store")
    reply:set_body('{"type":"about:blank","title":"Service Unavailable","status":503,"code":"gateway_unavailable",'
      .. '"detail":"no gateway can be asked now","hint":"try again when Retry-After says"}')
  end
  txn:done(reply)
end

core.register_action("solowire_route", { "http-req" }, function(txn)
  local headers = {
    ["host"] = { txn.f:req_hdr("host") or "" },
    ["x-original-uri"] = { txn.f:pathq() },
    ["x-forwarded-for"] = { txn.f:src() },
  }
  for _, name in ipairs({ "authorization", "origin", "sec-websocket-protocol", "user-agent" }) do
    local value = txn.f:req_hdr(name)
    if value and value ~= "" then headers[name] = { value } end
  end
  local answer = core.httpclient():get{ url = "http://" .. gateway .. "/v1/route", headers = headers, timeout = 10000 }
  local host, port = (first(answer, "x-solowire-upstream") or ""):match("^%[?([%x.:]+)%]?:(%d+)$")
  if answer and answer.status == 204 and host then
    txn:set_var("txn.solowire_host", host)
    txn:set_var("txn.solowire_port", tonumber(port))
    txn:set_var("txn.solowire_ticket", first(answer, "x-solowire-ticket") or "")
    local dialect = first(answer, "x-solowire-dialect")
    if dialect then txn:set_var("txn.solowire_dialect", dialect) end
    return
  end
  refuse(txn, answer)
end, 0)
