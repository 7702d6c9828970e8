-- Prefixes that belong to no network, with labels and a status; namespaces that people make; and prefixes that grow.

ALTER TABLE namespace ADD COLUMN description text NOT NULL DEFAULT '';

ALTER TABLE prefix
    ALTER COLUMN network_id DROP NOT NULL,
    -- What is not active gives addresses and children only by their own number.
    ADD COLUMN status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'reserved', 'deprecated')),
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN description text NOT NULL DEFAULT '',
    -- Of what people change, not of the counters.
    ADD COLUMN version bigint NOT NULL DEFAULT 1;

-- A CIDR exists once in a namespace: roots do not overlap, siblings neither, and a child is longer than its parent. So
-- this is a name, the order of lists, and by trying each length the way to the longest match of an address.
CREATE UNIQUE INDEX prefix_place ON prefix (namespace_id, cidr);
DROP INDEX prefix_parent;
CREATE INDEX prefix_parent ON prefix (parent_id, cidr) WHERE parent_id IS NOT NULL;
CREATE INDEX prefix_labels ON prefix USING gin (labels jsonb_path_ops) WHERE kind = 'container';
-- Which namespaces know of an address, and which roots overlap over namespaces.
CREATE INDEX prefix_roots ON prefix USING gist (cidr inet_ops) WHERE parent_id IS NULL;
CREATE INDEX prefix_root_order ON prefix (id) WHERE parent_id IS NULL;

-- For the foreign key, when a namespace is deleted.
CREATE INDEX network_namespace ON network (namespace_id);

-- As before, but a prefix in the way may belong to no network.
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
    INSERT INTO prefix (namespace_id, network_id, cidr, kind, all_usable, quarantine)
    VALUES (p_namespace, p_network, p_cidr, p_kind, p_all_usable, p_quarantine) RETURNING id INTO prefix_id;
    PERFORM lay_out(prefix_id);
    INSERT INTO history (actor, operation, namespace_id, object) VALUES (p_actor, 'create prefix', p_namespace, p_cidr);
    outcome := 'ok';
    RETURN NEXT;
END
$$;

-- As before, and `not_active` for any child of a parent that is not active.
CREATE OR REPLACE FUNCTION acquire_child(
    p_parent bigint, p_len integer, p_cidr cidr, p_network text, p_kind text, p_all_usable boolean,
    p_quarantine interval, p_actor text
) RETURNS TABLE (outcome text, prefix_id bigint, cidr cidr)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home  record;
    len   integer := coalesce(masklen(p_cidr), p_len);
    block cidr;
BEGIN
    SELECT p.namespace_id, p.kind, p.cidr, p.status INTO home FROM prefix p WHERE p.id = p_parent FOR NO KEY UPDATE;
    outcome := CASE
        WHEN NOT FOUND THEN 'unknown_prefix'
        WHEN home.kind <> 'container' THEN 'wrong_kind'
        WHEN p_cidr IS NOT NULL AND NOT p_cidr <<= home.cidr THEN 'outside'
        WHEN len <= masklen(home.cidr) OR len > width(home.cidr) THEN 'length'
        WHEN p_cidr IS NULL AND home.status <> 'active' THEN 'not_active'
    END;
    IF outcome IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    block := cut_block(p_parent, len, p_cidr);
    IF block IS NULL THEN
        outcome := CASE WHEN p_cidr IS NULL THEN 'full' ELSE 'taken' END;
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO prefix (namespace_id, network_id, parent_id, cidr, kind, all_usable, quarantine)
    VALUES (home.namespace_id, p_network, p_parent, block, p_kind, p_all_usable, p_quarantine)
    RETURNING id INTO prefix_id;
    PERFORM lay_out(prefix_id);
    UPDATE prefix p SET children = p.children + 1,
                        child_used = p.child_used + power(2::numeric, width(block) - len)
    WHERE p.id = p_parent;
    INSERT INTO history (actor, operation, namespace_id, object)
    VALUES (p_actor, 'create prefix', home.namespace_id, block);
    outcome := 'ok';
    cidr := block;
    RETURN NEXT;
END
$$;

-- Makes a prefix larger: `ok` (also when it is so large already), `unknown_prefix`, `length` (smaller than it is),
-- `parent` (as large as its parent, or larger), `taken` (with what is in the way), `held` (an address in use would
-- become the network or broadcast address, or was one and is held as such).
CREATE FUNCTION grow_prefix(p_prefix bigint, p_len integer, p_actor text)
RETURNS TABLE (outcome text, in_the_way inet)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home   record;
    parent record;
    grown  cidr;
    block  cidr;
