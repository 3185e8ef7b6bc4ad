ALTER TABLE tasks ADD COLUMN arm TEXT;
ALTER TABLE tasks ADD COLUMN place INTEGER;
ALTER TABLE tasks ADD COLUMN told TEXT;
ALTER TABLE labelers ADD COLUMN last_place INTEGER NOT NULL DEFAULT 0;
DROP INDEX tasks_open;
CREATE INDEX tasks_open ON tasks (id) WHERE known IS NULL AND n_taken < wanted AND place IS NULL;
CREATE INDEX tasks_placed ON tasks (place) WHERE known IS NULL AND n_taken < wanted AND place IS NOT NULL;
