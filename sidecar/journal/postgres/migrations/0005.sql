-- Commands into live calls, on their way to the replica that has the call: see
-- sidecar/journal/sql/commands.py.

CREATE TABLE commands(
  id      BIGSERIAL PRIMARY KEY,
  call    BIGINT NOT NULL REFERENCES calls(id) ON DELETE CASCADE,
  command TEXT NOT NULL,
  text    TEXT NOT NULL,
  asked_s DOUBLE PRECISION NOT NULL
);
CREATE INDEX commands_of_call ON commands(call);
