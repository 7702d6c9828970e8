-- Events of one object are ordered by their number in the outbox of their service: versions start again when an id that
-- people choose comes back after its end, and clocks can step back.
ALTER TABLE consumed ADD COLUMN sequence bigint NOT NULL DEFAULT 0;
