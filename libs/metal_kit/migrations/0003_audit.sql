-- The audit log: a chain of entries, each with a hash over the one before. Where it begins and ends stands in one row,
-- whose lock is what lets replicas share the chain.
CREATE TABLE audit_chain (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    head_sequence bigint NOT NULL,
    head_hash bytea NOT NULL,
    -- The last entry that retention removed.
    floor_sequence bigint NOT NULL,
    floor_hash bytea NOT NULL
) WITH (fillfactor = 20);
-- The chain of another service, put in the place of this one, does not fit its beginning.
INSERT INTO audit_chain (head_sequence, head_hash, floor_sequence, floor_hash)
SELECT 0, hash, 0, hash FROM sha256(convert_to('metalplane audit ' || current_schema(), 'UTF8')) AS hash;

-- `entry` is what counts; the other columns repeat what lists search by. phase: AuditPhase.
CREATE TABLE audit_entry (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    hash bytea NOT NULL,
    entry bytea NOT NULL,
    call uuid NOT NULL,
    phase smallint NOT NULL,
    time timestamptz NOT NULL,
    project text NOT NULL,
    caller text NOT NULL,
    method text NOT NULL,
    object text NOT NULL,
    code text NOT NULL
);
CREATE UNIQUE INDEX audit_entry_by_call ON audit_entry (call, phase);
CREATE INDEX audit_entry_by_time ON audit_entry (time, sequence);
CREATE INDEX audit_entry_by_project ON audit_entry (project, time, sequence);
CREATE INDEX audit_entry_by_caller ON audit_entry (caller, time, sequence);
CREATE INDEX audit_entry_by_method ON audit_entry (method, time, sequence);
CREATE INDEX audit_entry_by_object ON audit_entry (object, time, sequence);
CREATE INDEX audit_entry_by_code ON audit_entry (code, time, sequence);

-- Append a batch; answers the new head's sequence. An entry that is there already is left out, so that a batch whose
-- commit got lost on the way can be sent again.
CREATE FUNCTION audit_append(
    entries bytea[], calls uuid[], phases smallint[], times timestamptz[], projects text[], callers text[],
    methods text[], objects text[], codes text[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    head audit_chain;
    link record;
BEGIN
    SELECT * INTO STRICT head FROM audit_chain FOR UPDATE;
    FOR link IN
        SELECT * FROM unnest(entries, calls, phases, times, projects, callers, methods, objects, codes)
            AS each (entry, call, phase, time, project, caller, method, object, code)
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM audit_entry AS a WHERE a.call = link.call AND a.phase = link.phase);
        head.head_sequence := head.head_sequence + 1;
        head.head_hash := sha256(head.head_hash || int8send(head.head_sequence) || link.entry);
        INSERT INTO audit_entry (
            sequence, hash, entry, call, phase, time, project, caller, method, object, code
        ) VALUES (
            head.head_sequence, head.head_hash, link.entry, link.call, link.phase, link.time, link.project,
            link.caller, link.method, link.object, link.code
        );
    END LOOP;
    UPDATE audit_chain SET head_sequence = head.head_sequence, head_hash = head.head_hash;
    RETURN head.head_sequence;
END
$$;

-- Remove the entries up to this one, which becomes the floor. The caller has appended an entry that says so.
CREATE FUNCTION audit_prune(last bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    removed bigint;
BEGIN
    UPDATE audit_chain SET floor_sequence = sequence, floor_hash = hash FROM audit_entry WHERE sequence = last;
    DELETE FROM audit_entry WHERE sequence <= last AND EXISTS (SELECT FROM audit_chain WHERE floor_sequence = last);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$;

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: no % of %', TG_OP, TG_TABLE_NAME USING ERRCODE = '42501';
END
$$;
CREATE TRIGGER audit_entry_stays BEFORE UPDATE OR TRUNCATE ON audit_entry
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_chain_stays BEFORE INSERT OR DELETE OR TRUNCATE ON audit_chain
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

CREATE FUNCTION audit_above_floor() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.sequence > (SELECT floor_sequence FROM audit_chain) THEN
        RAISE EXCEPTION 'the audit log is append-only: entry % is not for retention to remove', OLD.sequence
            USING ERRCODE = '42501';
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER audit_entry_kept BEFORE DELETE ON audit_entry FOR EACH ROW EXECUTE FUNCTION audit_above_floor();

CREATE FUNCTION audit_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.head_sequence < OLD.head_sequence OR NEW.floor_sequence < OLD.floor_sequence
        OR NEW.floor_sequence >= NEW.head_sequence AND NEW.floor_sequence > OLD.floor_sequence THEN
        RAISE EXCEPTION 'the audit log is append-only: its ends go forward' USING ERRCODE = '42501';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_chain_grows BEFORE UPDATE ON audit_chain FOR EACH ROW EXECUTE FUNCTION audit_forward();
