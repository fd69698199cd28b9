-- Who has claimed a lane, and who has a live call: see sidecar/journal/sql/replicas.py.

CREATE TABLE replicas(
  name      TEXT COLLATE "C" PRIMARY KEY,
  entered_s DOUBLE PRECISION NOT NULL
);

ALTER TABLE lanes ADD COLUMN replica TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE lanes ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE calls ADD COLUMN replica TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
