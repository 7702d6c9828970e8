-- Children are cut and deleted many at a time: one lock, one statement and one commit for all who wait for a parent.
-- What is written with a child, and the request it was asked by, go into the row at once.
ALTER TABLE prefix
    -- Unique over all prefixes; null: none. After the deletion it is a spent request.
    ADD COLUMN request_id text,
    ADD COLUMN request_hash text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX prefix_request ON prefix (request_id) WHERE request_id IS NOT NULL;
-- What was answered before: a retry of it is told so, and cuts no second child.
INSERT INTO spent_request (request_id)
SELECT 'child of ' || caller || '/' || request_id FROM idempotency
WHERE method = '/metalplane.ipam.v1.PrefixService/AcquireChildPrefix' ON CONFLICT DO NOTHING;

-- Most prefixes of a large IPAM belong to no network, and need no entry here.
DROP INDEX prefix_network;
CREATE INDEX prefix_network ON prefix (network_id, namespace_id, cidr) WHERE network_id IS NOT NULL;

-- The constraint that says that nothing overlaps, in two: over three columns it took a quarter of a millisecond a child
-- when there were ten thousand. A child is in its parent's namespace, so that the parent alone tells its siblings.
ALTER TABLE prefix
    DROP CONSTRAINT prefix_namespace_id_coalesce_cidr_excl,
    ADD CONSTRAINT prefix_roots_apart EXCLUDE USING gist (namespace_id WITH =, cidr inet_ops WITH &&)
        WHERE (coalesce(parent_id, 0) = 0),
    ADD CONSTRAINT prefix_siblings_apart EXCLUDE USING gist (parent_id WITH =, cidr inet_ops WITH &&)
        WHERE (parent_id IS NOT NULL);

-- Free and reserved space is written by functions that hold the prefix, and goes with it in `delete_prefixes`; keys that
-- check and cascade took a third of the time of a child. VerifyPrefixes finds what belongs to no prefix.
ALTER TABLE free_range DROP CONSTRAINT free_range_prefix_id_fkey;
ALTER TABLE free_block DROP CONSTRAINT free_block_prefix_id_fkey;
ALTER TABLE reserved_range DROP CONSTRAINT reserved_range_prefix_id_fkey;

-- How many addresses at the ends of a leaf are kept back; nothing of a container.
--
-- An IPv4 leaf up to /30 keeps its network and broadcast address back; of /31 (RFC 3021) and /32 all is usable. An IPv6
-- leaf up to /126 keeps the subnet-router anycast address back (RFC 4291 section 2.6.1); of /127 (RFC 6164) and /128 all
-- is usable. With `p_all_usable` nothing is kept back.
CREATE FUNCTION kept_back(p_cidr cidr, p_kind text, p_all_usable boolean) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN p_kind = 'container' OR p_all_usable OR width(p_cidr) - masklen(p_cidr) < 2 THEN 0
        WHEN family(p_cidr) = 4 THEN 2
        ELSE 1
    END
$$;

