-- Many addresses of one leaf for one request, all or none. What `acquire_n` does for entries that differ, without an
-- entry each: the addresses share `p_entry`, and have the request ids `p_request`/0, `p_request`/1, … (null: none).
--
-- `ok` with the addresses in their order; or `known` (this request, or a part of it, was served before), `full`,
-- `gone` (no such leaf): then nothing has changed.
CREATE FUNCTION acquire_many(p_prefix bigint, p_count integer, p_entry jsonb, p_request text)
RETURNS TABLE (outcome text, addresses text[], acquired_at timestamptz)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home   record;
    taken  inet[];
BEGIN
    IF p_request IS NOT NULL AND knows_request(ARRAY[p_request || '/0']) THEN
        RETURN QUERY SELECT 'known', NULL::text[], NULL::timestamptz;
        RETURN;
    END IF;
    UPDATE prefix p SET used = p.used + p_count WHERE p.id = p_prefix AND p.kind = 'leaf'
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
