-- Creating and deleting prefixes: roots in a namespace, children out of a parent's buddy blocks.

-- Cuts a block of length p_len out of the parent's free space, or exactly p_cidr when given; null when there is none.
-- The caller holds the parent's row.
CREATE FUNCTION cut_block(p_parent bigint, p_len integer, p_cidr cidr) RETURNS cidr
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    block cidr;
BEGIN
    IF p_cidr IS NULL THEN
        -- Best fit: the smallest free block that is large enough, the lowest of these.
        SELECT b.cidr INTO block FROM free_block b WHERE b.prefix_id = p_parent AND b.len <= p_len
        ORDER BY b.len DESC, b.cidr LIMIT 1;
    ELSE
        SELECT b.cidr INTO block
        FROM generate_series(0, p_len) AS l
        JOIN free_block b ON b.prefix_id = p_parent AND b.len = l AND b.cidr = network(set_masklen(p_cidr::inet, l));
    END IF;
    IF block IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM free_block b WHERE b.prefix_id = p_parent AND b.len = masklen(block) AND b.cidr = block;
    WHILE masklen(block) < p_len LOOP
        IF p_cidr IS NULL OR p_cidr <<= lower_half(block) THEN
            INSERT INTO free_block (prefix_id, len, cidr) VALUES (p_parent, masklen(block) + 1, upper_half(block));
            block := lower_half(block);
        ELSE
            INSERT INTO free_block (prefix_id, len, cidr) VALUES (p_parent, masklen(block) + 1, lower_half(block));
            block := upper_half(block);
        END IF;
    END LOOP;
    RETURN block;
END
$$;

-- Gives a block back and joins it with its buddy as long as that is free, up to the parent itself. The caller holds the
-- parent's row.
CREATE FUNCTION give_block(p_parent bigint, p_cidr cidr) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    block cidr := p_cidr;
    top   integer;
BEGIN
    SELECT masklen(p.cidr) INTO top FROM prefix p WHERE p.id = p_parent;
    WHILE masklen(block) > top LOOP
        DELETE FROM free_block b WHERE b.prefix_id = p_parent AND b.len = masklen(block) AND b.cidr = buddy(block);
        EXIT WHEN NOT FOUND;
        block := network(set_masklen(block::inet, masklen(block) - 1));
    END LOOP;
    INSERT INTO free_block (prefix_id, len, cidr) VALUES (p_parent, masklen(block), block);
END
$$;

-- Writes the free space of a prefix in which nothing is taken.
--
-- An IPv4 leaf up to /30 keeps its network and broadcast address back; of /31 (RFC 3021) and /32 all is usable. An IPv6
-- leaf up to /126 keeps the subnet-router anycast address back (RFC 4291 section 2.6.1); of /127 (RFC 6164) and /128 all
-- is usable. With `all_usable` nothing is kept back.
CREATE FUNCTION lay_out(p_prefix bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    p      record;
    lo     inet;
    hi     inet;
    spared boolean;
BEGIN
    SELECT * INTO p FROM prefix WHERE id = p_prefix;
    IF p.kind = 'container' THEN
        INSERT INTO free_block (prefix_id, len, cidr) VALUES (p.id, masklen(p.cidr), p.cidr);
        RETURN;
    END IF;
    lo := first_address(p.cidr);
    hi := last_address(p.cidr);
    spared := NOT p.all_usable AND width(lo) - masklen(p.cidr) >= 2;
    IF spared THEN
        INSERT INTO reserved_range (prefix_id, hi, lo, reason)
        VALUES (p.id, lo, lo, CASE family(lo) WHEN 4 THEN 'network address' ELSE 'subnet-router anycast' END);
        lo := lo + 1;
        IF family(lo) = 4 THEN
            INSERT INTO reserved_range (prefix_id, hi, lo, reason) VALUES (p.id, hi, hi, 'broadcast address');
            hi := hi - 1;
        END IF;
        UPDATE prefix SET reserved = CASE family(lo) WHEN 4 THEN 2 ELSE 1 END WHERE id = p.id;
    END IF;
    INSERT INTO free_range (prefix_id, hi, lo) VALUES (p.id, hi, lo);
END
$$;

-- Creates a root prefix: `ok` with its id; `overlap` with the prefix and network in the way; `unknown_namespace`.
CREATE FUNCTION create_root(
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
    SELECT p.cidr, p.network_id INTO other_cidr, other_network FROM prefix p
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

-- Cuts a child out of a container: of length p_len, or exactly p_cidr when given. `ok` with its id and CIDR; `full`,
-- `taken` (a given one that is not wholly free), `outside`, `length` (not longer than the parent), `unknown_prefix`,
-- `wrong_kind`.
CREATE FUNCTION acquire_child(
    p_parent bigint, p_len integer, p_cidr cidr, p_network text, p_kind text, p_all_usable boolean,
    p_quarantine interval, p_actor text
) RETURNS TABLE (outcome text, prefix_id bigint, cidr cidr)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home  record;
    len   integer := coalesce(masklen(p_cidr), p_len);
    block cidr;
BEGIN
    SELECT p.namespace_id, p.kind, p.cidr INTO home FROM prefix p WHERE p.id = p_parent FOR NO KEY UPDATE;
    outcome := CASE
        WHEN NOT FOUND THEN 'unknown_prefix'
        WHEN home.kind <> 'container' THEN 'wrong_kind'
        WHEN p_cidr IS NOT NULL AND NOT p_cidr <<= home.cidr THEN 'outside'
        WHEN len <= masklen(home.cidr) OR len > width(home.cidr) THEN 'length'
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

-- Deletes a prefix and, for a child, gives its block back: `ok`, `unknown_prefix`, `has_children`, `has_addresses`.
-- Resting addresses have no owner and go with their prefix.
CREATE FUNCTION delete_prefix(p_prefix bigint, p_actor text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    home record;
BEGIN
    -- Parent before child, as everywhere: the other order could deadlock with a sibling's creation.
    PERFORM FROM prefix p WHERE p.id = (SELECT c.parent_id FROM prefix c WHERE c.id = p_prefix) FOR NO KEY UPDATE;
    SELECT p.namespace_id, p.parent_id, p.cidr, p.children, p.used, p.quarantined INTO home
    FROM prefix p WHERE p.id = p_prefix FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'unknown_prefix';
    ELSIF home.children > 0 THEN
        RETURN 'has_children';
    ELSIF home.used > home.quarantined
          OR EXISTS (SELECT FROM ip i WHERE i.prefix_id = p_prefix AND i.state = 'reserved') THEN
        RETURN 'has_addresses';
    END IF;
    DELETE FROM ip i WHERE i.prefix_id = p_prefix AND i.state = 'quarantine';
    DELETE FROM prefix p WHERE p.id = p_prefix;
    IF home.parent_id IS NOT NULL THEN
        PERFORM give_block(home.parent_id, home.cidr);
        UPDATE prefix p SET children = p.children - 1,
                            child_used = p.child_used - power(2::numeric, width(home.cidr) - masklen(home.cidr))
        WHERE p.id = home.parent_id;
    END IF;
    INSERT INTO history (actor, operation, namespace_id, object)
    VALUES (p_actor, 'delete prefix', home.namespace_id, home.cidr);
    RETURN 'ok';
END
$$;
