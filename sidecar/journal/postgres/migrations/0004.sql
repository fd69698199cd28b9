-- A call that outlives its worker: sidecar/journal/sqlite/schema.sql explains the columns.

ALTER TABLE calls ADD COLUMN room TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN lost_s DOUBLE PRECISION;
ALTER TABLE calls ADD COLUMN opened_by TEXT COLLATE "C";
CREATE INDEX calls_of_room ON calls(room, caller_key) WHERE room <> '';

-- A sidecar of a version before erases calls without knowing of their successors.
CREATE TABLE successors(
  key         TEXT COLLATE "C" PRIMARY KEY,
  call        BIGINT NOT NULL REFERENCES calls(id) ON DELETE CASCADE,
  opened_at_s DOUBLE PRECISION NOT NULL
);
CREATE INDEX successors_of_call ON successors(call);
