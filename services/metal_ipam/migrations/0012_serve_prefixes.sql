-- Acquires and releases of several leaves in one transaction: one commit and one round trip for callers that have
-- nothing in common. The leaves must be in the order of their ids, which is the order of all locks on prefixes. Per leaf
-- a list of entries each, as `acquire_n` (with `request_id` in the entry) and `release_entries` take them; releases come
-- first. `prefix` and `ord` count from 1; kind 0 is a release, 1 an acquire.
CREATE FUNCTION serve_prefixes(p_prefixes bigint[], p_acquires jsonb, p_releases jsonb)
RETURNS TABLE (prefix integer, kind integer, ord integer, outcome text, address inet, acquired_at timestamptz,
               fresh boolean, project text, holder_kind text, holder_id text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    entries jsonb;
BEGIN
    FOR n IN 1 .. cardinality(p_prefixes) LOOP
        entries := p_releases -> (n - 1);
        IF jsonb_array_length(entries) > 0 THEN
            RETURN QUERY
            SELECT n, 0, r.ord, r.outcome, NULL::inet, NULL::timestamptz, false, r.project, r.holder_kind, r.holder_id
            FROM release_entries(p_prefixes[n], entries) r;
        END IF;
        entries := p_acquires -> (n - 1);
        IF jsonb_array_length(entries) > 0 THEN
            RETURN QUERY
            SELECT n, 1, a.ord, a.outcome, a.address, a.acquired_at, a.acquired_at = now(), '', '', ''
            FROM acquire_n(p_prefixes[n], ARRAY(SELECT e ->> 'request_id' FROM jsonb_array_elements(entries) AS e),
                           entries, '') a;
        END IF;
    END LOOP;
END
$$;
