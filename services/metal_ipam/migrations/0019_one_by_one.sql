-- Functions keep the plans of their statements for as long as a connection lives. With 0016 alone, one that was planned
-- while a prefix held a few addresses still read all addresses of the prefix, by an index, to find those that a call
-- named: a release took ten milliseconds when there were thirty thousand. No setting forbids Postgres that order, as
-- both sides are looked up by an index. So what a call names is looked up one by one, by the whole
-- key, and changed by nothing but the keys: such statements have one plan only.
--
-- An address needs no key of its own to its namespace: it lies in a prefix, which has one, and must agree with it. To
-- check that key took a quarter of the time that an address takes to be written.
ALTER TABLE ip DROP CONSTRAINT ip_namespace_id_fkey;

-- As before, and each address once in a call.
CREATE OR REPLACE FUNCTION release_entries(p_prefix bigint, p_entries jsonb)
RETURNS TABLE (ord integer, outcome text, project text, holder_kind text, holder_id text)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    home    record;
    w       record;
    done    integer := 0;
    objects inet[] := '{}';
    actors  text[] := '{}';
    kinds   text[] := '{}';
    ids     text[] := '{}';
    owners  text[] := '{}';
    spent   text[] := '{}';
    resting inet[] := '{}';
    leaving inet[] := '{}';
    freed   inet[] := '{}';
    gone    integer;
    a       inet;
    run_lo  inet;
    run_hi  inet;
BEGIN
    SELECT p.namespace_id, p.quarantine INTO home FROM prefix p WHERE p.id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT n, 'unknown', '', '', '' FROM generate_series(1, jsonb_array_length(p_entries)) AS n;
        RETURN;
    END IF;
    -- OFFSET 0 makes these a look-up for each entry.
    FOR w IN
        SELECT one.ord::integer AS ord, e.addr, e.request_id, coalesce(e.actor, '') AS actor, k.known,
               i.state, i.request_id AS acquired_by, i.owner_kind, i.owner_id, i.project_id,
               i.owner_kind = coalesce(e.owner_kind, '') AND i.owner_id = coalesce(e.owner_id, '') AS expected
        FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS one (entry, ord)
        CROSS JOIN LATERAL jsonb_to_record(one.entry) AS e (
            addr inet, projects jsonb, owner_kind text, owner_id text, seen timestamptz, request_id text, actor text)
        LEFT JOIN LATERAL (
            SELECT * FROM ip l
            WHERE l.namespace_id = home.namespace_id AND l.addr = e.addr AND l.prefix_id = p_prefix
              AND l.state <> 'quarantine' AND (e.projects IS NULL OR e.projects ? l.project_id)
              AND (e.seen IS NULL OR e.seen = l.created_at) OFFSET 0) AS i ON true
        LEFT JOIN LATERAL (
            SELECT true AS known FROM spent_request s WHERE s.request_id = e.request_id OFFSET 0) AS k ON true
    LOOP
        ord := w.ord;
        project := coalesce(w.project_id, '');
        holder_kind := '';
        holder_id := '';
        IF w.known THEN
            outcome := 'known';
        ELSIF w.state IS NULL THEN
            outcome := 'unknown';
        ELSIF NOT w.expected THEN
            outcome := 'in_use';
            holder_kind := w.owner_kind;
            holder_id := w.owner_id;
        ELSE
            outcome := 'ok';
            done := done + 1;
            objects[done] := w.addr;
            actors[done] := w.actor;
            kinds[done] := w.owner_kind;
            ids[done] := w.owner_id;
            owners[done] := w.project_id;
            IF w.acquired_by IS NOT NULL THEN
                spent := spent || w.acquired_by;
            END IF;
            IF w.request_id IS NOT NULL THEN
                spent := spent || w.request_id;
            END IF;
            IF w.state = 'active' AND home.quarantine > '0' THEN
                resting := resting || w.addr;
            ELSE
                leaving := leaving || w.addr;
                IF w.state = 'active' THEN
                    freed := freed || w.addr;
                END IF;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF done = 0 THEN
        RETURN;
    END IF;

    IF cardinality(leaving) > 0 THEN
        DELETE FROM ip i WHERE i.namespace_id = home.namespace_id AND i.addr = ANY (leaving);
        GET DIAGNOSTICS gone = ROW_COUNT;
        done := done - gone;
    END IF;
    IF cardinality(resting) > 0 THEN
        UPDATE ip i SET state = 'quarantine', release_after = now() + home.quarantine, owner_kind = '', owner_id = '',
                        request_id = NULL, version = i.version + 1, updated_at = now()
        WHERE i.namespace_id = home.namespace_id AND i.addr = ANY (resting);
        GET DIAGNOSTICS gone = ROW_COUNT;
        done := done - gone;
    END IF;
    -- Whoever changes who uses an address holds its prefix, as this does, so that what was read is still so. An address
    -- that is named twice ends here.
    IF done <> 0 THEN
        RAISE EXCEPTION 'addresses of prefix % changed while they were released', p_prefix USING ERRCODE = '40001';
    END IF;
    INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
    SELECT t.actor, 'release', home.namespace_id, t.addr, t.owner_kind, t.owner_id, t.project_id
    FROM unnest(actors, objects, kinds, ids, owners) AS t (actor, addr, owner_kind, owner_id, project_id);
    IF cardinality(spent) > 0 THEN
        INSERT INTO spent_request (request_id) SELECT unnest(spent) ON CONFLICT DO NOTHING;
    END IF;

    -- Neighbours go back together: one change of the free ranges for each run of them.
    FOR a IN SELECT f FROM unnest(freed) AS f ORDER BY f LOOP
        IF run_hi IS NOT NULL AND run_hi + 1 = a THEN
            run_hi := a;
        ELSE
            IF run_hi IS NOT NULL THEN
                PERFORM give_range(p_prefix, run_lo, run_hi);
            END IF;
            run_lo := a;
            run_hi := a;
        END IF;
    END LOOP;
    IF run_hi IS NOT NULL THEN
        PERFORM give_range(p_prefix, run_lo, run_hi);
    END IF;
    UPDATE prefix p SET used = p.used - cardinality(freed), quarantined = p.quarantined + cardinality(resting)
    WHERE p.id = p_prefix;
