-- Pools of numbers: VRF (the same number is the VNI) and ASN. The structure of a prefix over integers, so a fresh pool
-- is one row and not one row a number.

CREATE TABLE id_pool (
    id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text        NOT NULL UNIQUE CHECK (name <> ''),
    description  text        NOT NULL DEFAULT '',
    -- What is handed out is base + n, with n out of the pool's ranges.
    base         bigint      NOT NULL DEFAULT 0 CHECK (base >= 0),
    size         bigint      NOT NULL DEFAULT 0 CHECK (size >= 0),
    used         bigint      NOT NULL DEFAULT 0 CHECK (used >= 0),
    quarantined  bigint      NOT NULL DEFAULT 0 CHECK (quarantined BETWEEN 0 AND used),
    -- How long a released number rests: an old route may still carry it.
    quarantine   interval    NOT NULL DEFAULT '0' CHECK (quarantine >= '0'),
    version      bigint      NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What the pool consists of. Numbers of a range without `auto` are handed out only when asked for by value.
CREATE TABLE id_range (
    pool_id  integer NOT NULL REFERENCES id_pool ON DELETE CASCADE,
    hi       bigint  NOT NULL,
    lo       bigint  NOT NULL,
    auto     boolean NOT NULL DEFAULT true,
    PRIMARY KEY (pool_id, hi),
    CHECK (lo BETWEEN 0 AND hi),
    EXCLUDE USING gist (pool_id WITH =, int8range(lo, hi, '[]') WITH &&)
);

CREATE TABLE id_free (
    pool_id  integer NOT NULL REFERENCES id_pool ON DELETE CASCADE,
    auto     boolean NOT NULL,
    hi       bigint  NOT NULL,
    lo       bigint  NOT NULL,
    PRIMARY KEY (pool_id, auto, hi),
    CHECK (lo <= hi)
) WITH (fillfactor = 50);

CREATE TABLE id_used (
    pool_id        integer     NOT NULL REFERENCES id_pool,
    value          bigint      NOT NULL,
    owner_kind     text        NOT NULL DEFAULT '',
    owner_id       text        NOT NULL DEFAULT '',
    project_id     text        NOT NULL DEFAULT '',
    state          text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'quarantine')),
    release_after  timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool_id, value),
    CHECK ((state = 'quarantine') = (release_after IS NOT NULL)),
    CHECK (state = 'quarantine' OR owner_id <> '')
);

-- One number of a pool per owner: asking again is not a second number.
CREATE UNIQUE INDEX id_used_owner ON id_used (owner_kind, owner_id, pool_id) WHERE owner_id <> '';
CREATE INDEX id_used_resting ON id_used (release_after) WHERE state = 'quarantine';
