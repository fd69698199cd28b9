-- Version 7. Times are Unix seconds. Migrations go by PRAGMA user_version (file.py).

-- The sidecars that use this journal; one at a time has the file open.
CREATE TABLE replicas(
  name      TEXT PRIMARY KEY,
  entered_s REAL NOT NULL
) WITHOUT ROWID;

-- One queue per agent: at most one batch of it is open at a time.
CREATE TABLE lanes(
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,        -- AgentRef.lane
  agent_id   TEXT,                        -- learnt, where the name does not hold it
  due_s      REAL,                        -- when a claim may take it; NULL: idle, or claimed
  hold_s     REAL NOT NULL DEFAULT 0,     -- nothing is cut before: the server may be at work
  open_batch INTEGER REFERENCES batches(id),
  replica    TEXT NOT NULL DEFAULT '',    -- who has claimed it; '': nobody
  epoch      INTEGER NOT NULL DEFAULT 0   -- grows with each claim
);
CREATE INDEX lanes_due ON lanes(due_s) WHERE due_s IS NOT NULL;
CREATE INDEX lanes_of_caller ON lanes(substr(name, instr(name, '/') + 1));

-- A call is a log of turns 1..head with two cursors: acked <= sealed <= head.
CREATE TABLE calls(
  id              INTEGER PRIMARY KEY,
  key             TEXT NOT NULL UNIQUE,
  lane            INTEGER NOT NULL REFERENCES lanes(id),
  deliver         INTEGER NOT NULL,           -- 0: nobody's memory, never posted
  channel         TEXT NOT NULL,
  caller_key      TEXT NOT NULL,
  opened_at_s     REAL NOT NULL,
  closed_at_s     REAL,
  conversation_id TEXT,
  consent         TEXT NOT NULL DEFAULT '',   -- sidecar.model.Consent
  final           INTEGER NOT NULL DEFAULT 0, -- its channel has had the last word on it
  head            INTEGER NOT NULL DEFAULT 0, -- last turn appended
  sealed          INTEGER NOT NULL DEFAULT 0, -- last turn in any batch
  acked           INTEGER NOT NULL DEFAULT 0, -- last turn settled or given up
  parts           INTEGER NOT NULL DEFAULT 0, -- batches cut so far
  due_s           REAL,                       -- when what is pending is due; NULL: nothing is
  last_s          REAL NOT NULL,              -- last append
  settled_s       REAL,                       -- last settlement
  replica         TEXT NOT NULL DEFAULT '',   -- who has it while it is live
  epoch           INTEGER NOT NULL DEFAULT 0, -- grows each time a replica takes it
  room            TEXT NOT NULL DEFAULT '',   -- TENANT/ROOM, while it may go on there; '': none
  lost_s          REAL,                       -- when its worker was lost; NULL: opened since
  opened_by       TEXT,                       -- by which key it was opened last; NULL: its own
  tokens          INTEGER NOT NULL DEFAULT 0  -- of a model, where calls have a budget of them
);
CREATE INDEX calls_due ON calls(lane, due_s) WHERE due_s IS NOT NULL;
CREATE INDEX calls_of_caller ON calls(caller_key);
CREATE INDEX calls_settled ON calls(lane, caller_key, settled_s);
CREATE INDEX calls_waiting ON calls(lane, caller_key) WHERE head > acked;
CREATE INDEX calls_undelivered ON calls(id) WHERE head > acked;
CREATE INDEX calls_live ON calls(id) WHERE closed_at_s IS NULL;
CREATE INDEX calls_ended ON calls(coalesce(closed_at_s, last_s));
CREATE INDEX calls_of_room ON calls(room, caller_key) WHERE room <> '';

-- The keys by which later workers of a call name it: each went on where one was lost.
CREATE TABLE successors(
  key         TEXT PRIMARY KEY,
  call        INTEGER NOT NULL REFERENCES calls(id),
  opened_at_s REAL NOT NULL                   -- from then on its worker has heard everything
) WITHOUT ROWID;
CREATE INDEX successors_of_call ON successors(call);

