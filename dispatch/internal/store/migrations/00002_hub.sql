-- +goose Up
ALTER TABLE meta ADD COLUMN audit_seq INTEGER NOT NULL DEFAULT 0;      -- last audit entry
ALTER TABLE meta ADD COLUMN audit_head BLOB NOT NULL DEFAULT x'';      -- and its hash
ALTER TABLE meta ADD COLUMN policy_generation INTEGER NOT NULL DEFAULT 0; -- grows with each stage of each activation
UPDATE meta SET policy_generation = coalesce((SELECT version FROM policy_active WHERE scope = ''), 0);
ALTER TABLE meta ADD COLUMN psk_epoch INTEGER NOT NULL DEFAULT 1;

-- "site" is the scope of a node: watchers of the same site see it.
ALTER TABLE nodes ADD COLUMN site TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN row_version INTEGER NOT NULL DEFAULT 1;  -- grows with each change
ALTER TABLE nodes ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0 CHECK (ephemeral IN (0, 1));
ALTER TABLE nodes ADD COLUMN locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1)); -- a clone is suspected
ALTER TABLE nodes ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;    -- counts recoveries; -1 takes that of the next one
ALTER TABLE nodes ADD COLUMN recovery_id BLOB NOT NULL DEFAULT x'';    -- of the last recovery
ALTER TABLE nodes ADD COLUMN recover_left INTEGER NOT NULL DEFAULT 3 CHECK (recover_left >= 0);
ALTER TABLE nodes ADD COLUMN was BLOB NOT NULL DEFAULT x'';            -- id before its keys were replaced
ALTER TABLE nodes ADD COLUMN approved_by TEXT NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;     -- end of the last stream, written in batches
ALTER TABLE nodes ADD COLUMN discovery_id INTEGER;                     -- of its ROS 2 discovery server
CREATE UNIQUE INDEX nodes_discovery ON nodes (discovery_id) WHERE discovery_id IS NOT NULL;
CREATE INDEX nodes_was ON nodes (was) WHERE was != x'';
CREATE INDEX nodes_site ON nodes (site, state);

ALTER TABLE join_tokens ADD COLUMN site TEXT NOT NULL DEFAULT '';
ALTER TABLE join_tokens ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0 CHECK (ephemeral IN (0, 1));
ALTER TABLE join_tokens ADD COLUMN needs_approval INTEGER NOT NULL DEFAULT 0 CHECK (needs_approval IN (0, 1));
ALTER TABLE join_tokens ADD COLUMN require_csr INTEGER NOT NULL DEFAULT 0 CHECK (require_csr IN (0, 1));
ALTER TABLE join_tokens ADD COLUMN note TEXT NOT NULL DEFAULT '';

