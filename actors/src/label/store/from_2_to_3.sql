CREATE TABLE settlements (
    id        INTEGER PRIMARY KEY,
    uid       TEXT    NOT NULL UNIQUE,
    task      INTEGER NOT NULL REFERENCES tasks,
    revision  INTEGER NOT NULL,
    settled_by INTEGER NOT NULL REFERENCES labelers,
    at        INTEGER NOT NULL,
    body      TEXT,
    UNIQUE (task, revision)
);
CREATE INDEX settlements_at ON settlements (at);
CREATE VIEW settled AS SELECT s.* FROM settlements s WHERE s.body IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM settlements WHERE task = s.task AND revision > s.revision AND body IS NULL
);
