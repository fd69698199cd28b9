-- Replicas beside one another: each has a lease. See sidecar/journal/postgres/lease.py.

-- Those of a version before have none: one of them writes alone, under its name in `writer`.
ALTER TABLE replicas ADD COLUMN until TIMESTAMPTZ NOT NULL DEFAULT 'infinity';
ALTER TABLE replicas ADD COLUMN commits BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas SET (fillfactor = 50);
