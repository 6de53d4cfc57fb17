-- name: NodeByID :one
SELECT * FROM nodes WHERE id = ?;

-- name: ConsumeToken :execrows
UPDATE join_tokens SET uses = uses + 1
WHERE id = ? AND uses < max_uses AND revoked_at = 0 AND expires > ?;

-- name: TakeQuarantined :one
DELETE FROM ip_quarantine WHERE ip =
  (SELECT q.ip FROM ip_quarantine q WHERE q.until <= ? ORDER BY q.ip LIMIT 1) RETURNING ip;
