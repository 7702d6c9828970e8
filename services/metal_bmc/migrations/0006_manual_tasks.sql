ALTER TABLE manual_task
    -- What is to be done in words, with the options that go with the action.
    ADD COLUMN instruction text NOT NULL,
    -- The endpoint's revision that wants the power: a wish that was declined is not a task again until people change it.
    ADD COLUMN revision bigint NOT NULL;
CREATE INDEX manual_task_wishes ON manual_task (machine, id) WHERE command IS NULL;
CREATE INDEX manual_task_by_partition ON manual_task (partition, id);
-- Open ones are few among those that are kept; each list of them has its own order.
ALTER INDEX manual_task_open RENAME TO manual_task_open_by_partition;
CREATE INDEX manual_task_open ON manual_task (id) WHERE state = 'open';
CREATE INDEX manual_task_open_by_machine ON manual_task (machine, id) WHERE state = 'open';
