-- Commands into live calls, for other replicas that have them: sidecar/journal/sql/commands.py.
-- A replica of the release before deletes calls and does not know this table.

CREATE TABLE commands(
  n       BIGSERIAL PRIMARY KEY,
  call    BIGINT NOT NULL REFERENCES calls(id) ON DELETE CASCADE,
  command TEXT NOT NULL,
  text    TEXT NOT NULL,
  asked_s DOUBLE PRECISION NOT NULL
);
CREATE INDEX commands_of_call ON commands(call);
