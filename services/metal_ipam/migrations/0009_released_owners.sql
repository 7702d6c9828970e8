-- Owners that have let go of everything and are over. A call for addresses that was under way when its owner was released
-- would otherwise commit afterwards, and leave an address to somebody who will never release it.

CREATE TABLE released_owner (
    owner_kind  text        NOT NULL,
    owner_id    text        NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner_kind, owner_id)
);

CREATE INDEX released_owner_at ON released_owner (at);

-- Keeps the owner from being released until the transaction ends; false when it has been already. To be called before
-- any other lock is taken.
CREATE FUNCTION hold_owner(p_kind text, p_id text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(concat_ws(chr(1), 'owner', p_kind, p_id), 0));
    RETURN NOT EXISTS (SELECT FROM released_owner r WHERE r.owner_kind = p_kind AND r.owner_id = p_id);
END
$$;

-- Waits for calls under way that hold the owner, and lets no later one begin.
CREATE FUNCTION end_owner(p_kind text, p_id text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(concat_ws(chr(1), 'owner', p_kind, p_id), 0));
    INSERT INTO released_owner (owner_kind, owner_id) VALUES (p_kind, p_id) ON CONFLICT DO NOTHING;
END
$$;
