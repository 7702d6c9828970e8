-- Arithmetic on addresses at the ends of the families, where Postgres' own operators raise errors: inet + n beyond the
-- last address, inet - inet from 2^63 on.

CREATE FUNCTION width(a inet) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE family(a) WHEN 4 THEN 32 ELSE 128 END;

CREATE FUNCTION first_address(c cidr) RETURNS inet
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN set_masklen(c::inet, CASE family(c) WHEN 4 THEN 32 ELSE 128 END);

CREATE FUNCTION last_address(c cidr) RETURNS inet
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN set_masklen(broadcast(c), CASE family(c) WHEN 4 THEN 32 ELSE 128 END);

CREATE FUNCTION family_first(f integer) RETURNS inet
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE f WHEN 4 THEN inet '0.0.0.0' ELSE inet '::' END;

CREATE FUNCTION family_last(f integer) RETURNS inet
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE f WHEN 4 THEN inet '255.255.255.255' ELSE inet 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff' END;

-- The address as a number; exact over both families, slow, therefore not on the hot path.
CREATE FUNCTION address_number(a inet) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT sum(get_byte(raw, 3 + n) * power(256::numeric, octets - n))
    FROM (SELECT inet_send(a) AS raw, CASE family(a) WHEN 4 THEN 4 ELSE 16 END AS octets) AS sent,
         generate_series(1, octets) AS n
);

-- How many addresses lie in lo..hi.
CREATE FUNCTION span(lo inet, hi inet) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN address_number(hi) - address_number(lo) + 1;

CREATE FUNCTION lower_half(c cidr) RETURNS cidr
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN set_masklen(c, masklen(c) + 1);

CREATE FUNCTION upper_half(c cidr) RETURNS cidr
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN network(set_masklen(broadcast(c), masklen(c) + 1));

-- The other half of the block that c is a half of. RFC 4632 section 3.1.
CREATE FUNCTION buddy(c cidr) RETURNS cidr
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE
    WHEN c = lower_half(network(set_masklen(c::inet, masklen(c) - 1))) THEN upper_half(network(set_masklen(c::inet, masklen(c) - 1)))
    ELSE lower_half(network(set_masklen(c::inet, masklen(c) - 1)))
END;
