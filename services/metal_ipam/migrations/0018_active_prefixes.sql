-- A prefix that is not active gives only what is asked for by its number, also to those who remember it as active: as
-- before, but `acquire_n` answers `full` for each entry, and `acquire_many` `gone`, which makes the caller look again.
CREATE OR REPLACE FUNCTION acquire_n(p_prefix bigint, p_requests text[], p_entries jsonb, p_actor text)
RETURNS TABLE (ord integer, outcome text, address inet, acquired_at timestamptz)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    todo   integer[] := ARRAY(SELECT generate_series(1, cardinality(p_requests)));
    asked  integer := cardinality(p_requests);
    taken  inet[];
    got    integer;
    home   record;
BEGIN
    IF knows_request(p_requests) THEN
        RETURN QUERY SELECT * FROM earlier(p_requests, p_entries);
        todo := ARRAY(SELECT unnest(todo) EXCEPT SELECT e.ord FROM earlier(p_requests, p_entries) e ORDER BY 1);
        IF cardinality(todo) = 0 THEN
            RETURN;
        END IF;
        asked := cardinality(todo);
    END IF;

    UPDATE prefix p SET used = p.used + asked WHERE p.id = p_prefix AND p.kind = 'leaf' AND p.status = 'active'
    RETURNING p.namespace_id INTO home;
    IF NOT FOUND THEN
        RETURN QUERY SELECT t, coalesce((SELECT CASE p.kind WHEN 'leaf' THEN 'full' ELSE 'wrong_kind' END
                                         FROM prefix p WHERE p.id = p_prefix), 'unknown_prefix'), NULL::inet, NULL::timestamptz
                     FROM unnest(todo) AS t;
        RETURN;
    END IF;

    -- Once more: a retry that waited for the lock behind its twin finds the twin's address here.
    IF knows_request(ARRAY(SELECT p_requests[t] FROM unnest(todo) AS t)) THEN
        RETURN QUERY SELECT * FROM earlier(p_requests, p_entries) e WHERE e.ord = ANY (todo);
        todo := ARRAY(SELECT unnest(todo) EXCEPT SELECT e.ord FROM earlier(p_requests, p_entries) e ORDER BY 1);
    END IF;

    got := 0;
    IF cardinality(todo) > 0 THEN
        taken := take_next(p_prefix, cardinality(todo));
        got := cardinality(taken);
    END IF;
    IF got > 0 THEN
        PERFORM put_addresses(p_prefix, home.namespace_id, 'active', taken, todo[1:got], p_requests, p_entries, p_actor);
    END IF;
    IF got < asked THEN
        UPDATE prefix p SET used = p.used - (asked - got) WHERE p.id = p_prefix;
    END IF;
    RETURN QUERY SELECT todo[k], CASE WHEN k <= got THEN 'ok' ELSE 'full' END, taken[k], now()
                 FROM generate_series(1, cardinality(todo)) AS k;
END
$$;

CREATE OR REPLACE FUNCTION acquire_many(p_prefix bigint, p_count integer, p_entry jsonb, p_request text)
RETURNS TABLE (outcome text, addresses text[], acquired_at timestamptz)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    home   record;
    taken  inet[];
BEGIN
    IF p_request IS NOT NULL AND knows_request(ARRAY[p_request || '/0']) THEN
        RETURN QUERY SELECT 'known', NULL::text[], NULL::timestamptz;
        RETURN;
    END IF;
    UPDATE prefix p SET used = p.used + p_count WHERE p.id = p_prefix AND p.kind = 'leaf' AND p.status = 'active'
    RETURNING p.namespace_id, p.size - p.used - p.reserved AS left_over INTO home;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'gone', NULL::text[], NULL::timestamptz;
        RETURN;
    END IF;
    -- Once more: a retry that waited for the lock behind its twin finds the twin's addresses here.
    IF home.left_over < 0 OR p_request IS NOT NULL AND knows_request(ARRAY[p_request || '/0']) THEN
        UPDATE prefix p SET used = p.used - p_count WHERE p.id = p_prefix;
        RETURN QUERY SELECT CASE WHEN home.left_over < 0 THEN 'full' ELSE 'known' END, NULL::text[], NULL::timestamptz;
        RETURN;
    END IF;
    taken := take_next(p_prefix, p_count);
    IF cardinality(taken) < p_count THEN
        RAISE EXCEPTION 'prefix % has % free addresses by its counters, and fewer in ranges',
            p_prefix, home.left_over + p_count;
    END IF;
    WITH put AS (
        INSERT INTO ip (namespace_id, addr, prefix_id, project_id, owner_kind, owner_id, kind, state, name, description,
                        labels, request_id, request_hash)
        SELECT home.namespace_id, t.addr, p_prefix, e.project_id, e.owner_kind, e.owner_id, e.kind, 'active', e.name,
               e.description, e.labels, p_request || '/' || (t.ord - 1), e.request_hash
        FROM jsonb_to_record(p_entry) AS e (
            project_id text, owner_kind text, owner_id text, kind text, name text, description text, labels jsonb,
            request_hash text), unnest(taken) WITH ORDINALITY AS t (addr, ord)
    )
    INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
    SELECT p_entry ->> 'actor', 'acquire', home.namespace_id, t.addr, p_entry ->> 'owner_kind', p_entry ->> 'owner_id',
           p_entry ->> 'project_id'
    FROM unnest(taken) AS t (addr);
    RETURN QUERY SELECT 'ok', ARRAY(SELECT host(t.addr) FROM unnest(taken) WITH ORDINALITY AS t (addr, ord)
                                    ORDER BY t.ord), now();
END
$$;
