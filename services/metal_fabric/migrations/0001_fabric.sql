-- Switches and what they shall have, cabling, attachments.
-- Locks are taken in this order, rows of one table by id: switch, leaf_sync, attachment.

-- One for all entities: versions keep rising when an entity is deleted and comes back under its id.
CREATE SEQUENCE version;

CREATE TABLE switch (
    id text PRIMARY KEY,
    -- The id as LLDP neighbours are compared; two leaves whose names differ in case only cannot be told apart.
    host_key text NOT NULL UNIQUE,
    partition text NOT NULL,
    rack text NOT NULL,
    os text NOT NULL CHECK (os IN ('sonic', 'cumulus', 'other')),
    os_version text NOT NULL,
    core_version text NOT NULL,
    management_address text NOT NULL,
    loopback text NOT NULL,
    asn bigint NOT NULL CHECK (asn BETWEEN 1 AND 4294967295),
    pxe_vlan int NOT NULL CHECK (pxe_vlan BETWEEN 1 AND 1000 OR pxe_vlan BETWEEN 2001 AND 4094),
    description text NOT NULL DEFAULT '',
    desired_generation bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT nextval('version'),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX switch_by_place ON switch (partition, rack, id);

CREATE TABLE port (
    switch_id text NOT NULL REFERENCES switch ON DELETE CASCADE,
    name text NOT NULL,
    alias text NOT NULL,
    uplink boolean NOT NULL,
    wish text CHECK (wish IN ('up', 'down')),
    reported text NOT NULL CHECK (reported IN ('unknown', 'up', 'down')),
    PRIMARY KEY (switch_id, name)
);

-- How far a leaf has followed, and its stream. Apart from `switch`, so that signs of life do not wait for planners.
CREATE TABLE leaf_sync (
    switch_id text PRIMARY KEY REFERENCES switch ON DELETE CASCADE,
    -- The stream that speaks for the leaf; NULL when none does.
    session uuid,
    seen_time timestamptz,
    applied_generation bigint NOT NULL DEFAULT 0,
    applied_hash text NOT NULL DEFAULT '',
    apply_time timestamptz,
    error text NOT NULL DEFAULT '',
    notes text[] NOT NULL DEFAULT '{}'
);

CREATE TABLE switch_generation (
    switch_id text NOT NULL REFERENCES switch ON DELETE CASCADE,
    generation bigint NOT NULL CHECK (generation > 0),
    hash text NOT NULL,
    -- DesiredState with its generation and hash.
    state bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (switch_id, generation)
);

-- VLANs of a leaf; `released` is the generation that no longer needs it, 0 while in use.
CREATE TABLE vlan (
    switch_id text NOT NULL REFERENCES switch ON DELETE CASCADE,
    vni int NOT NULL CHECK (vni BETWEEN 1 AND 16777215),
    vlan int NOT NULL CHECK (vlan BETWEEN 1001 AND 2000),
    released bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (switch_id, vni),
    UNIQUE (switch_id, vlan)
);

CREATE TABLE cable (
    switch_id text NOT NULL,
    port text NOT NULL,
    machine uuid NOT NULL,
    nic_mac text NOT NULL,
    PRIMARY KEY (switch_id, port),
    -- No cascade: neither a switch nor a port goes while a machine hangs on it.
    FOREIGN KEY (switch_id, port) REFERENCES port (switch_id, name)
);
CREATE INDEX cable_by_machine ON cable (machine);

CREATE TABLE attachment (
    machine uuid PRIMARY KEY,
    owner uuid NOT NULL,
    role text NOT NULL CHECK (role IN ('unprovisioned', 'machine', 'firewall')),
    vrf int NOT NULL CHECK (vrf BETWEEN 0 AND 16777215),
    allowed_prefixes text[] NOT NULL,
    vnis int[] NOT NULL,
    leaving boolean NOT NULL,
    -- Whether the confirmation of what is wanted now has been published.
    announced boolean NOT NULL,
    version bigint NOT NULL DEFAULT nextval('version'),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Since which generation a leaf's desired state contains what is wanted of a machine's ports.
CREATE TABLE attachment_leaf (
    machine uuid NOT NULL REFERENCES attachment ON DELETE CASCADE,
    switch_id text NOT NULL REFERENCES switch ON DELETE CASCADE,
    wanted_generation bigint NOT NULL,
    PRIMARY KEY (machine, switch_id)
);
CREATE INDEX attachment_leaf_by_switch ON attachment_leaf (switch_id, wanted_generation);

-- Allocations whose use of a machine is over: what they ask for later has got lost on its way and came too late.
CREATE TABLE ended_allocation (
    allocation uuid NOT NULL,
    machine uuid NOT NULL,
    end_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (allocation, machine)
);

-- When an installed system last announced itself, as far as that has been published.
CREATE TABLE sighting (
    machine uuid PRIMARY KEY,
    emit_time timestamptz NOT NULL
);