-- Writes the free space of prefixes in which nothing is taken. Their rows say already how much is kept back.
DROP FUNCTION lay_out(bigint);
CREATE FUNCTION lay_out(p_prefixes bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO free_block (prefix_id, len, cidr)
    SELECT p.id, masklen(p.cidr), p.cidr FROM prefix p WHERE p.id = ANY (p_prefixes) AND p.kind = 'container';
    INSERT INTO reserved_range (prefix_id, hi, lo, reason)
    SELECT p.id, k.address, k.address, k.reason
    FROM prefix p
    CROSS JOIN LATERAL (VALUES
        (1, first_address(p.cidr), CASE family(p.cidr) WHEN 4 THEN 'network address' ELSE 'subnet-router anycast' END),
        (2, last_address(p.cidr), 'broadcast address')) AS k (nth, address, reason)
    WHERE p.id = ANY (p_prefixes) AND k.nth <= p.reserved;
    INSERT INTO free_range (prefix_id, hi, lo)
    SELECT p.id, last_address(p.cidr) - (p.reserved >= 2)::integer, first_address(p.cidr) + (p.reserved >= 1)::integer
    FROM prefix p WHERE p.id = ANY (p_prefixes) AND p.kind = 'leaf';
END
$$;

-- As before; what is kept back is written with the row.
CREATE OR REPLACE FUNCTION create_root(
    p_namespace integer, p_network text, p_cidr cidr, p_kind text, p_all_usable boolean, p_quarantine interval,
    p_actor text
) RETURNS TABLE (outcome text, prefix_id bigint, other_cidr cidr, other_network text)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- Roots of a namespace are created one after the other, so that the loser of a race learns whom it overlaps. The
    -- exclusion constraint would refuse it too, but without saying that.
    PERFORM FROM namespace n WHERE n.id = p_namespace FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'unknown_namespace';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT p.cidr, coalesce(p.network_id, '') INTO other_cidr, other_network FROM prefix p
    WHERE p.namespace_id = p_namespace AND coalesce(p.parent_id, 0) = 0 AND p.cidr && p_cidr LIMIT 1;
    IF FOUND THEN
        outcome := 'overlap';
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO prefix (namespace_id, network_id, cidr, kind, all_usable, quarantine, reserved)
    VALUES (p_namespace, p_network, p_cidr, p_kind, p_all_usable, p_quarantine, kept_back(p_cidr, p_kind, p_all_usable))
    RETURNING id INTO prefix_id;
    PERFORM lay_out(ARRAY[prefix_id]);
    INSERT INTO history (actor, operation, namespace_id, object) VALUES (p_actor, 'create prefix', p_namespace, p_cidr);
    outcome := 'ok';
    RETURN NEXT;
END
$$;

-- Cuts children out of a container, each of a length or exactly a given CIDR. `p_entries` is an array of objects with
-- `length` or `cidr`, and `kind`, `all_usable`, `network`, `quarantine` (without one the parent's), `labels`,
-- `description`, `request_id`, `request_hash`, `actor`. One row for each: `ok`; `full`; `taken` (a given one that is
-- not wholly free); `outside`; `length` (not longer than the parent); `not_active`; `unknown_prefix`; `wrong_kind`;
-- `copied` (of a namespaced super network, and for no network); `known`, `request_reused`, `request_spent`.
--
-- Who waits for a parent waits with a whole batch: after a quarter of a second each goes alone, where the caller has
-- locked the parent before.
CREATE FUNCTION acquire_children(p_parent bigint, p_entries jsonb)
RETURNS TABLE (ord integer, outcome text, prefix_id bigint, namespace_id integer, parent cidr, cidr cidr,
               reserved integer, quarantine interval, created_at timestamptz)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off SET lock_timeout = '250ms' AS $$
DECLARE
    home   record;
    w      record;
    block  cidr;
    ords   integer[] := '{}';
    blocks cidr[] := '{}';
BEGIN
    SELECT p.namespace_id, p.kind, p.cidr, p.status, p.quarantine,
           p.parent_id IS NULL AND n.for_networks AS copied
    INTO home
    FROM prefix p JOIN namespace n ON n.id = p.namespace_id WHERE p.id = p_parent FOR NO KEY UPDATE OF p;
    -- Looked at under the lock: a retry that waited behind its twin finds the twin's child. OFFSET 0 makes these a
    -- look-up for each entry.
    FOR w IN
        SELECT one.ord::integer AS ord, e.cidr, coalesce(masklen(e.cidr), e.length) AS len, e.network,
               coalesce(e.request_hash, '') AS request_hash, i.request_hash AS known_hash, s.spent
        FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS one (entry, ord)
        CROSS JOIN LATERAL jsonb_to_record(one.entry) AS e (
            cidr cidr, length integer, network text, request_id text, request_hash text)
        LEFT JOIN LATERAL (SELECT l.request_hash FROM prefix l WHERE l.request_id = e.request_id OFFSET 0) AS i ON true
        LEFT JOIN LATERAL (
            SELECT true AS spent FROM spent_request l WHERE l.request_id = e.request_id OFFSET 0) AS s ON true
    LOOP
        ord := w.ord;
        outcome := CASE
            WHEN w.known_hash = w.request_hash THEN 'known'
            WHEN w.known_hash IS NOT NULL THEN 'request_reused'
            WHEN w.spent THEN 'request_spent'
            WHEN home.kind IS NULL THEN 'unknown_prefix'
            WHEN home.copied AND w.network IS NULL THEN 'copied'
            WHEN home.kind <> 'container' THEN 'wrong_kind'
            WHEN w.cidr IS NOT NULL AND NOT w.cidr <<= home.cidr THEN 'outside'
            WHEN w.len <= masklen(home.cidr) OR w.len > width(home.cidr) THEN 'length'
            WHEN w.cidr IS NULL AND home.status <> 'active' THEN 'not_active'
        END;
        IF outcome IS NULL THEN
            block := cut_block(p_parent, w.len, w.cidr);
            IF block IS NOT NULL THEN
                ords := ords || w.ord;
                blocks := blocks || block;
                CONTINUE;
            END IF;
            outcome := CASE WHEN w.cidr IS NULL THEN 'full' ELSE 'taken' END;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF cardinality(ords) = 0 THEN
        RETURN;
    END IF;

    RETURN QUERY
    WITH made AS (
        INSERT INTO prefix AS p (namespace_id, network_id, parent_id, cidr, kind, all_usable, quarantine, reserved, labels,
                                 description, request_id, request_hash)
        SELECT home.namespace_id, e.network, p_parent, t.block, coalesce(e.kind, 'leaf'), coalesce(e.all_usable, false),
               coalesce(e.quarantine, home.quarantine),
               kept_back(t.block, coalesce(e.kind, 'leaf'), coalesce(e.all_usable, false)), coalesce(e.labels, '{}'),
               coalesce(e.description, ''), e.request_id, coalesce(e.request_hash, '')
        FROM unnest(ords, blocks) AS t (ord, block)
        CROSS JOIN LATERAL jsonb_to_record(p_entries -> (t.ord - 1)) AS e (
            network text, kind text, all_usable boolean, quarantine interval, labels jsonb, description text,
            request_id text, request_hash text)
        RETURNING p.id, p.cidr, p.reserved, p.quarantine, p.created_at
    )
    SELECT t.ord, 'ok', m.id, home.namespace_id, home.cidr, m.cidr, m.reserved::integer, m.quarantine, m.created_at
    FROM made m JOIN unnest(ords, blocks) AS t (ord, block) ON t.block = m.cidr;

    PERFORM lay_out(ARRAY(SELECT p.id FROM unnest(blocks) AS b (block)
                          CROSS JOIN LATERAL (SELECT l.id FROM prefix l WHERE l.namespace_id = home.namespace_id
                                                                          AND l.cidr = b.block OFFSET 0) AS p));
    UPDATE prefix p SET children = p.children + cardinality(blocks),
                        child_used = p.child_used + (SELECT sum(power(2::numeric, width(b) - masklen(b)))
                                                     FROM unnest(blocks) AS b)
    WHERE p.id = p_parent;
    INSERT INTO history (actor, operation, namespace_id, object)
    SELECT coalesce(p_entries -> (t.ord - 1) ->> 'actor', ''), 'create prefix', home.namespace_id, t.block
    FROM unnest(ords, blocks) AS t (ord, block);
END
$$;

-- Deletes prefixes; children give their blocks back. One row for each: `ok`, `unknown_prefix`, `of_network` (unless
-- `p_of_networks`), `has_children`, `has_addresses`. Resting addresses have no owner and go with their prefix. It waits
-- for locks as `acquire_children` does.
CREATE FUNCTION delete_prefixes(p_prefixes bigint[], p_actors text[], p_of_networks boolean)
RETURNS TABLE (ord integer, outcome text)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off SET lock_timeout = '250ms' AS $$
DECLARE
    w       record;
    gone    bigint[] := '{}';
    parents bigint[] := '{}';
    cidrs   cidr[] := '{}';
    actors  text[] := '{}';
    homes   integer[] := '{}';
    spent   text[] := '{}';
    resting bigint[] := '{}';
    done    integer;
BEGIN
    -- Prefixes are locked in the order of their ids, as everywhere: parents before children, which are younger.
    PERFORM FROM prefix p
    WHERE p.id = ANY (ARRAY(
        SELECT unnest(p_prefixes)
        UNION SELECT c.parent_id FROM unnest(p_prefixes) AS d (id)
              CROSS JOIN LATERAL (SELECT l.parent_id FROM prefix l WHERE l.id = d.id OFFSET 0) AS c))
    ORDER BY p.id FOR NO KEY UPDATE;
    FOR w IN
        SELECT t.ord::integer AS ord, t.id, t.actor, p.namespace_id, p.network_id, p.parent_id, p.cidr, p.children, p.used,
               p.quarantined, p.request_id
        FROM unnest(p_prefixes, p_actors) WITH ORDINALITY AS t (id, actor, ord)
        LEFT JOIN LATERAL (SELECT * FROM prefix l WHERE l.id = t.id OFFSET 0) AS p ON true
        ORDER BY t.ord
    LOOP
        ord := w.ord;
        outcome := CASE
            WHEN w.cidr IS NULL THEN 'unknown_prefix'
            WHEN w.network_id IS NOT NULL AND NOT p_of_networks THEN 'of_network'
            WHEN w.children > 0 THEN 'has_children'
            WHEN w.used > w.quarantined
                 OR EXISTS (SELECT FROM ip i WHERE i.prefix_id = w.id AND i.state = 'reserved') THEN 'has_addresses'
            ELSE 'ok'
        END;
        RETURN NEXT;
        IF outcome = 'ok' THEN
            gone := gone || w.id;
            parents := parents || w.parent_id;
            cidrs := cidrs || w.cidr;
            actors := actors || w.actor;
            homes := homes || w.namespace_id;
            IF w.quarantined > 0 THEN
                resting := resting || w.id;
            END IF;
            IF w.request_id IS NOT NULL THEN
                spent := spent || w.request_id;
            END IF;
        END IF;
    END LOOP;
    IF cardinality(gone) = 0 THEN
        RETURN;
    END IF;

    IF cardinality(resting) > 0 THEN
        DELETE FROM ip i WHERE i.prefix_id = ANY (resting) AND i.state = 'quarantine';
    END IF;
    DELETE FROM free_range f WHERE f.prefix_id = ANY (gone);
    DELETE FROM free_block f WHERE f.prefix_id = ANY (gone);
    DELETE FROM reserved_range r WHERE r.prefix_id = ANY (gone);
    DELETE FROM prefix p WHERE p.id = ANY (gone);
    GET DIAGNOSTICS done = ROW_COUNT;
    IF done <> cardinality(gone) THEN  -- One that is named twice.
        RAISE EXCEPTION 'prefixes % changed while they were deleted', gone USING ERRCODE = '40001';
    END IF;
    FOR done IN 1 .. cardinality(gone) LOOP
        IF parents[done] IS NOT NULL THEN
            PERFORM give_block(parents[done], cidrs[done]);
        END IF;
    END LOOP;
    UPDATE prefix p SET children = p.children - g.children, child_used = p.child_used - g.size
    FROM (SELECT t.parent, count(*) AS children, sum(power(2::numeric, width(t.cidr) - masklen(t.cidr))) AS size
          FROM unnest(parents, cidrs) AS t (parent, cidr) WHERE t.parent IS NOT NULL GROUP BY 1) AS g
    WHERE p.id = g.parent;
    INSERT INTO history (actor, operation, namespace_id, object)
    SELECT t.actor, 'delete prefix', t.home, t.cidr FROM unnest(actors, homes, cidrs) AS t (actor, home, cidr);
    IF cardinality(spent) > 0 THEN
        INSERT INTO spent_request (request_id) SELECT unnest(spent) ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- For processes of the version before, until the last of them is gone; a later step drops them.
CREATE OR REPLACE FUNCTION acquire_child(
    p_parent bigint, p_len integer, p_cidr cidr, p_network text, p_kind text, p_all_usable boolean,
    p_quarantine interval, p_actor text
) RETURNS TABLE (outcome text, prefix_id bigint, cidr cidr)
LANGUAGE sql VOLATILE AS $$
    SELECT a.outcome, a.prefix_id, a.cidr
    FROM acquire_children(p_parent, jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'length', CASE WHEN p_cidr IS NULL THEN p_len END, 'cidr', p_cidr, 'network', p_network, 'kind', p_kind,
        'all_usable', p_all_usable, 'quarantine', p_quarantine, 'actor', p_actor)))) AS a
$$;
CREATE OR REPLACE FUNCTION delete_prefix(p_prefix bigint, p_actor text) RETURNS text
LANGUAGE sql VOLATILE AS $$
    SELECT d.outcome FROM delete_prefixes(ARRAY[p_prefix], ARRAY[p_actor], true) AS d
$$;
