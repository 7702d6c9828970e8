-- Taking numbers out of pools and giving them back. The same locking as for addresses: the pool's row first, everything
-- it guards in later statements.

CREATE FUNCTION take_number(p_pool integer, p_auto boolean, p_n bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r record;
BEGIN
    SELECT f.lo, f.hi INTO r FROM id_free f WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi >= p_n
    ORDER BY f.hi LIMIT 1;
    IF NOT FOUND OR r.lo > p_n THEN
        RETURN false;
    END IF;
    IF r.hi = p_n THEN
        DELETE FROM id_free f WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi = r.hi;
    ELSE
        UPDATE id_free f SET lo = p_n + 1 WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi = r.hi;
    END IF;
    IF r.lo < p_n THEN
        INSERT INTO id_free (pool_id, auto, hi, lo) VALUES (p_pool, p_auto, p_n - 1, r.lo);
    END IF;
    RETURN true;
END
$$;

CREATE FUNCTION give_numbers(p_pool integer, p_auto boolean, p_lo bigint, p_hi bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    below_lo bigint;
    above    record;
    joined   boolean;
BEGIN
    SELECT f.lo INTO below_lo FROM id_free f WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi = p_lo - 1;
    SELECT f.lo, f.hi INTO above FROM id_free f WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi > p_hi
    ORDER BY f.hi LIMIT 1;
    joined := FOUND AND above.lo = p_hi + 1;
    IF joined THEN
        DELETE FROM id_free f WHERE below_lo IS NOT NULL AND f.pool_id = p_pool AND f.auto = p_auto AND f.hi = p_lo - 1;
        UPDATE id_free f SET lo = coalesce(below_lo, p_lo)
        WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi = above.hi;
    ELSIF below_lo IS NOT NULL THEN
        UPDATE id_free f SET hi = p_hi WHERE f.pool_id = p_pool AND f.auto = p_auto AND f.hi = p_lo - 1;
    ELSE
        INSERT INTO id_free (pool_id, auto, hi, lo) VALUES (p_pool, p_auto, p_hi, p_lo);
    END IF;
END
$$;

-- Adds the numbers p_lo..p_hi to a pool, also while it is in use: `ok`, `unknown_pool`, `overlap`.
CREATE FUNCTION pool_grow(p_pool integer, p_lo bigint, p_hi bigint, p_auto boolean, p_actor text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM id_pool p WHERE p.id = p_pool FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown_pool';
    END IF;
    IF EXISTS (SELECT FROM id_range r WHERE r.pool_id = p_pool AND int8range(r.lo, r.hi, '[]') && int8range(p_lo, p_hi, '[]')) THEN
        RETURN 'overlap';
    END IF;
    INSERT INTO id_range (pool_id, hi, lo, auto) VALUES (p_pool, p_hi, p_lo, p_auto);
    PERFORM give_numbers(p_pool, p_auto, p_lo, p_hi);
    UPDATE id_pool p SET size = p.size + (p_hi - p_lo + 1), version = p.version + 1 WHERE p.id = p_pool;
    INSERT INTO history (actor, operation, pool_id, value) VALUES (p_actor, 'grow', p_pool, p_hi);
    RETURN 'ok';
END
$$;

-- A number for an owner, without the pool's base: the lowest free one, or p_value when given. An owner that has one
-- gets the same again. Outcomes: `ok`; `full`; for a given one `taken` (with its holder; resting numbers have none),
-- `outside`, and `has_other` when the owner has another; `unknown_pool`.
CREATE FUNCTION pool_acquire(
    p_pool integer, p_value bigint, p_owner_kind text, p_owner_id text, p_project text, p_actor text
) RETURNS TABLE (outcome text, value bigint, holder_kind text, holder_id text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    in_auto boolean;
BEGIN
    SELECT u.value INTO value FROM id_used u
    WHERE u.owner_kind = p_owner_kind AND u.owner_id = p_owner_id AND u.pool_id = p_pool;
    IF NOT FOUND THEN
        PERFORM FROM id_pool p WHERE p.id = p_pool FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            outcome := 'unknown_pool';
            RETURN NEXT;
            RETURN;
        END IF;
        -- Once more: a retry that waited for the lock behind its twin finds the twin's number here.
        SELECT u.value INTO value FROM id_used u
        WHERE u.owner_kind = p_owner_kind AND u.owner_id = p_owner_id AND u.pool_id = p_pool;
    END IF;
    IF FOUND THEN
        outcome := CASE WHEN p_value IS NULL OR value = p_value THEN 'ok' ELSE 'has_other' END;
        RETURN NEXT;
        RETURN;
    END IF;

    IF p_value IS NULL THEN
        SELECT f.lo INTO value FROM id_free f WHERE f.pool_id = p_pool AND f.auto ORDER BY f.hi LIMIT 1;
        IF NOT FOUND THEN
            outcome := 'full';
            RETURN NEXT;
            RETURN;
        END IF;
        PERFORM take_number(p_pool, true, value);
    ELSE
        value := p_value;
        SELECT r.auto INTO in_auto FROM id_range r WHERE r.pool_id = p_pool AND p_value BETWEEN r.lo AND r.hi;
        IF NOT FOUND THEN
            outcome := 'outside';
        ELSIF NOT take_number(p_pool, in_auto, p_value) THEN
            outcome := 'taken';
            SELECT u.owner_kind, u.owner_id INTO holder_kind, holder_id FROM id_used u
            WHERE u.pool_id = p_pool AND u.value = p_value;
        END IF;
        IF outcome IS NOT NULL THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    UPDATE id_pool p SET used = p.used + 1 WHERE p.id = p_pool;
    INSERT INTO id_used (pool_id, value, owner_kind, owner_id, project_id)
    VALUES (p_pool, value, p_owner_kind, p_owner_id, p_project);
    INSERT INTO history (actor, operation, pool_id, value, owner_kind, owner_id, project_id)
    VALUES (p_actor, 'acquire', p_pool, value, p_owner_kind, p_owner_id, p_project);
    outcome := 'ok';
    RETURN NEXT;
END
$$;

-- Releases the owner's numbers, in p_pool or, with null, in all pools; returns how many. Pools are locked in the order of
-- their ids.
CREATE FUNCTION pool_release(p_pool integer, p_owner_kind text, p_owner_id text, p_actor text) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home  record;
    owned record;
    n     integer := 0;
BEGIN
    FOR home IN
        SELECT p.id, p.quarantine FROM id_pool p
        WHERE p.id IN (SELECT u.pool_id FROM id_used u WHERE u.owner_kind = p_owner_kind AND u.owner_id = p_owner_id)
          AND (p_pool IS NULL OR p.id = p_pool)
        ORDER BY p.id FOR NO KEY UPDATE
    LOOP
        SELECT u.value, u.project_id, r.auto INTO owned
        FROM id_used u
        JOIN id_range r ON r.pool_id = u.pool_id AND u.value BETWEEN r.lo AND r.hi
        WHERE u.owner_kind = p_owner_kind AND u.owner_id = p_owner_id AND u.pool_id = home.id;
        CONTINUE WHEN NOT FOUND;
        IF home.quarantine > '0' THEN
            UPDATE id_used u SET state = 'quarantine', release_after = now() + home.quarantine, owner_kind = '',
                                 owner_id = ''
            WHERE u.pool_id = home.id AND u.value = owned.value;
            UPDATE id_pool p SET quarantined = p.quarantined + 1 WHERE p.id = home.id;
        ELSE
            DELETE FROM id_used u WHERE u.pool_id = home.id AND u.value = owned.value;
            PERFORM give_numbers(home.id, owned.auto, owned.value, owned.value);
            UPDATE id_pool p SET used = p.used - 1 WHERE p.id = home.id;
        END IF;
        INSERT INTO history (actor, operation, pool_id, value, owner_kind, owner_id, project_id)
        VALUES (p_actor, 'release', home.id, owned.value, p_owner_kind, p_owner_id, owned.project_id);
        n := n + 1;
    END LOOP;
    RETURN n;
END
$$;

-- Returns numbers whose rest is over to their pools, at most p_limit of them.
CREATE FUNCTION end_number_quarantine(p_limit integer) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home  integer;
    freed record;
    n     integer := 0;
    part  integer;
BEGIN
    FOR home IN
        SELECT DISTINCT u.pool_id FROM id_used u WHERE u.state = 'quarantine' AND u.release_after <= now() ORDER BY 1
    LOOP
        PERFORM FROM id_pool p WHERE p.id = home FOR NO KEY UPDATE;
        part := 0;
        FOR freed IN
            DELETE FROM id_used u WHERE u.pool_id = home AND u.value IN (
                SELECT d.value FROM id_used d
                WHERE d.pool_id = home AND d.state = 'quarantine' AND d.release_after <= now()
                ORDER BY d.release_after LIMIT p_limit - n
            )
            RETURNING u.value, (SELECT r.auto FROM id_range r WHERE r.pool_id = home AND u.value BETWEEN r.lo AND r.hi)
                AS auto
        LOOP
            PERFORM give_numbers(home, freed.auto, freed.value, freed.value);
            part := part + 1;
        END LOOP;
        UPDATE id_pool p SET used = p.used - part, quarantined = p.quarantined - part WHERE p.id = home;
        n := n + part;
        EXIT WHEN n >= p_limit;
    END LOOP;
    RETURN n;
END
$$;
