-- Times are Unix microseconds; ids are the bytes of a PeerID; booleans are 0/1.

-- +goose Up
CREATE TABLE meta (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  epoch       INTEGER NOT NULL,              -- random; new when a backup is restored
  rv          INTEGER NOT NULL DEFAULT 0,    -- last resource version, updated last in each transaction
  compact_rv  INTEGER NOT NULL DEFAULT 0,    -- a watcher older than this gets a snapshot
  mesh_id     TEXT    NOT NULL,
  mesh_cidr   TEXT    NOT NULL,
  mesh_cidr6  TEXT    NOT NULL,
  ip_next     INTEGER NOT NULL DEFAULT 2,    -- lowest index never handed out; 0 is the network, 1 the hub
  created     INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
  id          BLOB    PRIMARY KEY,
  name        TEXT    NOT NULL UNIQUE,
  ip          INTEGER NOT NULL UNIQUE,       -- index into both mesh prefixes
  ed25519     BLOB    NOT NULL UNIQUE,
  x25519      BLOB    NOT NULL UNIQUE,
  key_origin  TEXT    NOT NULL DEFAULT 'node' CHECK (key_origin IN ('node', 'server')),
  state       TEXT    NOT NULL CHECK (state IN ('pending', 'active', 'revoked')),
  token_id    TEXT    NOT NULL REFERENCES join_tokens (id),
  hostname    TEXT    NOT NULL DEFAULT '',
  os          TEXT    NOT NULL DEFAULT '',
  arch        TEXT    NOT NULL DEFAULT '',
  version     TEXT    NOT NULL DEFAULT '',
  created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE node_tags (
  node_id     BLOB    NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  tag         TEXT    NOT NULL,
  PRIMARY KEY (node_id, tag)
) STRICT, WITHOUT ROWID;

-- The next suffix to try where a name is taken, so that a thousand machines
-- called "robot" do not try a thousand names each.
CREATE TABLE name_suffix (
  base        TEXT    PRIMARY KEY,
  next        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Addresses that were handed out and came back; free from `until` on.
CREATE TABLE ip_quarantine (
  ip          INTEGER PRIMARY KEY,
  until       INTEGER NOT NULL
) STRICT;

-- Append and revoke only.
CREATE TABLE certs (
  serial      BLOB    PRIMARY KEY,
  node_id     BLOB    NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  not_after   INTEGER NOT NULL,
  revoked_at  INTEGER NOT NULL DEFAULT 0,
  reason      TEXT    NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX certs_node ON certs (node_id, not_after);

CREATE TABLE join_tokens (
  id            TEXT    PRIMARY KEY,
  secret_sha256 BLOB    NOT NULL,
  max_uses      INTEGER NOT NULL CHECK (max_uses > 0),
  uses          INTEGER NOT NULL DEFAULT 0 CHECK (uses <= max_uses),
  expires       INTEGER NOT NULL,
  revoked_at    INTEGER NOT NULL DEFAULT 0,
  tags          TEXT    NOT NULL DEFAULT '',  -- joined with commas
  created_by    TEXT    NOT NULL,
  created       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The resumable log of what watchers see.
CREATE TABLE changes (
  rv          INTEGER PRIMARY KEY,
  kind        TEXT    NOT NULL,
  key         BLOB    NOT NULL,
  encoded     BLOB    NOT NULL
) STRICT;

CREATE TABLE policies (
  version     INTEGER PRIMARY KEY,
  document    BLOB    NOT NULL,
  sha256      BLOB    NOT NULL,
  author      TEXT    NOT NULL,
  created     INTEGER NOT NULL
) STRICT;

CREATE TABLE policy_active (
  scope       TEXT    PRIMARY KEY,
  version     INTEGER NOT NULL REFERENCES policies (version)
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE policy_active;
DROP TABLE policies;
DROP TABLE changes;
DROP TABLE certs;
DROP TABLE ip_quarantine;
DROP TABLE name_suffix;
DROP TABLE node_tags;
DROP TABLE nodes;
DROP TABLE join_tokens;
DROP TABLE meta;
