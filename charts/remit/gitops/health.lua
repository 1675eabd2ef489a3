-- Health of Remit's kinds for Argo CD; the same script for each. It reads what `kubectl wait` and Flux read: observedGeneration,
-- phase, conditions. Unknown is never healthy. Argo CD gives it the base and table libraries only.
local function health(status, message)
  return { status = status, message = message }
end

local status = obj.status or {}
local spec = obj.spec or {}
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "Remit has not seen this generation yet")
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready = conditions.Ready or { status = "Unknown", message = "Remit has not judged it yet" }
local stalled = conditions.Stalled

if obj.kind == "PolicySigner" and spec.revoked ~= nil and ready.reason == spec.revoked.reason then
  -- That is what was asked for, and stays: a key is never taken back into use.
  return health("Healthy", ready.message)
end
if status.phase == "Degraded" or status.state == "failed" then
  return health("Degraded", ready.message)
end
if stalled ~= nil and stalled.status == "True" then
  return health("Degraded", stalled.message)
end
if status.phase == "Paused" then
  return health("Suspended", ready.message)
end
if status.phase == "Progressing" then
  return health("Progressing", ready.message)
end
if conditions.Reconciling ~= nil and conditions.Reconciling.status == "True" then
  return health("Progressing", conditions.Reconciling.message)
end
if ready.status ~= "True" then
  return health("Progressing", ready.message)
end
if obj.kind == "Agent" and spec.suspend == true then
  return health("Suspended", ready.message)
end
return health("Healthy", ready.message)
