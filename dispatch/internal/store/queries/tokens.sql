-- name: InsertToken :exec
INSERT INTO join_tokens (id, secret_sha256, max_uses, expires, tags, created_by, created, site, ephemeral, needs_approval, require_csr, note)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: TokenByID :one
SELECT * FROM join_tokens WHERE id = ?;

-- name: CountTokens :one
SELECT count(*) FROM join_tokens;

-- name: ListTokens :many
SELECT * FROM join_tokens ORDER BY created DESC, id;

-- name: RevokeToken :execrows
UPDATE join_tokens SET revoked_at = ? WHERE id = ? AND revoked_at = 0;

-- name: ConsumeToken :execrows
UPDATE join_tokens SET uses = uses + 1
WHERE id = ? AND uses < max_uses AND revoked_at = 0 AND expires > ?;