-- Commands into live calls, for other replicas that have them: sidecar/journal/sql/commands.py.
CREATE TABLE commands(
  n       INTEGER PRIMARY KEY AUTOINCREMENT,
  call    INTEGER NOT NULL REFERENCES calls(id),
  command TEXT NOT NULL,                      -- sidecar.model.Command
  text    TEXT NOT NULL,
  asked_s REAL NOT NULL
);
CREATE INDEX commands_of_call ON commands(call);

-- What may be done once by all replicas together: sidecar/journal/sql/once.py.
CREATE TABLE once(
  name    TEXT PRIMARY KEY,
  call    INTEGER REFERENCES calls(id),       -- which it is part of; NULL: none
  answer  TEXT NOT NULL DEFAULT '',
  until_s REAL NOT NULL                       -- until when it is known
) WITHOUT ROWID;
CREATE INDEX once_of_call ON once(call);
CREATE INDEX once_by_age ON once(until_s);

-- Model tokens by tenant and UTC day, where tenants have a budget of them.
CREATE TABLE spent(
  tenant TEXT NOT NULL,
  day    INTEGER NOT NULL,                    -- since 1970
  tokens INTEGER NOT NULL,
  PRIMARY KEY(tenant, day)
) WITHOUT ROWID;

CREATE TABLE turns(
  call        INTEGER NOT NULL REFERENCES calls(id),
  n           INTEGER NOT NULL,               -- place in the log, from 1
  item_id     TEXT NOT NULL,
  seq         INTEGER NOT NULL,
  speaker     TEXT NOT NULL,
  text        TEXT NOT NULL,
  chars       INTEGER NOT NULL,
  at_s        REAL NOT NULL,
  appended_s  REAL NOT NULL,
  interrupted INTEGER NOT NULL,
  metrics     TEXT,                           -- JSON object, NULL when empty
  traceparent TEXT,                           -- W3C, of the span it was said in; NULL: none
  PRIMARY KEY(call, n)
) WITHOUT ROWID;
CREATE UNIQUE INDEX turns_item ON turns(call, item_id);

-- Turns lo..hi of a call, cut for one post. Only state, tries, times and error ever change.
CREATE TABLE batches(
  id          INTEGER PRIMARY KEY,
  batch_id    TEXT NOT NULL UNIQUE,
  lane        INTEGER NOT NULL REFERENCES lanes(id),
  call        INTEGER NOT NULL REFERENCES calls(id),
  part        INTEGER NOT NULL,
  lo          INTEGER NOT NULL,
  hi          INTEGER NOT NULL,
  last_part   INTEGER NOT NULL,
  state       TEXT NOT NULL,                  -- sidecar.journal.states.State
  attempt     INTEGER NOT NULL DEFAULT 0,     -- tries recorded
  horizon_s   REAL NOT NULL DEFAULT 0,        -- until then a try may still land
  sealed_at_s REAL NOT NULL,
  replayed_s  REAL,                           -- when a dead letter was put back last
  ended_s     REAL,                           -- settled, dead or dropped
  error       TEXT NOT NULL DEFAULT ''
);
CREATE INDEX batches_of_call ON batches(call, lo);
CREATE INDEX batches_open ON batches(lane, id)
    WHERE state IN ('sealed', 'sending', 'unknown', 'retry');
CREATE INDEX batches_dead ON batches(id) WHERE state = 'dead';
CREATE INDEX batches_dead_of_lane ON batches(lane, call) WHERE state = 'dead';

-- Calls that were erased with their caller, by a keyed hash of the call's key: it names nobody, and
-- what comes late for such a call is known by it.
CREATE TABLE tombstones(
  seal     BLOB PRIMARY KEY,
  erased_s REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX tombstones_by_age ON tombstones(erased_s);
