-- name: CountPolicies :one
SELECT count(*) FROM policies;

-- name: InsertPolicy :one
INSERT INTO policies (version, document, sha256, author, created, parent, source, note)
VALUES ((SELECT coalesce(max(p.version), 0) + 1 FROM policies p), ?, ?, ?, ?, ?, ?, ?) RETURNING version;

-- name: PolicyByVersion :one
SELECT * FROM policies WHERE version = ?;

-- name: ActivePolicy :one
SELECT version FROM policy_active WHERE scope = '';

-- name: SetActivePolicy :exec
INSERT INTO policy_active (scope, version) VALUES ('', ?)
ON CONFLICT (scope) DO UPDATE SET version = excluded.version;

-- name: NewestPolicy :one
SELECT CAST(coalesce(max(version), 0) AS INTEGER) FROM policies;

-- name: ListPolicies :many
SELECT version, parent, author, created, note, sha256 FROM policies
WHERE version < sqlc.arg(before) ORDER BY version DESC LIMIT sqlc.arg(limit);

-- name: GetActivation :one
SELECT m.policy_generation, a.version AS active,
  CAST(coalesce(s.base, 0) AS INTEGER) AS base, CAST(coalesce(s.candidate, 0) AS INTEGER) AS candidate,
  CAST(coalesce(s.canary, '') AS TEXT) AS canary, CAST(coalesce(s.expect, '') AS TEXT) AS expect,
  CAST(coalesce(s.started, 0) AS INTEGER) AS started, CAST(coalesce(s.hold_until, 0) AS INTEGER) AS hold_until,
  CAST(coalesce(s.state, '') AS TEXT) AS state, CAST(coalesce(s.reason, '') AS TEXT) AS reason,
  CAST(coalesce(s.detail, '') AS TEXT) AS detail
FROM meta m JOIN policy_active a ON a.scope = '' LEFT JOIN policy_stage s ON s.id = 1 WHERE m.id = 1;

-- name: PutStage :exec
INSERT INTO policy_stage (id, base, candidate, canary, expect, started, hold_until, state, reason, detail)
VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET base = excluded.base, candidate = excluded.candidate, canary = excluded.canary,
  expect = excluded.expect, started = excluded.started, hold_until = excluded.hold_until, state = excluded.state,
  reason = excluded.reason, detail = excluded.detail;

-- name: EndStage :execrows
UPDATE policy_stage SET state = ?, reason = ?, detail = ''
WHERE id = 1 AND state = sqlc.arg(was) AND started = sqlc.arg(started);