-- What may not connect any more. Rows go only when "until" has passed.
CREATE TABLE denials (
  kind        TEXT    NOT NULL CHECK (kind IN ('node', 'key', 'serial')),
  value       BLOB    NOT NULL,
  until       INTEGER NOT NULL,              -- Unix seconds; 0 is never
  reason      TEXT    NOT NULL DEFAULT '',
  created     INTEGER NOT NULL,
  PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;

-- "scope" is a site, or '*' for a change that all watchers see.
ALTER TABLE changes ADD COLUMN scope TEXT NOT NULL DEFAULT '*';
CREATE INDEX changes_scope ON changes (scope, rv);

ALTER TABLE policies ADD COLUMN parent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE policies ADD COLUMN source TEXT NOT NULL DEFAULT '';       -- as it was written; empty where only the document is known
ALTER TABLE policies ADD COLUMN note TEXT NOT NULL DEFAULT '';

-- The staged activation that is under way, or the last one.
CREATE TABLE policy_stage (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  base        INTEGER NOT NULL REFERENCES policies (version),
  candidate   INTEGER NOT NULL REFERENCES policies (version),
  canary      TEXT    NOT NULL,              -- selectors, JSON
  expect      TEXT    NOT NULL,              -- expectations, JSON
  started     INTEGER NOT NULL,
  hold_until  INTEGER NOT NULL,
  state       TEXT    NOT NULL CHECK (state IN ('canary', 'active', 'rolled-back')),
  reason      TEXT    NOT NULL DEFAULT '',
  detail      TEXT    NOT NULL DEFAULT ''    -- what the evaluation needs after a restart, JSON
) STRICT;

CREATE TABLE users (
  name        TEXT    PRIMARY KEY,
  role        TEXT    NOT NULL CHECK (role IN ('owner', 'admin', 'operator', 'auditor', 'viewer')),
  version     INTEGER NOT NULL DEFAULT 1,
  created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Identities of an OpenID provider: (iss, sub), never the e-mail address.
CREATE TABLE user_identities (
  iss         TEXT    NOT NULL,
  sub         TEXT    NOT NULL,
  user_name   TEXT    NOT NULL REFERENCES users (name) ON DELETE CASCADE,
  PRIMARY KEY (iss, sub)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
  id          TEXT    PRIMARY KEY,
  user_name   TEXT    NOT NULL REFERENCES users (name) ON DELETE CASCADE,
  secret_sha256 BLOB  NOT NULL,
  scopes      TEXT    NOT NULL DEFAULT '',   -- joined with commas; empty is all of the role
  note        TEXT    NOT NULL DEFAULT '',
  created     INTEGER NOT NULL,
  expires     INTEGER NOT NULL,
  last_used   INTEGER NOT NULL DEFAULT 0,    -- written in batches
  revoked_at  INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_user ON api_keys (user_name);

CREATE TABLE sessions (
  secret_sha256 BLOB  PRIMARY KEY,
  user_name   TEXT    NOT NULL REFERENCES users (name) ON DELETE CASCADE,
  created     INTEGER NOT NULL,
  expires     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One-time links that make the holder an owner.
CREATE TABLE owner_links (
  secret_sha256 BLOB  PRIMARY KEY,
  expires     INTEGER NOT NULL,
  used_at     INTEGER NOT NULL DEFAULT 0,
  created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
  seq         INTEGER PRIMARY KEY,
  ts          INTEGER NOT NULL,
  actor       TEXT    NOT NULL,
  action      TEXT    NOT NULL,
  target      TEXT    NOT NULL,
  detail      TEXT    NOT NULL,
  prev        BLOB    NOT NULL,
  hash        BLOB    NOT NULL
) STRICT;

CREATE TABLE audit_checkpoints (
  seq         INTEGER PRIMARY KEY,
  ts          INTEGER NOT NULL,
  head        BLOB    NOT NULL,
  signed      BLOB    NOT NULL
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER audit_append_only BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit entries cannot change'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit entries cannot go'); END;
-- +goose StatementEnd

-- The newest report of each node, sampled.
CREATE TABLE node_status (
  node_id     BLOB    PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
  sampled     INTEGER NOT NULL,
  report      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- Networks behind a node.
CREATE TABLE node_routes (
  node_id     BLOB    NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  prefix      TEXT    NOT NULL,
  approved    INTEGER NOT NULL DEFAULT 0 CHECK (approved IN (0, 1)),
  PRIMARY KEY (node_id, prefix)
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
  id          TEXT    PRIMARY KEY,
  channel     TEXT    NOT NULL,
  version     TEXT    NOT NULL,
  manifest    BLOB    NOT NULL,
  created     INTEGER NOT NULL,
  UNIQUE (channel, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE campaigns (
  id          TEXT    PRIMARY KEY,
  release_id  TEXT    NOT NULL REFERENCES releases (id),
  state       TEXT    NOT NULL,
  spec        TEXT    NOT NULL,
  version     INTEGER NOT NULL DEFAULT 1,
  created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE campaign_targets (
  campaign_id TEXT    NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
  node_id     BLOB    NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  state       TEXT    NOT NULL,
  updated     INTEGER NOT NULL,
  PRIMARY KEY (campaign_id, node_id)
) STRICT, WITHOUT ROWID;

-- The signed log of the mesh lock, kept for the nodes and not understood here.
CREATE TABLE lock_log (
  seq         INTEGER PRIMARY KEY,
  entry       BLOB    NOT NULL,
  hash        BLOB    NOT NULL
) STRICT;

-- +goose Down
-- A newer schema holds what an older program would lose: go back with the backup
-- that was made before the migration.
SELECT not_reversible();
