-- Releasing addresses of one leaf, many at once: what callers of one address each want, put together. Locking as
-- everywhere: the prefix row first, and what it guards is read by later statements.
--
-- `entries` are JSON objects: addr; projects (those that it may belong to; null: any); owner_kind and owner_id (whom it
-- must belong to; left out: nobody may use it); seen (when it was acquired, if only that holding is meant); request_id
-- (makes a retry harmless); actor.
--
-- Per entry: `ok` (with the project that held it), `known` (released by this request before), `in_use` (with the owner),
-- `unknown` (not in use, resting, another project's, or acquired by somebody else since).
CREATE FUNCTION release_entries(p_prefix bigint, p_entries jsonb)
RETURNS TABLE (ord integer, outcome text, project text, holder_kind text, holder_id text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home    record;
    asked   integer := jsonb_array_length(p_entries);
    done    integer[] := '{}';
    knew    integer[] := '{}';
    owners  text[];
    freed   inet[];
    rests   integer;
    a       inet;
    run_lo  inet;
    run_hi  inet;
BEGIN
    SELECT p.namespace_id, p.quarantine INTO home FROM prefix p WHERE p.id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT n, 'unknown', '', '', '' FROM generate_series(1, asked) AS n;
        RETURN;
    END IF;
    IF p_entries @? '$[*].request_id ? (@ != null)' THEN
        knew := ARRAY(
            SELECT w.ord::integer FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS w (entry, ord)
            WHERE EXISTS (SELECT FROM spent_request s WHERE s.request_id = w.entry ->> 'request_id'));
    END IF;

    WITH wanted AS MATERIALIZED (
        SELECT w.ord::integer AS ord, e.*
        FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS w (entry, ord)
        CROSS JOIN LATERAL jsonb_to_record(w.entry) AS e (
            addr inet, projects jsonb, owner_kind text, owner_id text, seen timestamptz, request_id text, actor text)
        WHERE NOT w.ord = ANY (knew)
    ), gone AS (
        DELETE FROM ip i USING wanted w
        WHERE i.namespace_id = home.namespace_id AND i.addr = w.addr AND i.prefix_id = p_prefix
          AND (i.state = 'reserved' OR i.state = 'active' AND home.quarantine = '0')
          AND i.owner_kind = coalesce(w.owner_kind, '') AND i.owner_id = coalesce(w.owner_id, '')
          AND (w.projects IS NULL OR w.projects ? i.project_id) AND (w.seen IS NULL OR w.seen = i.created_at)
        RETURNING w.ord, i.addr, i.state, i.request_id, i.owner_kind, i.owner_id, i.project_id, w.actor,
                  w.request_id AS asked_by
    ), resting AS (
        UPDATE ip i SET state = 'quarantine', release_after = now() + home.quarantine, owner_kind = '', owner_id = '',
                        request_id = NULL, version = i.version + 1, updated_at = now()
        FROM wanted w JOIN ip old ON old.namespace_id = home.namespace_id AND old.addr = w.addr
        WHERE home.quarantine > '0' AND i.namespace_id = home.namespace_id AND i.addr = w.addr
          AND i.prefix_id = p_prefix AND i.state = 'active'
          AND i.owner_kind = coalesce(w.owner_kind, '') AND i.owner_id = coalesce(w.owner_id, '')
          AND (w.projects IS NULL OR w.projects ? i.project_id) AND (w.seen IS NULL OR w.seen = i.created_at)
        RETURNING w.ord, i.addr, 'quarantine', old.request_id, old.owner_kind, old.owner_id, i.project_id, w.actor,
                  w.request_id
    ), released AS (
        SELECT * FROM gone UNION ALL SELECT * FROM resting
    ), told AS (
        INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
        SELECT coalesce(r.actor, ''), 'release', home.namespace_id, r.addr, r.owner_kind, r.owner_id, r.project_id
        FROM released r ORDER BY r.ord
    ), spent AS (
        INSERT INTO spent_request (request_id)
        SELECT r.request_id FROM released r WHERE r.request_id IS NOT NULL
        UNION SELECT r.asked_by FROM released r WHERE r.asked_by IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT coalesce(array_agg(r.ord ORDER BY r.ord), '{}'), array_agg(r.project_id ORDER BY r.ord),
           coalesce(array_agg(r.addr ORDER BY r.addr) FILTER (WHERE r.state = 'active'), '{}'),
           count(*) FILTER (WHERE r.state = 'quarantine')
    INTO done, owners, freed, rests FROM released r;

    -- Neighbours go back together: one change of the free ranges for each run of them.
    FOREACH a IN ARRAY freed LOOP
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
    IF cardinality(done) > 0 THEN
        UPDATE prefix p SET used = p.used - cardinality(freed), quarantined = p.quarantined + rests
        WHERE p.id = p_prefix;
        RETURN QUERY SELECT done[n], 'ok', owners[n], '', '' FROM generate_subscripts(done, 1) AS n;
    END IF;
    IF cardinality(done) < asked THEN
        RETURN QUERY
        SELECT w.ord::integer,
               CASE WHEN w.ord = ANY (knew) THEN 'known' WHEN i.addr IS NULL THEN 'unknown' ELSE 'in_use' END,
               coalesce(i.project_id, ''), coalesce(i.owner_kind, ''), coalesce(i.owner_id, '')
        FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS w (entry, ord)
        LEFT JOIN ip i ON i.namespace_id = home.namespace_id AND i.addr = (w.entry ->> 'addr')::inet
             AND i.prefix_id = p_prefix AND i.state <> 'quarantine'
             AND (jsonb_typeof(w.entry -> 'projects') IS DISTINCT FROM 'array' OR w.entry -> 'projects' ? i.project_id)
             AND (w.entry ->> 'seen' IS NULL OR (w.entry ->> 'seen')::timestamptz = i.created_at)
             AND (i.owner_kind, i.owner_id)
                 <> (coalesce(w.entry ->> 'owner_kind', ''), coalesce(w.entry ->> 'owner_id', ''))
        WHERE NOT w.ord = ANY (done);
    END IF;
END
$$;
