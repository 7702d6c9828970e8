-- Replicas of the service that live: each says so again and again, and one that is silent is dead from expires_at on.
CREATE TABLE replica (
    id text PRIMARY KEY,
    partition text NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX replica_partition ON replica (partition, expires_at);

-- Who may talk to the BMCs of a bucket and write what came of it. A bucket is a 256th of a partition's machines: 256
-- leases are renewed by one statement of each replica, a hundred thousand would be most of what Postgres does.
CREATE TABLE bucket (
    partition text NOT NULL,
    number smallint NOT NULL CHECK (number BETWEEN 0 AND 255),
    holder text NOT NULL,
    -- Rises with every change of holder: what an earlier one still has under way cannot be written any more.
    fence bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (partition, number)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
CREATE SEQUENCE bucket_fence AS bigint;

-- metal_kit.controller.shard_of: the queue of commands and the BMCs are shared out alike.
ALTER TABLE endpoint
    ADD COLUMN bucket smallint GENERATED ALWAYS AS (get_byte(decode(md5(machine::text), 'hex'), 0)) STORED;
ALTER TABLE endpoint
    -- Machines of one rack share a power feed. Empty: not known.
    ADD COLUMN rack text NOT NULL DEFAULT '',
    -- Since when the BMC has been silent for so long that only probes and people's orders are tried.
    ADD COLUMN silent_since timestamptz,
    ADD COLUMN policy text NOT NULL DEFAULT 'enforce' CHECK (policy IN ('enforce', 'observe', 'maintenance')),
    -- How it goes with the power that is wanted: counted since the wish last changed.
    ADD COLUMN wish_generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN wish_seen bigint NOT NULL DEFAULT 0,
    ADD COLUMN wish_deadline timestamptz,
    ADD COLUMN wish_attempts int NOT NULL DEFAULT 0,
    ADD COLUMN wish_reason text NOT NULL DEFAULT '',
    ADD COLUMN wish_error text NOT NULL DEFAULT '';
UPDATE endpoint SET wish_generation = 1, wish_seen = (reported_on = desired_on)::int, wish_deadline = now()
    WHERE desired_on IS NOT NULL AND reported_on IS NOT NULL;

DROP INDEX endpoint_unsettled;
CREATE INDEX endpoint_unsettled ON endpoint (partition)
    WHERE desired_on IS NOT NULL AND reported_on IS DISTINCT FROM desired_on AND sealed IS NOT NULL AND host <> ''
    AND silent_since IS NULL AND policy = 'enforce';

-- The last power-ons of each rack: machines that start together take more current than running ones.
CREATE TABLE power_on (
    partition text NOT NULL,
    rack text NOT NULL,
    recent timestamptz[] NOT NULL,
    PRIMARY KEY (partition, rack)
);
