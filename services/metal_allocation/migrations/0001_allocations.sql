-- Allocations, the claims that say who has which machine, and the machines to choose from.

CREATE TABLE allocation (
    id uuid PRIMARY KEY,
    project uuid NOT NULL,
    creator text NOT NULL,
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('machine', 'firewall')),
    -- AllocationSpec as it was asked for, without user data, description and labels, which have columns.
    spec bytea NOT NULL,
    userdata bytea NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    labels jsonb NOT NULL DEFAULT '{}',
    placement_labels jsonb NOT NULL DEFAULT '{}',
    phase text NOT NULL,
    phase_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    phase_deadline timestamptz,
    machine uuid NOT NULL,
    partition text NOT NULL,
    rack text NOT NULL,
    size text NOT NULL,
    -- Image, FilesystemLayout and name servers as resolved when it was asked for: later edits do not touch the machine.
    image bytea NOT NULL,
    layout bytea NOT NULL,
    -- Serials of the layout's disks on the bound machine: names may change with the next boot, serials do not.
    disk_serials text[] NOT NULL DEFAULT '{}',
    dns_servers text[] NOT NULL DEFAULT '{}',
    ntp_servers text[] NOT NULL DEFAULT '{}',
    asn bigint NOT NULL DEFAULT 0,
    -- AllocationStatus that holds nothing but `networks`.
    networks bytea NOT NULL DEFAULT '',
    -- AllocationStatus that holds nothing but `conditions`.
    conditions bytea NOT NULL DEFAULT '',
    installed boolean NOT NULL DEFAULT false,
    install_failures int NOT NULL DEFAULT 0,
    install_error text NOT NULL DEFAULT '',
    installer_step text NOT NULL DEFAULT '',
    installer_percent int NOT NULL DEFAULT 0,
    installer_time timestamptz,
    boot_info bytea NOT NULL DEFAULT '',
    -- The BMC command that the phase waits for, and how many it has given.
    command uuid,
    command_attempts int NOT NULL DEFAULT 0,
    running_time timestamptz,
    free_time timestamptz,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);

CREATE INDEX allocation_project ON allocation (project, id);
CREATE INDEX allocation_machine ON allocation (machine, id);
CREATE INDEX allocation_phase ON allocation (phase, id);
CREATE INDEX allocation_present ON allocation (id) WHERE phase <> 'released';

CREATE TABLE timeline (
    allocation uuid NOT NULL REFERENCES allocation ON DELETE CASCADE,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    time timestamptz NOT NULL DEFAULT clock_timestamp(),
    phase text NOT NULL,
    reason text NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (allocation, seq)
);

-- Exactly one row decides who has a machine, whatever path a request came by.
CREATE TABLE claim (
    machine uuid PRIMARY KEY,
    allocation uuid NOT NULL UNIQUE REFERENCES allocation,
    project uuid NOT NULL,
    role text NOT NULL,
    partition text NOT NULL,
    size text NOT NULL,
    rack text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX claim_spread ON claim (project, partition, size, role);

-- What inventory last said of each machine, as far as choosing one needs it. A hint: the binding in inventory decides.
CREATE TABLE candidate (
    machine uuid PRIMARY KEY,
    partition text NOT NULL,
    size text NOT NULL,
    rack text NOT NULL,
    state text NOT NULL,
    waiting boolean NOT NULL,
    alive boolean NOT NULL,
    clean boolean NOT NULL,
    cabled boolean NOT NULL,
    bound boolean NOT NULL,
    version bigint NOT NULL,
    seen_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX candidate_free ON candidate (partition, size, machine)
    WHERE waiting AND alive AND clean AND cabled AND NOT bound AND state = 'available';
CREATE INDEX candidate_class ON candidate (partition, size);

-- Locked while a machine of the class is being chosen, so that counts are true and racks are spread.
CREATE TABLE placement_lock (
    partition text NOT NULL,
    size text NOT NULL,
    PRIMARY KEY (partition, size)
);
