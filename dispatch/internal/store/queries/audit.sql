-- name: AuditHead :one
SELECT audit_seq, audit_head FROM meta WHERE id = 1;

-- name: SetAuditHead :exec
UPDATE meta SET audit_seq = ?, audit_head = ? WHERE id = 1;

-- name: InsertAudit :exec
INSERT INTO audit (seq, ts, actor, action, target, detail, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: AuditAfter :many
SELECT * FROM audit
WHERE seq > sqlc.arg(after) AND ts >= sqlc.arg(since)
  AND substr(actor, 1, length(sqlc.arg(actor))) = sqlc.arg(actor)
  AND substr(action, 1, length(sqlc.arg(action))) = sqlc.arg(action)
  AND substr(target, 1, length(sqlc.arg(target))) = sqlc.arg(target)
ORDER BY seq LIMIT sqlc.arg(limit);

-- name: AuditBefore :many
SELECT * FROM audit
WHERE seq < sqlc.arg(before) AND ts >= sqlc.arg(since)
  AND substr(actor, 1, length(sqlc.arg(actor))) = sqlc.arg(actor)
  AND substr(action, 1, length(sqlc.arg(action))) = sqlc.arg(action)
  AND substr(target, 1, length(sqlc.arg(target))) = sqlc.arg(target)
ORDER BY seq DESC LIMIT sqlc.arg(limit);

-- name: InsertCheckpoint :exec
INSERT INTO audit_checkpoints (seq, ts, head, signed) VALUES (?, ?, ?, ?)
ON CONFLICT (seq) DO UPDATE SET ts = excluded.ts, signed = excluded.signed;

-- name: Checkpoints :many
SELECT * FROM audit_checkpoints ORDER BY seq DESC LIMIT ?;