END
$$;

CREATE OR REPLACE FUNCTION release_n(
    p_namespaces integer[], p_addrs inet[], p_owner_kinds text[], p_owner_ids text[], p_actor text
) RETURNS TABLE (ord integer, outcome text)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    homes   bigint[];
    w       record;
    rest    interval;
    gone    boolean;
    used_by bigint := 0;
    rests   bigint := 0;
    current bigint;
BEGIN
    homes := ARRAY(
        SELECT DISTINCT (SELECT i.prefix_id FROM ip i WHERE i.namespace_id = a.namespace_id AND i.addr = a.addr)
        FROM unnest(p_namespaces, p_addrs) AS a (namespace_id, addr)
    );
    PERFORM FROM prefix p WHERE p.id = ANY (homes) ORDER BY p.id FOR NO KEY UPDATE;
    FOR w IN
        SELECT a.ord::integer AS ord, a.addr, a.namespace_id, i.prefix_id, i.state, i.request_id, i.owner_kind,
               i.owner_id, i.project_id,
               (a.want_kind IS NOT NULL AND (a.want_kind, a.want_id) <> (i.owner_kind, i.owner_id)) AS is_foreign
        FROM unnest(p_namespaces, p_addrs, p_owner_kinds, p_owner_ids)
             WITH ORDINALITY AS a (namespace_id, addr, want_kind, want_id, ord)
        -- OFFSET 0 keeps this a look-up for each address.
        LEFT JOIN LATERAL (
            SELECT * FROM ip l WHERE l.namespace_id = a.namespace_id AND l.addr = a.addr OFFSET 0) AS i ON true
        ORDER BY i.prefix_id, a.ord
    LOOP
        ord := w.ord;
        IF w.prefix_id IS DISTINCT FROM current THEN
            UPDATE prefix p SET used = p.used - used_by, quarantined = p.quarantined + rests WHERE p.id = current;
            current := w.prefix_id;
            used_by := 0;
            rests := 0;
            SELECT p.quarantine INTO rest FROM prefix p WHERE p.id = current;
        END IF;
        IF w.state IS NULL OR w.state = 'quarantine' THEN
            outcome := 'unknown';
        ELSIF NOT w.prefix_id = ANY (homes) THEN
            outcome := 'moved';
        ELSIF w.is_foreign THEN
            outcome := 'foreign';
        ELSE
            IF rest > '0' AND w.state = 'active' THEN
                UPDATE ip i SET state = 'quarantine', release_after = now() + rest, owner_kind = '', owner_id = '',
                                request_id = NULL, version = i.version + 1, updated_at = now()
                WHERE i.namespace_id = w.namespace_id AND i.addr = w.addr AND i.state = 'active'
                  AND (i.owner_kind, i.owner_id) = (w.owner_kind, w.owner_id);
                gone := FOUND;
                rests := rests + gone::integer;
            ELSE
                DELETE FROM ip i
                WHERE i.namespace_id = w.namespace_id AND i.addr = w.addr AND i.state = w.state
                  AND (i.owner_kind, i.owner_id) = (w.owner_kind, w.owner_id);
                gone := FOUND;
                IF gone AND w.state = 'active' THEN
                    PERFORM give_range(w.prefix_id, w.addr, w.addr);
                    used_by := used_by + 1;
                END IF;
            END IF;
            -- Not gone: the call names the address twice, or it was given to another owner since it was read.
            outcome := CASE WHEN gone THEN 'ok'
                            WHEN EXISTS (SELECT FROM ip i WHERE i.namespace_id = w.namespace_id AND i.addr = w.addr
                                                            AND i.state <> 'quarantine') THEN 'moved'
                            ELSE 'unknown' END;
            IF gone THEN
                IF w.request_id IS NOT NULL THEN
                    INSERT INTO spent_request (request_id) VALUES (w.request_id) ON CONFLICT DO NOTHING;
                END IF;
                INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
                VALUES (p_actor, 'release', w.namespace_id, w.addr, w.owner_kind, w.owner_id, w.project_id);
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    UPDATE prefix p SET used = p.used - used_by, quarantined = p.quarantined + rests WHERE p.id = current;
END
$$;

-- The same for what earlier requests got.
CREATE OR REPLACE FUNCTION earlier(p_requests text[], p_entries jsonb)
RETURNS TABLE (ord integer, outcome text, address inet, acquired_at timestamptz)
LANGUAGE sql VOLATILE AS $$
    SELECT w.ord::integer,
           CASE WHEN i.addr IS NULL THEN 'request_spent'
                WHEN i.request_hash <> coalesce(p_entries -> (w.ord - 1)::integer ->> 'request_hash', '')
                THEN 'request_reused'
                ELSE 'ok' END,
           i.addr, i.created_at
    FROM unnest(p_requests) WITH ORDINALITY AS w (request_id, ord)
    LEFT JOIN LATERAL (SELECT * FROM ip l WHERE l.request_id = w.request_id OFFSET 0) AS i ON true
    LEFT JOIN LATERAL (SELECT * FROM spent_request l WHERE l.request_id = w.request_id OFFSET 0) AS s ON true
    WHERE i.addr IS NOT NULL OR s.request_id IS NOT NULL
$$;
