-- What is asked. `content` is a hash of it, so that nothing is asked twice by importing twice.
CREATE TABLE tasks (
    id        INTEGER PRIMARY KEY,
    content   TEXT    NOT NULL UNIQUE,
    body      TEXT    NOT NULL,             -- a LabelTask
    -- For screening tasks, the ranks that are right.
    known     TEXT,
    -- How many labelers are to answer; and how many have, or are at it.
    wanted    INTEGER NOT NULL,
    n_taken   INTEGER NOT NULL DEFAULT 0,
    -- How it came about that it is asked (an Arm); and its place among those that have one, which come first.
    arm       TEXT,
    place     INTEGER,
    -- What the reward model that gave it its place made of its responses (a Told).
    told      TEXT
);
CREATE INDEX tasks_open ON tasks (id) WHERE known IS NULL AND n_taken < wanted AND place IS NULL;
CREATE INDEX tasks_placed ON tasks (place) WHERE known IS NULL AND n_taken < wanted AND place IS NOT NULL;
CREATE INDEX tasks_screening ON tasks (id) WHERE known IS NOT NULL;

CREATE TABLE labelers (
    id        INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    token     BLOB    UNIQUE,               -- the hash of the link's token; none for names that only files brought
    is_admin  INTEGER NOT NULL,
    -- Whether the screening tasks are done, and were done well enough.
    has_passed INTEGER,
    -- Up to where this labeler has been through the tasks, through those that came back, and through the places.
    last_task INTEGER NOT NULL DEFAULT 0,
    last_return INTEGER NOT NULL DEFAULT 0,
    last_place INTEGER NOT NULL DEFAULT 0
);

-- A labeler and a task: taken, left, skipped or answered. `pass` is 1 for a hidden repeat.
CREATE TABLE assignments (
    id        INTEGER PRIMARY KEY,
    handle    TEXT    NOT NULL UNIQUE,      -- what a browser knows it by
    task      INTEGER NOT NULL REFERENCES tasks,
    labeler   INTEGER NOT NULL REFERENCES labelers,
    pass      INTEGER NOT NULL,
    state     TEXT    NOT NULL CHECK (state IN ('taken', 'left', 'skipped', 'answered')),
    shown     TEXT    NOT NULL,             -- the order in which the responses are shown
    draft     TEXT,
    taken_at  INTEGER NOT NULL,             -- times are milliseconds since 1970
    expires_at INTEGER NOT NULL,
    -- When it was last answered or skipped: what `undo` goes back by.
    finished_at INTEGER,
    UNIQUE (task, labeler, pass)
);
CREATE INDEX assignments_taken ON assignments (expires_at) WHERE state = 'taken';
CREATE INDEX assignments_of ON assignments (labeler, state, finished_at);
CREATE INDEX assignments_drafts ON assignments (labeler) WHERE draft IS NOT NULL;

-- Tasks that came back, in order: skipped, or taken and left.
CREATE TABLE returns (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    task      INTEGER NOT NULL REFERENCES tasks
);

-- Every revision is kept.
CREATE TABLE answers (
    id        INTEGER PRIMARY KEY,
    uid       TEXT    NOT NULL UNIQUE,      -- a hash of who said what about which task, and when
    assignment INTEGER NOT NULL REFERENCES assignments,
    revision  INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    seconds   REAL    NOT NULL,
    body      TEXT    NOT NULL,             -- an Answer
    UNIQUE (assignment, revision)
);
CREATE INDEX answers_at ON answers (at);

-- What the admin settled tasks by. It stands beside the labelers' answers, and every revision is kept.
CREATE TABLE settlements (
    id        INTEGER PRIMARY KEY,
    uid       TEXT    NOT NULL UNIQUE,      -- a hash of who settled which task by what, and when
    task      INTEGER NOT NULL REFERENCES tasks,
    revision  INTEGER NOT NULL,
    settled_by INTEGER NOT NULL REFERENCES labelers,
    at        INTEGER NOT NULL,
    body      TEXT,                         -- an Answer; none where it was taken back
    UNIQUE (task, revision)
);
CREATE INDEX settlements_at ON settlements (at);
-- Without what was taken back. The last revision of a task that is here is what it is settled by.
CREATE VIEW settled AS SELECT s.* FROM settlements s WHERE s.body IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM settlements WHERE task = s.task AND revision > s.revision AND body IS NULL
);

-- Requests that were answered, so that one that is sent again is not done again.
CREATE TABLE requests (
    key       TEXT    PRIMARY KEY,
    labeler   INTEGER NOT NULL REFERENCES labelers,
    revision  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE meta (
    key       TEXT    PRIMARY KEY,
    value     TEXT    NOT NULL
) WITHOUT ROWID;
