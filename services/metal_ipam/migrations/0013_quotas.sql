-- The most that a project may hold; null does not limit. A row's lock orders the calls of its project that take
-- something, so that together they cannot have more. What is held is counted under that lock and not kept here: a release
-- would have to lock it too, after its prefix, and could deadlock with an acquire.
CREATE TABLE quota (
    project_id      text        PRIMARY KEY CHECK (project_id <> ''),
    ipv4_addresses  bigint      CHECK (ipv4_addresses >= 0),
    ipv6_addresses  bigint      CHECK (ipv6_addresses >= 0),
    prefixes        bigint      CHECK (prefixes >= 0),
    version         bigint      NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
