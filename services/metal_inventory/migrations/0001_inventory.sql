-- Things that operators describe. body is the resource as a serialised message without etag and times: nothing in it
-- is filtered by, so it needs no columns.
CREATE TABLE partition (
    id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    body bytea NOT NULL
);

CREATE TABLE size (
    id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    body bytea NOT NULL
);

CREATE TABLE filesystem_layout (
    id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    body bytea NOT NULL
);

-- os, classification and expires_at repeat what body says, for the resolution of shorthands.
CREATE TABLE image (
    id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    body bytea NOT NULL,
    os text NOT NULL,
    classification text NOT NULL CHECK (classification IN ('PREVIEW', 'SUPPORTED', 'DEPRECATED')),
    expires_at timestamptz NOT NULL
);
CREATE INDEX image_by_os ON image (os, id);

-- What changes often (life cycle, BMC, lease) lives in narrow tables of its own, so that signs of life do not rewrite
-- the hardware. Whoever changes any of it locks the machine's row here first.
CREATE TABLE machine (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    partition text REFERENCES partition (id),
    rack text NOT NULL DEFAULT '',
    size text NOT NULL DEFAULT 'unknown',
    matching_sizes text[] NOT NULL DEFAULT '{}',
    description text NOT NULL DEFAULT '',
    labels jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'AVAILABLE' CHECK (state IN ('AVAILABLE', 'TAINTED', 'LOCKED')),
    state_description text NOT NULL DEFAULT '' CHECK ((state = 'AVAILABLE') = (state_description = '')),
    allocation_id uuid,
    project_id uuid,
    bound_at timestamptz,
    generation bigint NOT NULL DEFAULT 0,
    session uuid,
    installer_version text NOT NULL DEFAULT '',
    disks_clean boolean NOT NULL DEFAULT false,
    quarantined_disks text[] NOT NULL DEFAULT '{}',
    waiting boolean NOT NULL DEFAULT false,
    cabled boolean NOT NULL DEFAULT false,
    cabling_error text NOT NULL DEFAULT '',
    -- A serialised Machine that holds hardware, bios, links and wipe_results, and nothing that a column owns.
    report bytea NOT NULL DEFAULT '',
    CHECK ((allocation_id IS NULL) = (project_id IS NULL) AND (allocation_id IS NULL) = (bound_at IS NULL)),
    CHECK (NOT (waiting AND allocation_id IS NOT NULL)),
    CHECK (cabled = (rack <> ''))
);
-- One machine an allocation at most; the other half is the column itself.
CREATE UNIQUE INDEX machine_by_allocation ON machine (allocation_id) WHERE allocation_id IS NOT NULL;
-- One index a filter of ListMachines, each in the order of the pages.
CREATE INDEX machine_by_partition ON machine (partition, id);
CREATE INDEX machine_by_rack ON machine (rack, id);
CREATE INDEX machine_by_size ON machine (size, id);
CREATE INDEX machine_by_project ON machine (project_id, id) WHERE project_id IS NOT NULL;
CREATE INDEX machine_by_state ON machine (state, id) WHERE state <> 'AVAILABLE';
CREATE INDEX machine_waiting ON machine (id) WHERE waiting;
CREATE INDEX machine_by_labels ON machine USING gin (labels jsonb_path_ops);

CREATE TABLE lifecycle (
    machine uuid PRIMARY KEY REFERENCES machine (id) ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'INITIAL',
    sequence bigint NOT NULL DEFAULT 0,
    last_event_at timestamptz,
    liveliness text NOT NULL DEFAULT 'NOT_AVAILABLE'
        CHECK (liveliness IN ('NOT_AVAILABLE', 'ALIVE', 'UNKNOWN', 'DEAD')),
    crash_loop boolean NOT NULL DEFAULT false,
    failed_reclaim boolean NOT NULL DEFAULT false,
    error_type text,
    error_at timestamptz,
    error_reported_at timestamptz,
    error_message text,
    CHECK ((error_type IS NULL) = (error_at IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX lifecycle_by_state ON lifecycle (state, machine);

CREATE TABLE provisioning_event (
    machine uuid NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    sequence bigint NOT NULL,
    type text NOT NULL,
    received_at timestamptz NOT NULL,
    reported_at timestamptz,
    message text NOT NULL,
    PRIMARY KEY (machine, sequence)
);

-- Ids that senders gave to their events, with what became of them, so that a retry gets the same answer.
CREATE TABLE received_event (
    machine uuid NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    id uuid NOT NULL,
    verdict text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (machine, id)
);
CREATE INDEX received_event_by_age ON received_event (received_at);

-- Who says that an installer waits. Renewed every few seconds, hence no index on the time: updates stay in the page.
CREATE TABLE waiting_lease (
    machine uuid PRIMARY KEY REFERENCES machine (id) ON DELETE CASCADE,
    holder uuid NOT NULL,
    generation bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE bmc (
    machine uuid PRIMARY KEY REFERENCES machine (id) ON DELETE CASCADE,
    address text NOT NULL DEFAULT '',
    mac text NOT NULL DEFAULT '',
    firmware text NOT NULL DEFAULT '',
    power text NOT NULL DEFAULT 'UNSPECIFIED' CHECK (power IN ('UNSPECIFIED', 'ON', 'OFF')),
    observed_at timestamptz,
    fru bytea NOT NULL DEFAULT ''
) WITH (fillfactor = 70);
CREATE INDEX bmc_by_address ON bmc (address) WHERE address <> '';

-- Parts of the hardware that are looked up by themselves; written with the report.
CREATE TABLE machine_part (
    machine uuid NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('nic_mac', 'disk_serial')),
    value text NOT NULL,
    PRIMARY KEY (kind, value, machine)
);
CREATE INDEX machine_part_by_machine ON machine_part (machine);
