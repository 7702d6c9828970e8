-- Choosing by counts instead of by lists; claims that are made before their allocation is written; what lists and sweeps
-- look for.

-- A machine that still runs its last tenant's system is refused by inventory: it is no candidate either.
ALTER TABLE candidate ADD COLUMN reclaim_failed boolean NOT NULL DEFAULT false;
ALTER TABLE candidate ALTER COLUMN reclaim_failed DROP DEFAULT;

DROP INDEX candidate_free;
CREATE INDEX candidate_free ON candidate (partition, size, rack, machine)
    WHERE waiting AND alive AND clean AND cabled AND NOT reclaim_failed AND NOT bound AND state = 'available';

-- A claim that turns out to be taken is tried with another machine before the allocation names one.
ALTER TABLE claim DROP CONSTRAINT claim_allocation_fkey;
ALTER TABLE claim ADD CONSTRAINT claim_allocation_fkey
    FOREIGN KEY (allocation) REFERENCES allocation DEFERRABLE INITIALLY DEFERRED;

-- Lists leave out what is gone unless asked; released allocations stay for days and outnumber the others.
CREATE INDEX allocation_project_present ON allocation (project, id) WHERE phase <> 'released';
CREATE INDEX allocation_unsettled ON allocation (id) WHERE phase NOT IN ('running', 'released');
CREATE INDEX allocation_released ON allocation (update_time) WHERE phase = 'released';

-- When a failed BMC command may be given again, whatever else wakes the allocation before; and why it failed, as
-- `REASON: text`.
ALTER TABLE allocation ADD COLUMN command_after timestamptz;
ALTER TABLE allocation ADD COLUMN command_error text NOT NULL DEFAULT '';