BEGIN
    -- In the order of all locks: namespace, parent, the prefix itself.
    PERFORM FROM namespace n WHERE n.id = (SELECT p.namespace_id FROM prefix p WHERE p.id = p_prefix) FOR NO KEY UPDATE;
    SELECT p.id, p.cidr INTO parent FROM prefix p
    WHERE p.id = (SELECT c.parent_id FROM prefix c WHERE c.id = p_prefix) FOR NO KEY UPDATE;
    SELECT p.id, p.namespace_id, p.cidr, p.kind, p.all_usable, p.size INTO home
    FROM prefix p WHERE p.id = p_prefix FOR UPDATE;
    outcome := CASE
        WHEN NOT FOUND THEN 'unknown_prefix'
        WHEN p_len = masklen(home.cidr) THEN 'ok'
        WHEN p_len > masklen(home.cidr) OR p_len < 0 THEN 'length'
        WHEN parent.id IS NOT NULL AND p_len <= masklen(parent.cidr) THEN 'parent'
    END;
    IF outcome IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    grown := network(set_masklen(home.cidr::inet, p_len));

    IF parent.id IS NULL THEN
        SELECT p.cidr INTO in_the_way FROM prefix p
        WHERE p.namespace_id = home.namespace_id AND coalesce(p.parent_id, 0) = 0 AND p.cidr && grown
          AND p.id <> p_prefix LIMIT 1;
    ELSE
        -- The buddies on the way up: each is a whole free block of its length, or not wholly free.
        block := home.cidr;
        WHILE masklen(block) > p_len AND in_the_way IS NULL LOOP
            IF NOT EXISTS (SELECT FROM free_block b WHERE b.prefix_id = parent.id AND b.len = masklen(block)
                                                      AND b.cidr = buddy(block)) THEN
                in_the_way := buddy(block);
            END IF;
            block := network(set_masklen(block::inet, masklen(block) - 1));
        END LOOP;
    END IF;
    IF in_the_way IS NOT NULL THEN
        outcome := 'taken';
        RETURN NEXT;
        RETURN;
    END IF;

    IF home.kind = 'leaf' AND NOT home.all_usable THEN
        SELECT i.addr INTO in_the_way FROM ip i
        WHERE i.prefix_id = p_prefix AND (
            i.addr = first_address(grown) OR (family(grown) = 4 AND i.addr = last_address(grown))
            OR i.state = 'reserved' AND i.addr IN (first_address(home.cidr), last_address(home.cidr))) LIMIT 1;
        IF in_the_way IS NULL THEN
            -- A range that somebody reserved there would have the network or broadcast address within.
            SELECT r.lo INTO in_the_way FROM reserved_range r
            WHERE r.prefix_id = p_prefix AND r.reason NOT IN ('network address', 'broadcast address', 'subnet-router anycast')
              AND (first_address(grown) BETWEEN r.lo AND r.hi
                   OR family(grown) = 4 AND last_address(grown) BETWEEN r.lo AND r.hi) LIMIT 1;
        END IF;
        IF in_the_way IS NOT NULL THEN
            outcome := 'held';
            RETURN NEXT;
            RETURN;
        END IF;
        DELETE FROM reserved_range r
        WHERE r.prefix_id = p_prefix AND r.lo = r.hi AND r.lo IN (first_address(home.cidr), last_address(home.cidr))
          AND r.reason IN ('network address', 'broadcast address', 'subnet-router anycast');
        INSERT INTO reserved_range (prefix_id, hi, lo, reason)
        SELECT p_prefix, a, a, reason FROM (VALUES
            (first_address(grown), CASE family(grown) WHEN 4 THEN 'network address' ELSE 'subnet-router anycast' END),
            (last_address(grown), CASE family(grown) WHEN 4 THEN 'broadcast address' END)
        ) AS spared (a, reason) WHERE reason IS NOT NULL AND width(grown) - p_len >= 2;
    END IF;

    block := home.cidr;
    WHILE parent.id IS NOT NULL AND masklen(block) > p_len LOOP
        DELETE FROM free_block b WHERE b.prefix_id = parent.id AND b.len = masklen(block) AND b.cidr = buddy(block);
        block := network(set_masklen(block::inet, masklen(block) - 1));
    END LOOP;
    UPDATE prefix p SET cidr = grown, version = p.version + 1 WHERE p.id = p_prefix;
    UPDATE prefix p SET child_used = p.child_used - home.size + power(2::numeric, width(grown) - p_len)
    WHERE p.id = parent.id;
    -- Seldom, and so simple: free space is made anew from what is taken.
    PERFORM repair_prefix(p_prefix);
    INSERT INTO history (actor, operation, namespace_id, object)
    VALUES (p_actor, 'grow prefix', home.namespace_id, home.cidr), (p_actor, 'grow prefix', home.namespace_id, grown);
    outcome := 'ok';
    RETURN NEXT;
END
$$;
