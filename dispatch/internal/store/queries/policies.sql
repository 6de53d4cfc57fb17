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
