-- name: NodeByID :one
SELECT * FROM nodes WHERE id = ?;

-- name: NodeByName :one
SELECT * FROM nodes WHERE name = ?;

-- name: NodeByIndex :one
SELECT * FROM nodes WHERE ip = ?;

-- name: NodeByKey :one
SELECT * FROM nodes WHERE ed25519 = ?;

-- name: NodeByX25519 :one
SELECT * FROM nodes WHERE x25519 = ?;

-- name: NodeByWas :one
SELECT * FROM nodes WHERE was = ? AND was != x'';

-- name: SetReplaced :exec
UPDATE nodes SET was = ?, recover_left = ?, row_version = ? WHERE id = ?;

-- name: NodesInRange :many
SELECT * FROM nodes WHERE id >= sqlc.arg(low) AND id <= sqlc.arg(high) ORDER BY id LIMIT 2;

-- name: TagsOf :many
SELECT tag FROM node_tags WHERE node_id = ? ORDER BY tag;

-- name: CountKeys :one
SELECT count(*) FROM nodes WHERE ed25519 = ? OR x25519 = ?;

-- name: CountName :one
SELECT count(*) FROM nodes WHERE name = ?;

-- name: CountNodes :many
SELECT state, locked, count(*) AS n FROM nodes GROUP BY state, locked;

-- name: CountScope :one
SELECT count(*) FROM nodes WHERE site = ? AND state = 'active' AND key_origin = 'node';

-- name: NextSuffix :one
INSERT INTO name_suffix (base, next) VALUES (?, 3)
ON CONFLICT (base) DO UPDATE SET next = next + 1 RETURNING next;

-- name: InsertNode :exec
INSERT INTO nodes (id, name, ip, ed25519, x25519, key_origin, state, token_id, hostname, os, arch, version, created, site, ephemeral, generation, approved_by, last_seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: SetJoin :exec
UPDATE nodes SET token_id = ?, hostname = ?, os = ?, arch = ?, version = ?, row_version = row_version + 1 WHERE id = ?;

-- name: DeleteNode :execrows
DELETE FROM nodes WHERE id = ?;

-- name: SetState :execrows
UPDATE nodes SET state = ?, row_version = row_version + 1 WHERE id = ?;

-- name: ApproveNode :execrows
UPDATE nodes SET state = 'active', generation = CASE WHEN locked = 1 THEN -1 ELSE generation END, locked = 0, recover_left = 3,
  approved_by = ?, row_version = row_version + 1
WHERE id = ? AND state IN ('pending', 'active');

-- name: LockNode :execrows
UPDATE nodes SET locked = 1, row_version = row_version + 1 WHERE id = ?;

-- name: SetRecovered :execrows
UPDATE nodes SET generation = CAST(sqlc.arg(generation) AS INTEGER) + 1, recovery_id = sqlc.arg(recovery_id),
  recover_left = recover_left - 1, row_version = row_version + 1
WHERE id = sqlc.arg(id) AND recover_left > 0;

-- name: ForgetGenerations :exec
UPDATE nodes SET generation = -1;

-- name: ResetRecoveries :exec
UPDATE nodes SET recover_left = 3 WHERE id = ? AND recover_left < 3;

-- name: SetName :exec
UPDATE nodes SET name = ?, row_version = row_version + 1 WHERE id = ?;

-- name: SetSite :exec
UPDATE nodes SET site = ?, row_version = row_version + 1 WHERE id = ?;

-- name: TouchNode :exec
UPDATE nodes SET last_seen = max(last_seen, CAST(sqlc.arg(seen) AS INTEGER)) WHERE id = sqlc.arg(id);

-- name: BumpNode :exec
UPDATE nodes SET row_version = row_version + 1 WHERE id = ?;

-- name: InsertTag :exec
INSERT INTO node_tags (node_id, tag) VALUES (?, ?);

-- name: DeleteTags :exec
DELETE FROM node_tags WHERE node_id = ?;

-- name: StaleEphemeral :many
SELECT id FROM nodes WHERE ephemeral = 1 AND state = 'active' AND last_seen < ? AND created < ? AND id > ? ORDER BY id LIMIT 256;

-- name: ListNodes :many
SELECT sqlc.embed(nodes),
  CAST(coalesce((SELECT max(c.not_after) FROM certs c WHERE c.node_id = nodes.id), 0) AS INTEGER) AS cert_expires,
  CAST(coalesce((SELECT group_concat(g.tag) FROM node_tags g WHERE g.node_id = nodes.id), '') AS TEXT) AS tags
FROM nodes ORDER BY nodes.name;

-- name: ListScope :many
SELECT sqlc.embed(nodes),
  CAST(coalesce((SELECT group_concat(g.tag) FROM node_tags g WHERE g.node_id = nodes.id), '') AS TEXT) AS tags
FROM nodes WHERE nodes.site = ? AND nodes.state = 'active' AND nodes.locked = 0 AND nodes.key_origin = 'node' ORDER BY nodes.name;

-- name: InsertCert :exec
INSERT INTO certs (serial, node_id, not_after) VALUES (?, ?, ?);

-- name: CertBySerial :one
SELECT * FROM certs WHERE serial = ?;

-- name: CertsOf :many
SELECT * FROM certs WHERE node_id = ? ORDER BY not_after DESC LIMIT 100;

-- name: RevokeCerts :exec
UPDATE certs SET revoked_at = ?, reason = ? WHERE node_id = ? AND revoked_at = 0;

-- name: RevokeCert :execrows
UPDATE certs SET revoked_at = ?, reason = ? WHERE serial = ? AND revoked_at = 0;

-- name: LastCert :one
SELECT CAST(coalesce(max(not_after), 0) AS INTEGER) AS not_after FROM certs WHERE node_id = ?;

-- name: DeleteOldCerts :exec
DELETE FROM certs WHERE not_after < ? AND revoked_at = 0;

-- name: InsertDenial :exec
INSERT INTO denials (kind, value, until, reason, created) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, value) DO UPDATE SET until = CASE WHEN denials.until = 0 OR excluded.until = 0 THEN 0 ELSE max(denials.until, excluded.until) END;

-- name: DenialsAt :many
SELECT * FROM denials WHERE until = 0 OR until > ? ORDER BY kind, value;

-- name: DeleteDenials :exec
DELETE FROM denials WHERE until != 0 AND until <= ?;

-- name: CountDenied :one
SELECT count(*) FROM denials WHERE (kind = 'node' AND value = sqlc.arg(node)) OR (kind = 'key' AND value = sqlc.arg(key)) OR (kind = 'serial' AND value = sqlc.arg(serial));

-- name: Admit :one
SELECT n.state, n.locked, n.key_origin, n.site, n.name, CAST(coalesce(c.revoked_at, 0) AS INTEGER) AS revoked_at,
  (SELECT count(*) FROM denials d WHERE (d.kind = 'node' AND d.value = n.id) OR (d.kind = 'key' AND d.value = n.ed25519)
    OR (d.kind = 'serial' AND d.value = sqlc.arg(serial))) AS denied
FROM nodes n LEFT JOIN certs c ON c.serial = sqlc.arg(serial) AND c.node_id = n.id WHERE n.id = sqlc.arg(id);

-- name: ServerKeyNode :one
SELECT * FROM nodes WHERE x25519 = ? AND key_origin = 'server';
