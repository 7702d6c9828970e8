-- Taking addresses out of a leaf prefix. One call an operation. To be called under READ COMMITTED: the lock on the
-- prefix row is a statement of its own and everything it guards is read by later statements, so that a call which
-- waited sees what the one before it did. No EXCEPTION blocks: each costs a subtransaction.
--
-- `entries` are JSON objects: project_id, owner_kind, owner_id, kind, name, description, dns_name, labels,
-- request_hash, actor (instead of the call's p_actor); all optional.

-- Takes one address out of the free ranges: false when it is not free. The caller holds the prefix row.
CREATE FUNCTION take_address(p_prefix bigint, p_addr inet) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r record;
BEGIN
    SELECT f.lo, f.hi INTO r FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi >= p_addr ORDER BY f.hi LIMIT 1;
    IF NOT FOUND OR r.lo > p_addr THEN
        RETURN false;
    END IF;
    -- The steps p_addr - 1 and p_addr + 1 are only taken towards an address of the same range: no overflow.
    IF r.hi = p_addr THEN
        DELETE FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi = r.hi;
    ELSE
        UPDATE free_range f SET lo = p_addr + 1 WHERE f.prefix_id = p_prefix AND f.hi = r.hi;
    END IF;
    IF r.lo < p_addr THEN
        INSERT INTO free_range (prefix_id, hi, lo) VALUES (p_prefix, p_addr - 1, r.lo);
    END IF;
    RETURN true;
END
$$;

-- Takes up to p_wanted addresses, lowest range first. The caller holds the prefix row.
CREATE FUNCTION take_next(p_prefix bigint, p_wanted integer) RETURNS inet[]
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r         record;
    taken     inet[] := '{}';
    remaining integer := p_wanted;
    emptied   inet;
    part_hi   inet;
    part_lo   inet;
    span      integer;
BEGIN
    FOR r IN
        SELECT f.lo, f.hi FROM free_range f WHERE f.prefix_id = p_prefix ORDER BY f.hi LIMIT p_wanted
    LOOP
        -- hi - lo of a large IPv6 range is an error, lo + n beyond the family too: subtract only what is known small.
        IF r.lo > family_last(family(r.lo)) - (remaining - 1) OR r.lo + (remaining - 1) > r.hi THEN
            span := (r.hi - r.lo + 1)::integer;
        ELSE
            span := remaining;
        END IF;
        IF span = 1 THEN
            taken := taken || r.lo;
        ELSE
            taken := taken || ARRAY(SELECT r.lo + i FROM generate_series(0, span - 1) AS i);
        END IF;
        IF r.lo + (span - 1) = r.hi THEN
            emptied := r.hi;
        ELSE
            part_hi := r.hi;
            part_lo := r.lo + span;
        END IF;
        remaining := remaining - span;
        EXIT WHEN remaining = 0;
    END LOOP;
    IF emptied IS NOT NULL THEN
        DELETE FROM free_range f WHERE f.prefix_id = p_prefix AND f.hi <= emptied;
    END IF;
    IF part_hi IS NOT NULL THEN
        UPDATE free_range f SET lo = part_lo WHERE f.prefix_id = p_prefix AND f.hi = part_hi;
    END IF;
    RETURN taken;
END
$$;

-- What earlier calls with these request ids got: `ok` with the address, `request_reused` when the id came with another
-- request, `request_spent` when the address was released since.
CREATE FUNCTION earlier(p_requests text[], p_entries jsonb)
RETURNS TABLE (ord integer, outcome text, address inet, acquired_at timestamptz)
LANGUAGE sql VOLATILE AS $$
    SELECT w.ord::integer,
           CASE WHEN i.addr IS NULL THEN 'request_spent'
                WHEN i.request_hash <> coalesce(p_entries -> (w.ord - 1)::integer ->> 'request_hash', '')
                THEN 'request_reused'
                ELSE 'ok' END,
           i.addr, i.created_at
    FROM unnest(p_requests) WITH ORDINALITY AS w (request_id, ord)
    LEFT JOIN ip i ON i.request_id = w.request_id
    LEFT JOIN spent_request s ON s.request_id = w.request_id
    WHERE i.addr IS NOT NULL OR s.request_id IS NOT NULL
$$;

CREATE FUNCTION knows_request(p_requests text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM ip i WHERE i.request_id = ANY (p_requests))
        OR EXISTS (SELECT FROM spent_request s WHERE s.request_id = ANY (p_requests));
END
$$;

-- Writes the rows and the history of addresses that were taken: p_addrs[k] goes to entry p_ords[k].
CREATE FUNCTION put_addresses(
    p_prefix bigint, p_namespace integer, p_state text, p_addrs inet[], p_ords integer[], p_requests text[],
    p_entries jsonb, p_actor text
) RETURNS void
LANGUAGE sql VOLATILE AS $$
    WITH wanted AS (
        SELECT t.addr, p_requests[t.ord] AS request_id, coalesce(e.project_id, '') AS project_id,
               coalesce(e.owner_kind, '') AS owner_kind, coalesce(e.owner_id, '') AS owner_id,
               coalesce(e.kind, 'ephemeral') AS kind, coalesce(e.name, '') AS name,
               coalesce(e.description, '') AS description, coalesce(e.dns_name, '') AS dns_name,
               coalesce(e.labels, '{}') AS labels, coalesce(e.request_hash, '') AS request_hash,
               coalesce(e.actor, p_actor) AS actor
        FROM unnest(p_addrs, p_ords) AS t (addr, ord)
        CROSS JOIN LATERAL jsonb_to_record(p_entries -> (t.ord - 1)) AS e (
            project_id text, owner_kind text, owner_id text, kind text, name text, description text, dns_name text,
            labels jsonb, request_hash text, actor text)
    ), put AS (
        INSERT INTO ip (namespace_id, addr, prefix_id, project_id, owner_kind, owner_id, kind, state, name, description,
                        dns_name, labels, request_id, request_hash)
        SELECT p_namespace, w.addr, p_prefix, w.project_id, w.owner_kind, w.owner_id, w.kind, p_state, w.name,
               w.description, w.dns_name, w.labels, w.request_id, w.request_hash
        FROM wanted w
    )
    INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
    SELECT w.actor, 'acquire', p_namespace, w.addr, w.owner_kind, w.owner_id, w.project_id FROM wanted w
$$;

-- The next free addresses for a list of entries, in their order: `ok`, or per entry `full`, `unknown_prefix`,
-- `wrong_kind`, `request_reused`, `request_spent`. Entries beyond what is free get `full`, those before keep theirs.
CREATE FUNCTION acquire_n(p_prefix bigint, p_requests text[], p_entries jsonb, p_actor text)
RETURNS TABLE (ord integer, outcome text, address inet, acquired_at timestamptz)
LANGUAGE plpgsql VOLATILE AS $$
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

    UPDATE prefix p SET used = p.used + asked WHERE p.id = p_prefix AND p.kind = 'leaf'
    RETURNING p.namespace_id INTO home;
    IF NOT FOUND THEN
        RETURN QUERY SELECT t, CASE WHEN EXISTS (SELECT FROM prefix p WHERE p.id = p_prefix) THEN 'wrong_kind'
                                    ELSE 'unknown_prefix' END, NULL::inet, NULL::timestamptz
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

-- One given address. Besides the outcomes of acquire_n: `outside`, `taken` (with its holder), `reserved` and
-- `quarantine` unless p_take allows it ('reserved', 'quarantine').
CREATE FUNCTION acquire_specific(
    p_prefix bigint, p_addr inet, p_request text, p_entry jsonb, p_take text[], p_actor text
) RETURNS TABLE (outcome text, address inet, acquired_at timestamptz, holder_kind text, holder_id text,
                 holder_project text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home   record;
    holder record;
    new_state text := 'active';
BEGIN
    IF knows_request(ARRAY[p_request]) THEN
        RETURN QUERY SELECT e.outcome, e.address, e.acquired_at, '', '', ''
                     FROM earlier(ARRAY[p_request], jsonb_build_array(p_entry)) e;
        RETURN;
    END IF;
    SELECT p.namespace_id, p.kind, p.cidr INTO home FROM prefix p WHERE p.id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND OR home.kind <> 'leaf' OR NOT p_addr <<= home.cidr THEN
        RETURN QUERY SELECT CASE WHEN home.kind IS NULL THEN 'unknown_prefix' WHEN home.kind <> 'leaf' THEN 'wrong_kind'
                                 ELSE 'outside' END, NULL::inet, NULL::timestamptz, '', '', '';
        RETURN;
    END IF;
    IF knows_request(ARRAY[p_request]) THEN
        RETURN QUERY SELECT e.outcome, e.address, e.acquired_at, '', '', ''
                     FROM earlier(ARRAY[p_request], jsonb_build_array(p_entry)) e;
        RETURN;
    END IF;

    SELECT i.state, i.owner_kind, i.owner_id, i.project_id INTO holder
    FROM ip i WHERE i.namespace_id = home.namespace_id AND i.addr = p_addr;
    IF holder.state = 'quarantine' AND 'quarantine' = ANY (p_take) THEN
        DELETE FROM ip i WHERE i.namespace_id = home.namespace_id AND i.addr = p_addr;
        UPDATE prefix p SET quarantined = p.quarantined - 1 WHERE p.id = p_prefix;
    ELSIF holder.state IS NOT NULL THEN
        RETURN QUERY SELECT CASE holder.state WHEN 'quarantine' THEN 'quarantine' ELSE 'taken' END, NULL::inet,
                            NULL::timestamptz, holder.owner_kind, holder.owner_id, holder.project_id;
        RETURN;
    ELSIF take_address(p_prefix, p_addr) THEN
        UPDATE prefix p SET used = p.used + 1 WHERE p.id = p_prefix;
    ELSIF 'reserved' = ANY (p_take) THEN
        -- Stays counted as reserved, and goes back to the reserved range.
        new_state := 'reserved';
    ELSE
        RETURN QUERY SELECT 'reserved', NULL::inet, NULL::timestamptz, '', '', '';
        RETURN;
    END IF;
    PERFORM put_addresses(p_prefix, home.namespace_id, new_state, ARRAY[p_addr], ARRAY[1], ARRAY[p_request],
                          jsonb_build_array(p_entry), p_actor);
    RETURN QUERY SELECT 'ok', p_addr, now(), '', '', '';
END
$$;
