-- name: SaveStatus :exec
INSERT INTO node_status (node_id, sampled, report)
SELECT id, sqlc.arg(sampled), sqlc.arg(report) FROM nodes WHERE id = sqlc.arg(node_id)
ON CONFLICT (node_id) DO UPDATE SET sampled = excluded.sampled, report = excluded.report;

-- name: StatusesAfter :many
SELECT node_id, sampled, report FROM node_status WHERE node_id > ? ORDER BY node_id LIMIT ?;

-- name: TouchMeta :exec
UPDATE meta SET rv = rv WHERE id = 1;
