-- Proof that the accounts are right, and the repair of what can be rebuilt. Rows of `ip`, `id_used`, `reserved_range` and
-- child prefixes are the truth; free space and counters follow from them.

-- Findings about one prefix, each a sentence without the prefix's name; none when all is right. Holds the prefix row, so
-- that it may run beside everything else.
CREATE FUNCTION verify_prefix(p_prefix bigint) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    p record;
BEGIN
    SELECT * INTO p FROM prefix WHERE id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    RETURN QUERY
    SELECT format('counter %s says %s, the rows say %s', c.name, c.counter, c.rows)
    FROM (
        SELECT 'used' AS name, p.used::numeric AS counter,
               (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved')::numeric AS rows
        UNION ALL SELECT 'quarantined', p.quarantined,
               (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id AND i.state = 'quarantine')
        UNION ALL SELECT 'reserved', p.reserved,
               (SELECT coalesce(sum(span(r.lo, r.hi)), 0) FROM reserved_range r WHERE r.prefix_id = p.id)
        UNION ALL SELECT 'children', p.children, (SELECT count(*) FROM prefix c WHERE c.parent_id = p.id)
        UNION ALL SELECT 'child_used', p.child_used,
               (SELECT coalesce(sum(c.size), 0) FROM prefix c WHERE c.parent_id = p.id)
    ) AS c WHERE c.counter <> c.rows;

    RETURN QUERY
    SELECT format('%s lies outside', host(i.addr)) FROM ip i
    WHERE i.prefix_id = p.id AND (NOT i.addr <<= p.cidr OR i.namespace_id <> p.namespace_id);
    RETURN QUERY
    SELECT format('%s is in use and free', host(i.addr)) FROM ip i
    JOIN free_range f ON f.prefix_id = p.id AND i.addr BETWEEN f.lo AND f.hi WHERE i.prefix_id = p.id;
    RETURN QUERY
    SELECT format('%s is in state %s, which does not fit the reserved ranges', host(i.addr), i.state) FROM ip i
    WHERE i.prefix_id = p.id AND (i.state = 'reserved') <> EXISTS (
        SELECT FROM reserved_range r WHERE r.prefix_id = p.id AND i.addr BETWEEN r.lo AND r.hi);

    -- Free and reserved ranges together, in order: none overlaps the next, and two free ones have something in between.
    RETURN QUERY
    WITH ranges AS (
        SELECT f.lo, f.hi, true AS free FROM free_range f WHERE f.prefix_id = p.id
        UNION ALL SELECT r.lo, r.hi, false FROM reserved_range r WHERE r.prefix_id = p.id
    ), pairs AS (
        SELECT *, lead(r.lo) OVER w AS next_lo, lead(r.hi) OVER w AS next_hi, lead(r.free) OVER w AS next_free
        FROM ranges r WINDOW w AS (ORDER BY r.lo, r.hi)
    )
    SELECT format('range %s-%s %s', host(x.lo), host(x.hi), CASE
        WHEN NOT (x.lo <<= p.cidr AND x.hi <<= p.cidr) THEN 'lies outside'
        WHEN x.hi >= x.next_lo THEN format('overlaps %s-%s', host(x.next_lo), host(x.next_hi))
        ELSE format('and %s-%s are free side by side', host(x.next_lo), host(x.next_hi)) END)
    FROM pairs x
    WHERE NOT (x.lo <<= p.cidr AND x.hi <<= p.cidr) OR x.hi >= x.next_lo
       OR (x.free AND x.next_free AND x.hi < family_last(family(p.cidr)) AND x.hi + 1 = x.next_lo);

    IF p.kind = 'leaf' THEN
        RETURN QUERY
        SELECT format('free %s + used %s + reserved %s is not the size %s', s.free, s.used, s.reserved, p.size)
        FROM (
            SELECT (SELECT coalesce(sum(span(f.lo, f.hi)), 0) FROM free_range f WHERE f.prefix_id = p.id) AS free,
                   (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved') AS used,
                   (SELECT coalesce(sum(span(r.lo, r.hi)), 0) FROM reserved_range r WHERE r.prefix_id = p.id) AS reserved
        ) AS s WHERE s.free + s.used + s.reserved <> p.size;
    ELSE
        RETURN QUERY
        WITH parts AS (
            SELECT b.cidr, true AS free FROM free_block b WHERE b.prefix_id = p.id
            UNION ALL SELECT c.cidr, false FROM prefix c WHERE c.parent_id = p.id
        ), pairs AS (
            SELECT x.*, lead(x.cidr) OVER (ORDER BY x.cidr) AS next_cidr FROM parts x
        )
        SELECT format('%s %s', x.cidr, CASE
            WHEN NOT x.cidr <<= p.cidr THEN 'lies outside'
            WHEN x.cidr && x.next_cidr THEN format('overlaps %s', x.next_cidr)
            ELSE 'and its buddy are both free' END)
        FROM pairs x
        WHERE NOT x.cidr <<= p.cidr OR x.cidr && x.next_cidr
           OR (x.free AND masklen(x.cidr) > masklen(p.cidr) AND EXISTS (
                   SELECT FROM free_block b WHERE b.prefix_id = p.id AND b.len = masklen(x.cidr) AND b.cidr = buddy(x.cidr)));
        RETURN QUERY
        SELECT format('free %s + children %s is not the size %s', s.free, s.children, p.size)
        FROM (
            SELECT (SELECT coalesce(sum(power(2::numeric, width(b.cidr) - b.len)), 0) FROM free_block b
                    WHERE b.prefix_id = p.id) AS free,
                   (SELECT coalesce(sum(c.size), 0) FROM prefix c WHERE c.parent_id = p.id) AS children
        ) AS s WHERE s.free + s.children <> p.size;
    END IF;
    RETURN QUERY
    SELECT format('is a %s and has free space of the other kind', p.kind)
    WHERE EXISTS (SELECT FROM free_range f WHERE f.prefix_id = p.id AND p.kind = 'container')
       OR EXISTS (SELECT FROM free_block b WHERE b.prefix_id = p.id AND p.kind = 'leaf');
    RETURN QUERY
    SELECT format('lies outside of its parent %s', q.cidr) FROM prefix q
    WHERE q.id = p.parent_id AND (NOT p.cidr << q.cidr OR q.namespace_id <> p.namespace_id);
END
$$;

-- Rebuilds free space and counters of one prefix.
CREATE FUNCTION repair_prefix(p_prefix bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    p     record;
    taken record;
BEGIN
    SELECT * INTO p FROM prefix WHERE id = p_prefix FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM free_range f WHERE f.prefix_id = p.id;
    DELETE FROM free_block b WHERE b.prefix_id = p.id;
    IF p.kind = 'container' THEN
        INSERT INTO free_block (prefix_id, len, cidr) VALUES (p.id, masklen(p.cidr), p.cidr);
        FOR taken IN SELECT c.cidr FROM prefix c WHERE c.parent_id = p.id ORDER BY c.cidr LOOP
            PERFORM cut_block(p.id, masklen(taken.cidr), taken.cidr);
        END LOOP;
    ELSE
        -- What lies between neighbours that are taken; the ends of the prefix are neighbours too.
        INSERT INTO free_range (prefix_id, hi, lo)
        SELECT p.id, gap.hi, gap.lo FROM (
            SELECT CASE WHEN t.hi < family_last(family(p.cidr)) THEN t.hi + 1 END AS lo,
                   coalesce(lead(t.lo) OVER w - 1, last_address(p.cidr)) AS hi
            FROM (SELECT i.addr AS lo, i.addr AS hi FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved'
                  UNION ALL SELECT r.lo, r.hi FROM reserved_range r WHERE r.prefix_id = p.id) AS t
            WINDOW w AS (ORDER BY t.lo)
            UNION ALL
            SELECT first_address(p.cidr), (
                SELECT CASE WHEN min(t.lo) > first_address(p.cidr) THEN min(t.lo) - 1 END
                FROM (SELECT i.addr AS lo FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved'
                      UNION ALL SELECT r.lo FROM reserved_range r WHERE r.prefix_id = p.id) AS t)
        ) AS gap WHERE gap.lo <= gap.hi;
        IF NOT EXISTS (SELECT FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved')
           AND NOT EXISTS (SELECT FROM reserved_range r WHERE r.prefix_id = p.id) THEN
            INSERT INTO free_range (prefix_id, hi, lo) VALUES (p.id, last_address(p.cidr), first_address(p.cidr));
        END IF;
    END IF;
    UPDATE prefix SET
        used = (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id AND i.state <> 'reserved'),
        quarantined = (SELECT count(*) FROM ip i WHERE i.prefix_id = p.id AND i.state = 'quarantine'),
        reserved = (SELECT coalesce(sum(span(r.lo, r.hi)), 0) FROM reserved_range r WHERE r.prefix_id = p.id),
        children = (SELECT count(*) FROM prefix c WHERE c.parent_id = p.id),
        child_used = (SELECT coalesce(sum(c.size), 0) FROM prefix c WHERE c.parent_id = p.id)
    WHERE id = p.id;
END
$$;

-- Findings about one pool.
CREATE FUNCTION verify_pool(p_pool integer) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    p record;
BEGIN
    SELECT * INTO p FROM id_pool WHERE id = p_pool FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT format('counter %s says %s, the rows say %s', c.name, c.counter, c.rows)
    FROM (
        SELECT 'used' AS name, p.used AS counter, (SELECT count(*) FROM id_used u WHERE u.pool_id = p.id) AS rows
        UNION ALL SELECT 'quarantined', p.quarantined,
               (SELECT count(*) FROM id_used u WHERE u.pool_id = p.id AND u.state = 'quarantine')
        UNION ALL SELECT 'size', p.size,
               (SELECT coalesce(sum(r.hi - r.lo + 1), 0)::bigint FROM id_range r WHERE r.pool_id = p.id)
        UNION ALL SELECT 'size (free + used)',  p.size,
               (SELECT coalesce(sum(f.hi - f.lo + 1), 0)::bigint FROM id_free f WHERE f.pool_id = p.id)
               + (SELECT count(*) FROM id_used u WHERE u.pool_id = p.id)
    ) AS c WHERE c.counter <> c.rows;
    RETURN QUERY
    SELECT format('%s is in use and free', u.value) FROM id_used u
    JOIN id_free f ON f.pool_id = p.id AND u.value BETWEEN f.lo AND f.hi WHERE u.pool_id = p.id;
    RETURN QUERY
    SELECT format('%s is in use and belongs to no range', u.value) FROM id_used u
    WHERE u.pool_id = p.id AND NOT EXISTS (
        SELECT FROM id_range r WHERE r.pool_id = p.id AND u.value BETWEEN r.lo AND r.hi);
    RETURN QUERY
    WITH pairs AS (
        SELECT f.*, lead(f.lo) OVER w AS next_lo, lead(f.auto) OVER w AS next_auto
        FROM id_free f WHERE f.pool_id = p.id WINDOW w AS (ORDER BY f.lo)
    )
    SELECT format('free range %s-%s %s', x.lo, x.hi,
                  CASE WHEN x.hi >= x.next_lo THEN 'overlaps the next' ELSE 'could be one with the next' END)
    FROM pairs x WHERE x.hi >= x.next_lo OR (x.hi + 1 = x.next_lo AND x.auto = x.next_auto);
END
$$;
