-- Giving addresses back, resting them, setting ranges aside. Locking as in taking: the prefix row first, several of
-- them in the order of their ids.

-- Adds a range to the free ranges, merged with its neighbours. The caller holds the prefix row.
CREATE FUNCTION give_range(p_prefix bigint, p_lo inet, p_hi inet) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    below_lo inet;
    above    record;
    joined   boolean := false;
BEGIN
    IF p_lo > family_first(family(p_lo)) THEN
        SELECT f.lo INTO below_lo FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi = p_lo - 1;
    END IF;
    IF p_hi < family_last(family(p_hi)) THEN
        SELECT f.lo, f.hi INTO above FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi > p_hi ORDER BY f.hi LIMIT 1;
        joined := FOUND AND above.lo = p_hi + 1;
    END IF;
    IF joined THEN
        IF below_lo IS NOT NULL THEN
            DELETE FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi = p_lo - 1;
        END IF;
        UPDATE free_range f SET lo = coalesce(below_lo, p_lo) WHERE f.prefix_id = p_prefix AND f.hi = above.hi;
    ELSIF below_lo IS NOT NULL THEN
        UPDATE free_range f SET hi = p_hi WHERE f.prefix_id = p_prefix AND f.hi = p_lo - 1;
    ELSE
        INSERT INTO free_range (prefix_id, hi, lo) VALUES (p_prefix, p_hi, p_lo);
    END IF;
END
$$;

-- Releases a list of addresses. Per entry, in any order: `ok`, `unknown` (not in use, or resting already), `foreign`
-- (the owner is another than p_owner_kinds/p_owner_ids say; null expects nothing), `moved` (lost a race with another
-- change of it; to be called again).
CREATE FUNCTION release_n(
    p_namespaces integer[], p_addrs inet[], p_owner_kinds text[], p_owner_ids text[], p_actor text
) RETURNS TABLE (ord integer, outcome text)
LANGUAGE plpgsql VOLATILE AS $$
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
        SELECT DISTINCT i.prefix_id FROM unnest(p_namespaces, p_addrs) AS a (namespace_id, addr)
        JOIN ip i ON i.namespace_id = a.namespace_id AND i.addr = a.addr
    );
    PERFORM FROM prefix p WHERE p.id = ANY (homes) ORDER BY p.id FOR NO KEY UPDATE;
    FOR w IN
        SELECT a.ord::integer AS ord, a.addr, a.namespace_id, i.prefix_id, i.state, i.request_id, i.owner_kind,
               i.owner_id, i.project_id,
               (a.want_kind IS NOT NULL AND (a.want_kind, a.want_id) <> (i.owner_kind, i.owner_id)) AS is_foreign
        FROM unnest(p_namespaces, p_addrs, p_owner_kinds, p_owner_ids)
             WITH ORDINALITY AS a (namespace_id, addr, want_kind, want_id, ord)
        LEFT JOIN ip i ON i.namespace_id = a.namespace_id AND i.addr = a.addr
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

-- Returns addresses whose rest is over to the free ranges, at most p_limit of them. Safe in any number of replicas: the
-- prefix row orders them, and what another one did is not found again.
CREATE FUNCTION end_quarantine(p_limit integer) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home  bigint;
    freed record;
    n     integer := 0;
    part  integer;
BEGIN
    FOR home IN
        SELECT DISTINCT due.prefix_id FROM (
            SELECT i.prefix_id FROM ip i WHERE i.state = 'quarantine' AND i.release_after <= now()
            ORDER BY i.release_after LIMIT p_limit
        ) AS due ORDER BY 1
    LOOP
        PERFORM FROM prefix p WHERE p.id = home FOR NO KEY UPDATE;
        part := 0;
        FOR freed IN
            DELETE FROM ip i WHERE (i.namespace_id, i.addr) IN (
                SELECT d.namespace_id, d.addr FROM ip d
                WHERE d.prefix_id = home AND d.state = 'quarantine' AND d.release_after <= now()
                ORDER BY d.release_after LIMIT p_limit - n
            ) RETURNING i.addr
        LOOP
            PERFORM give_range(home, freed.addr, freed.addr);
            part := part + 1;
        END LOOP;
        UPDATE prefix p SET used = p.used - part, quarantined = p.quarantined - part WHERE p.id = home;
        n := n + part;
        EXIT WHEN n >= p_limit;
    END LOOP;
    RETURN n;
END
$$;

-- Sets a range of free addresses aside: `ok`, `unknown_prefix`, `wrong_kind`, `outside`, or `in_use` when a part of it
-- is not free.
CREATE FUNCTION reserve(p_prefix bigint, p_lo inet, p_hi inet, p_reason text, p_actor text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home record;
    r    record;
BEGIN
    SELECT p.namespace_id, p.kind, p.cidr INTO home FROM prefix p WHERE p.id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown_prefix';
    ELSIF home.kind <> 'leaf' THEN
        RETURN 'wrong_kind';
    ELSIF NOT (p_lo <<= home.cidr AND p_hi <<= home.cidr AND p_lo <= p_hi) THEN
        RETURN 'outside';
    END IF;
    SELECT f.lo, f.hi INTO r FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi >= p_hi ORDER BY f.hi LIMIT 1;
    IF NOT FOUND OR r.lo > p_lo THEN
        RETURN 'in_use';
    END IF;
    IF r.hi = p_hi THEN
        DELETE FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi = r.hi;
    ELSE
        UPDATE free_range f SET lo = p_hi + 1 WHERE f.prefix_id = p_prefix AND f.hi = r.hi;
    END IF;
    IF r.lo < p_lo THEN
        INSERT INTO free_range (prefix_id, hi, lo) VALUES (p_prefix, p_lo - 1, r.lo);
    END IF;
    INSERT INTO reserved_range (prefix_id, hi, lo, reason) VALUES (p_prefix, p_hi, p_lo, p_reason);
    UPDATE prefix p SET reserved = p.reserved + span(p_lo, p_hi) WHERE p.id = p_prefix;
    INSERT INTO history (actor, operation, namespace_id, object) VALUES (p_actor, 'reserve', home.namespace_id, p_lo);
    RETURN 'ok';
END
$$;

-- Takes a reservation back: `ok`, `unknown_prefix`, `unknown` (no reservation with exactly these ends), or `in_use`
-- while an address of it is held.
CREATE FUNCTION unreserve(p_prefix bigint, p_lo inet, p_hi inet, p_actor text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home record;
BEGIN
    SELECT p.namespace_id INTO home FROM prefix p WHERE p.id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown_prefix';
    END IF;
    IF EXISTS (SELECT FROM ip i WHERE i.prefix_id = p_prefix AND i.state = 'reserved'
                               AND i.addr BETWEEN p_lo AND p_hi) THEN
        RETURN 'in_use';
    END IF;
    DELETE FROM reserved_range r WHERE r.prefix_id = p_prefix AND r.hi = p_hi AND r.lo = p_lo;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM give_range(p_prefix, p_lo, p_hi);
    UPDATE prefix p SET reserved = p.reserved - span(p_lo, p_hi) WHERE p.id = p_prefix;
    INSERT INTO history (actor, operation, namespace_id, object) VALUES (p_actor, 'unreserve', home.namespace_id, p_lo);
    RETURN 'ok';
END
$$;
