-- Namespaces, networks, prefixes and the free space inside each prefix.
--
-- A namespace is the boundary of uniqueness: two prefixes of one namespace overlap only as parent and child, and an
-- address exists once in it. A prefix is either a container (cut into child prefixes) or a leaf (gives addresses).
-- Free space is stored, not computed: ranges of free addresses for a leaf, aligned free blocks for a container, so
-- that taking the next one costs the same at any fill.

CREATE EXTENSION IF NOT EXISTS btree_gist SCHEMA public;

CREATE TABLE namespace (
    id          integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text        NOT NULL UNIQUE CHECK (name <> ''),
    project_id  text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now()
);

INSERT INTO namespace (name) VALUES ('default');

CREATE TABLE network (
    id                    text        PRIMARY KEY CHECK (id <> ''),
    namespace_id          integer     NOT NULL REFERENCES namespace,
    type                  text        NOT NULL
                          CHECK (type IN ('super', 'child', 'child_shared', 'external', 'underlay')),
    name                  text        NOT NULL DEFAULT '',
    description           text        NOT NULL DEFAULT '',
    project_id            text        NOT NULL DEFAULT '',
    partition_id          text        NOT NULL DEFAULT '',
    parent_id             text        REFERENCES network,
    vrf                   bigint,
    -- Whether the number was taken from the pool for this network. An inherited one is the parent's to give back.
    vrf_owned             boolean     NOT NULL DEFAULT false,
    nat_type              text        NOT NULL DEFAULT 'none' CHECK (nat_type IN ('none', 'ipv4_masquerade')),
    destination_prefixes  cidr[]      NOT NULL DEFAULT '{}',
    announcable_cidrs     cidr[]      NOT NULL DEFAULT '{}',
    default_child_v4      smallint    CHECK (default_child_v4 BETWEEN 1 AND 32),
    default_child_v6      smallint    CHECK (default_child_v6 BETWEEN 1 AND 128),
    min_child_v4          smallint    CHECK (min_child_v4 BETWEEN 1 AND 32),
    min_child_v6          smallint    CHECK (min_child_v6 BETWEEN 1 AND 128),
    -- How long a released address of this network rests before it is handed out again.
    quarantine            interval    NOT NULL DEFAULT '0' CHECK (quarantine >= '0'),
    labels                jsonb       NOT NULL DEFAULT '{}',
    version               bigint      NOT NULL DEFAULT 1,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    CHECK ((type IN ('child', 'child_shared')) = (parent_id IS NOT NULL)),
    CHECK (NOT vrf_owned OR vrf IS NOT NULL)
);

CREATE UNIQUE INDEX network_one_super_per_partition ON network (partition_id)
    WHERE type = 'super' AND partition_id <> '';
