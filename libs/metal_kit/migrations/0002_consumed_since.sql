-- Ids that people choose come back after their end, and their versions start again. An object's current life began no
-- later than this; events from before it are of an earlier life, however high their version.
ALTER TABLE consumed ADD COLUMN since timestamptz NOT NULL DEFAULT '-infinity';
