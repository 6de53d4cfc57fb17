-- name: InsertUser :exec
INSERT INTO users (name, role, created) VALUES (?, ?, ?);

-- name: UserByName :one
SELECT * FROM users WHERE name = ?;

-- name: ListUsers :many
SELECT sqlc.embed(users),
  (SELECT count(*) FROM api_keys k WHERE k.user_name = users.name AND k.revoked_at = 0 AND k.expires > sqlc.arg(now)) AS keys
FROM users ORDER BY users.name;

-- name: CountUsers :one
SELECT count(*) FROM users;

-- name: CountOwners :one
SELECT count(*) FROM users WHERE role = 'owner';

-- name: SetUserRole :one
UPDATE users SET role = ?, version = version + 1 WHERE name = ? AND version = ? RETURNING *;

-- name: DeleteUser :execrows
DELETE FROM users WHERE name = ? AND version = ?;

-- name: InsertKey :exec
INSERT INTO api_keys (id, user_name, secret_sha256, scopes, note, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: KeyByID :one
SELECT sqlc.embed(api_keys), users.role FROM api_keys JOIN users ON users.name = api_keys.user_name WHERE api_keys.id = ?;

-- name: ListKeys :many
SELECT * FROM api_keys WHERE sqlc.arg(user_name) = '' OR user_name = sqlc.arg(user_name) ORDER BY created DESC, id;

-- name: CountUserKeys :one
SELECT count(*) FROM api_keys WHERE user_name = ? AND revoked_at = 0 AND expires > ?;

-- name: RevokeKey :execrows
UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at = 0;

-- name: TouchKey :exec
UPDATE api_keys SET last_used = max(last_used, CAST(sqlc.arg(last_used) AS INTEGER)) WHERE id = sqlc.arg(id);

-- name: DeleteOldKeys :exec
DELETE FROM api_keys WHERE expires < sqlc.arg(until) OR (revoked_at != 0 AND revoked_at < sqlc.arg(until));

-- name: InsertOwnerLink :exec
INSERT INTO owner_links (secret_sha256, expires, created) VALUES (?, ?, ?);

-- name: UseOwnerLink :execrows
UPDATE owner_links SET used_at = sqlc.arg(now) WHERE secret_sha256 = sqlc.arg(secret) AND used_at = 0 AND expires > sqlc.arg(now);

-- name: CountOwnerLinks :one
SELECT count(*) FROM owner_links;

-- name: VoidOwnerLinks :exec
UPDATE owner_links SET used_at = sqlc.arg(now) WHERE used_at = 0;

-- name: AllTokenUses :many
SELECT id, uses, revoked_at FROM join_tokens WHERE uses > 0 OR revoked_at != 0;

-- name: RaiseTokenUse :exec
UPDATE join_tokens SET uses = min(max_uses, max(uses, CAST(sqlc.arg(uses) AS INTEGER))), revoked_at = max(revoked_at, CAST(sqlc.arg(revoked_at) AS INTEGER))
WHERE id = sqlc.arg(id);