CREATE UNIQUE INDEX network_one_underlay_per_partition ON network (partition_id) WHERE type = 'underlay';
CREATE UNIQUE INDEX network_one_shared_child_per_project ON network (project_id) WHERE type = 'child_shared';
-- An inherited number is the parent's; every other one belongs to exactly one network.
CREATE UNIQUE INDEX network_vrf_owner ON network (vrf) WHERE vrf_owned;
CREATE UNIQUE INDEX network_name ON network (project_id, name) WHERE name <> '';
CREATE INDEX network_parent ON network (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX network_project ON network (project_id, id);
CREATE INDEX network_labels ON network USING gin (labels jsonb_path_ops);

CREATE TABLE prefix (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id  integer     NOT NULL REFERENCES namespace,
    network_id    text        NOT NULL REFERENCES network,
    parent_id     bigint      REFERENCES prefix,
    cidr          cidr        NOT NULL,
    kind          text        NOT NULL CHECK (kind IN ('container', 'leaf')),
    -- Every address may be handed out, the network's own and the broadcast address included.
    all_usable    boolean     NOT NULL DEFAULT false,
    quarantine    interval    NOT NULL DEFAULT '0',
    size          numeric     NOT NULL
                  GENERATED ALWAYS AS (power(2::numeric, CASE family(cidr) WHEN 4 THEN 32 ELSE 128 END - masklen(cidr)))
                  STORED,
    -- The counters are the row lock: every change inside a prefix begins by updating this row. In no index, so that
    -- the update stays within its page.
    used          bigint      NOT NULL DEFAULT 0 CHECK (used >= 0),
    quarantined   bigint      NOT NULL DEFAULT 0 CHECK (quarantined BETWEEN 0 AND used),
    reserved      numeric     NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    children      bigint      NOT NULL DEFAULT 0 CHECK (children >= 0),
    child_used    numeric     NOT NULL DEFAULT 0 CHECK (child_used >= 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    CHECK (kind = 'leaf' OR used = 0),
    CHECK (kind = 'container' OR children = 0),
    -- The constraint ignores rows with a null in it, therefore roots count as children of 0.
    EXCLUDE USING gist (namespace_id WITH =, (coalesce(parent_id, 0)) WITH =, cidr inet_ops WITH &&)
) WITH (fillfactor = 50);

CREATE INDEX prefix_network ON prefix (network_id);
CREATE INDEX prefix_parent ON prefix (parent_id) WHERE parent_id IS NOT NULL;

-- Free addresses of a leaf, keyed by the upper end: the common acquire raises `lo`, which no index holds, so it is a
-- heap-only update.
CREATE TABLE free_range (
    prefix_id  bigint NOT NULL REFERENCES prefix ON DELETE CASCADE,
    hi         inet   NOT NULL,
    lo         inet   NOT NULL,
    PRIMARY KEY (prefix_id, hi),
    CHECK (lo <= hi),
    CHECK (masklen(hi) = CASE family(hi) WHEN 4 THEN 32 ELSE 128 END),
    CHECK (masklen(lo) = masklen(hi))
) WITH (fillfactor = 50);

-- Addresses of a leaf that next-free never hands out: network and broadcast address, gateway, ranges set aside.
CREATE TABLE reserved_range (
    prefix_id   bigint      NOT NULL REFERENCES prefix ON DELETE CASCADE,
    hi          inet        NOT NULL,
    lo          inet        NOT NULL,
    reason      text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prefix_id, hi),
    CHECK (lo <= hi),
    CHECK (masklen(hi) = CASE family(hi) WHEN 4 THEN 32 ELSE 128 END),
    CHECK (masklen(lo) = masklen(hi))
);

-- Free blocks of a container: aligned, maximal, never two buddies at once.
CREATE TABLE free_block (
    prefix_id  bigint   NOT NULL REFERENCES prefix ON DELETE CASCADE,
    len        smallint NOT NULL,
    cidr       cidr     NOT NULL,
    CHECK (len = masklen(cidr))
) WITH (fillfactor = 50);

-- In the order of the search: the smallest block that fits, the lowest of these.
CREATE UNIQUE INDEX free_block_key ON free_block (prefix_id, len DESC, cidr);

CREATE TABLE ip (
    namespace_id   integer     NOT NULL REFERENCES namespace,
    addr           inet        NOT NULL,
    prefix_id      bigint      NOT NULL REFERENCES prefix,
    project_id     text        NOT NULL DEFAULT '',
    owner_kind     text        NOT NULL DEFAULT '',
    owner_id       text        NOT NULL DEFAULT '',
    kind           text        NOT NULL DEFAULT 'ephemeral' CHECK (kind IN ('ephemeral', 'static')),
    -- active: held by the owner. reserved: held by the owner, inside a reserved range. quarantine: rests.
    state          text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'reserved', 'quarantine')),
    name           text        NOT NULL DEFAULT '',
    description    text        NOT NULL DEFAULT '',
    dns_name       text        NOT NULL DEFAULT '',
    labels         jsonb       NOT NULL DEFAULT '{}',
    request_id     text,
    request_hash   text        NOT NULL DEFAULT '',
    release_after  timestamptz,
    version        bigint      NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace_id, addr),
    -- inet compares the mask length too: 10.0.0.1/24 would be another key than 10.0.0.1.
    CHECK (masklen(addr) = CASE family(addr) WHEN 4 THEN 32 ELSE 128 END),
    CHECK ((state = 'quarantine') = (release_after IS NOT NULL))
);

CREATE UNIQUE INDEX ip_request ON ip (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX ip_prefix ON ip (prefix_id, addr);
CREATE INDEX ip_project ON ip (project_id, prefix_id, addr);
CREATE INDEX ip_owner ON ip (owner_kind, owner_id) WHERE owner_id <> '';
CREATE INDEX ip_resting ON ip (release_after) WHERE state = 'quarantine';

-- Request ids whose address was released since: a late retry must not take a second one that nobody will release.
CREATE TABLE spent_request (
    request_id  text        PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX spent_request_at ON spent_request (at);

-- Who did what to which address, prefix or number, written in the transaction of the change itself.
CREATE TABLE history (
    seq           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT now(),
    actor         text        NOT NULL,
    operation     text        NOT NULL,
    namespace_id  integer,
    object        inet,
    pool_id       integer,
    value         bigint,
    owner_kind    text        NOT NULL DEFAULT '',
    owner_id      text        NOT NULL DEFAULT '',
    project_id    text        NOT NULL DEFAULT ''
);

CREATE INDEX history_object ON history (namespace_id, object, seq) WHERE object IS NOT NULL;
CREATE INDEX history_value ON history (pool_id, value, seq) WHERE pool_id IS NOT NULL;
