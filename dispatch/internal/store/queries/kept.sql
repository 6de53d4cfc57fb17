-- name: NodeLocks :many
SELECT id, name, locked FROM nodes ORDER BY id;

-- name: AuditHashAt :one
SELECT hash FROM audit WHERE seq = ?;
