-- A filter with two answers is asked for the rare one, and which one that is changes: in a plane that is full the free
-- machines are few, in one where all is well those that do not wait are. Both get an index in the order of the pages.
DROP INDEX machine_by_state;
CREATE INDEX machine_by_state ON machine (state, id);
DROP INDEX machine_waiting;
CREATE INDEX machine_by_waiting ON machine (waiting, id);
CREATE INDEX machine_allocated ON machine (id) WHERE project_id IS NOT NULL;
CREATE INDEX machine_free ON machine (id) WHERE project_id IS NULL;
