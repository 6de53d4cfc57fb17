-- name: InsertMeta :exec
INSERT INTO meta (id, epoch, mesh_id, mesh_cidr, mesh_cidr6, created) VALUES (1, ?, ?, ?, ?, ?);

-- name: GetMeta :one
SELECT * FROM meta WHERE id = 1;

-- name: SetEpoch :exec
UPDATE meta SET epoch = ? WHERE id = 1;

-- name: AllocateRV :one
UPDATE meta SET rv = rv + ?1 WHERE id = 1 RETURNING rv;

-- name: InsertChange :exec
INSERT INTO changes (rv, kind, key, encoded, scope) VALUES (?, ?, ?, ?, ?);

-- name: ChangesSince :many
SELECT rv, kind, key, encoded, scope FROM changes WHERE rv > ? ORDER BY rv;

-- name: CompactTo :one
UPDATE meta SET compact_rv = max(compact_rv, rv - ?1) WHERE id = 1 RETURNING compact_rv;

-- name: DeleteChanges :exec
DELETE FROM changes WHERE rv <= ?;

-- name: BumpPolicyGeneration :one
UPDATE meta SET policy_generation = policy_generation + 1 WHERE id = 1 RETURNING policy_generation;

-- name: BumpPSKEpoch :one
UPDATE meta SET psk_epoch = psk_epoch + 1 WHERE id = 1 RETURNING psk_epoch;

-- name: TakeQuarantined :one
DELETE FROM ip_quarantine WHERE ip =
  (SELECT q.ip FROM ip_quarantine q WHERE q.until <= ? ORDER BY q.ip LIMIT 1) RETURNING ip;

-- name: TakeNextIP :one
UPDATE meta SET ip_next = ip_next + 1 WHERE id = 1 AND ip_next <= ?1 RETURNING ip_next;

-- name: QuarantineIP :exec
INSERT INTO ip_quarantine (ip, until) VALUES (?, ?);

-- name: RaisePSKEpoch :exec
UPDATE meta SET psk_epoch = max(psk_epoch, CAST(sqlc.arg(epoch) AS INTEGER)) WHERE id = 1;
