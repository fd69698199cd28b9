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

-- What may be done once by all replicas together: sidecar/journal/sql/once.py.
CREATE TABLE once(
  name    TEXT COLLATE "C" PRIMARY KEY,
  call    BIGINT REFERENCES calls(id) ON DELETE CASCADE,
  answer  TEXT NOT NULL DEFAULT '',
  until_s DOUBLE PRECISION NOT NULL
);
CREATE INDEX once_of_call ON once(call);
CREATE INDEX once_by_age ON once(until_s);

-- Model tokens, where tenants (by UTC day) or calls have a budget of them.
ALTER TABLE calls ADD COLUMN tokens BIGINT NOT NULL DEFAULT 0;
CREATE TABLE spent(
  tenant TEXT COLLATE "C" NOT NULL,
  day    BIGINT NOT NULL,
  tokens BIGINT NOT NULL,
  PRIMARY KEY(tenant, day)
);
